"""How much work a GPU gets at once: macOS ends a process whose commands keep the display waiting (mlx 3267).

Work is counted in operations of matrix products: two per weight and token, and in attention two per token, key and
channel of queries and of values. MLX itself begins a new command buffer after 40 to 50 operations of its graph or
as many megabytes (`MLX_MAX_OPS_PER_BUFFER`, `MLX_MAX_MB_PER_BUFFER`), so that one evaluation is at least one buffer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sdpo_mlx.config import AdapterConfig
from sdpo_mlx.models.dimensions import ModelDims

UNBOUNDED = 2**31  # tokens
# Operations per token and weight.
FORWARD = 2
BACKWARD = 6  # a vjp runs its part forward first
RECOMPUTED = 8  # and once more where each layer runs again on the way back
HEAD = 10  # the student's head with its gradient, and at most two teachers' heads
LEAST = 32  # tokens: below this, reading the weights takes longer than the products

# Float32 TFLOP/s of the GPU of the first chip of each kind, as published for M1 (2.6, Pro 5.2, Max 10.4, Ultra 21);
# later ones are faster. What is planned is one second at that rate, an estimate: no limit of the watchdog is published,
# and no chip was measured.
TERAFLOPS: Mapping[str, float] = MappingProxyType({"": 2.6, "Pro": 5.2, "Max": 10.4, "Ultra": 21.0})
SECONDS = 1.0


def chip_class(name: str) -> str | None:
    """Return the class of an Apple chip by its name: `` for `Apple M3`, `Pro`, `Max` or `Ultra`; None for others."""
    found = re.search(r"Apple [MA]\d+(?: (Pro|Max|Ultra))?", name)
    return None if found is None else found[1] or ""


def evaluation_limit(setting: float | None, chip: str) -> float:
    """Return the operations that one evaluation may cover; infinite on a chip without a watchdog.

    `setting` is `memory.evaluation_gflop`, which counts on every device; `chip` the name that MLX or macOS reports.
    """
    if setting is not None:
        return setting * 1e9
    kind = chip_class(chip)
    return math.inf if kind is None else SECONDS * TERAFLOPS[kind] * 1e12


@dataclass(frozen=True)
class EvaluationSizes:
    """The tokens that one evaluation may cover, for a model that uses so many weights per token.

    `limit` are operations (`evaluation_limit`); `block` are the weights of one of its blocks, `whole` those of all,
    the head included. `keys` are what attention adds to `whole` for each key that a token sees: of all, because caches
    may hold more than an attention window. One text that is longer than `learning` is still learned from in one
    evaluation per block.
    """

    limit: float = math.inf
    block: float = 1.0
    whole: float = 1.0
    head: float = 1.0  # weights
    by_block: bool = True  # whether the model learns block by block
    keys: float = 0.0  # weights per token and key
    block_keys: float = 0.0  # those of the largest block

    @classmethod
    def of(cls, dims: ModelDims, adapter: AdapterConfig, limit: float, *, by_block: bool) -> EvaluationSizes:
        """Return the sizes for a model of these dimensions with its adapter: those of its largest block."""
        head = dims.vocabulary * dims.width
        added = 0.0 if adapter.kind == "full" else dims.adapter_parameters(adapter) / max(dims.trunk_parameters, 1)
        blocks = [weights * (1.0 + added) for weights in dims.active_by_layer] or [1.0]
        keys = [2.0 * each.queries for each in dims.layer if each.keys_values] or [0.0]
        return cls(limit, max(blocks), sum(blocks) + head, head, by_block, sum(keys), max(keys))

    @property
    def prefill(self) -> int:
        """Tokens of a prompt that run through the whole model at once, or of as many rows."""
        return self.prefill_after(0)

    def prefill_after(self, keys: int) -> int:
        """Return `prefill` for the next part of a prompt, after so many tokens of it."""
        return self._tokens(FORWARD, self.whole, self.keys, keys)

    def rows_at(self, keys: int) -> int:
        """Return the rows that may decode at once if each sees so many tokens."""
        if math.isinf(self.limit):
            return UNBOUNDED
        return max(1, int(self.limit / (FORWARD * (max(self.whole, 1.0) + self.keys * keys))))

    @property
    def learning(self) -> int:
        """Tokens of a micro-batch: their way back through one block, or through all if it is not taken apart."""
        if self.by_block:
            return self._tokens(BACKWARD, self.block, self.block_keys)
        return self._tokens(RECOMPUTED, self.whole, self.keys)

    @property
    def one_graph(self) -> int:
        """Tokens whose way forward and back through all blocks may be one evaluation (no gradient checkpointing)."""
        return self._tokens(BACKWARD, self.whole, self.keys)

    @property
    def head_rows(self) -> int:
        """Response tokens whose logits are computed at once."""
        return self._tokens(HEAD, self.head)

    def _tokens(self, operations: int, weights: float, keys: float = 0.0, before: int = 0) -> int:
        """The most tokens whose `operations` per weight stay below the limit; they see each other and those before."""
        if math.isinf(self.limit):
            return UNBOUNDED
        each, free = max(weights, 1.0) + keys * before, self.limit / operations
        # The root of keys n^2 + each n = free, which has no digits to lose without keys.
        return max(LEAST, int(2 * free / (each + math.sqrt(each * each + 4 * keys * free))))


UNBOUNDED_SIZES = EvaluationSizes()
