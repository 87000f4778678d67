"""Estimates the memory of a step by phase, and chooses the settings that make it fit; pure arithmetic.

Counted are weights, adapters (student, teacher, AdamW's two moments), keys and values, what runs through a block, and
chunks of the head. The coefficients of activations and of the head are those of MLX, measured by
`benchmarks/memory.py` on small models of several shapes and kinds of layers (docs/performance.md); those of torch are
in `autograd_plan.py`.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from sdpo_mlx.backends import autograd_plan
from sdpo_mlx.backends.base import CHUNK_BYTES, PREFILL
from sdpo_mlx.backends.command_size import EvaluationSizes
from sdpo_mlx.config import Config, ModelConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.hardware import amount_of, total_memory
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.layer_dimensions import Layer

KV_STEP = 256  # tokens by which mlx-lm's caches grow
SAFETY = 1.05  # activations: the plan should rather be too high than too low
USABLE = 0.75  # of a machine's memory: what Metal recommends; the rest is for the system
SMALLEST = 256  # tokens of a micro-batch below which no memory is saved
MICRO_BATCHES = (16_384, 8_192, 4_096, 2_048, 1_024, 512, SMALLEST)
CONCURRENCIES = (64, 32, 16, 8)
CARD_CONCURRENCIES = (256, 128, *CONCURRENCIES)  # decoding waits for launches and weights there, whatever the rows


class Activations(NamedTuple):
    """Numbers per token that one block holds at its peak, as multiples of each dimension and of attention scores."""

    width: float
    inner: float
    queries: float
    keys: float
    scores: float
    mixed: float  # of what enters a recurrence
    states: float  # recurrent states, one per chunk of tokens
    scan: float  # of the token pairs in the chunks of a Mamba 2 layer
    slices: tuple[float, float] = (0.0, 0.0)  # of what enters a loop, per token pair and per token: see `_slices`


class Coefficients(NamedTuple):
    """Of one kind of pass: those of most layers, and those of other kinds of layers."""

    most: Activations
    own: Mapping[str, Activations]

    def of(self, layer: Layer) -> Activations:
        """Return those of this layer's kind."""
        return self.own.get(layer.kind, self.most)


_FORWARD = Activations(3.1, 3.5, 3.6, 0.0, 0.9, 3.6, 1.0, 3.5)
_BACKWARD = Activations(6.8, 13.4, 3.7, 0.0, 2.1, 6.0, 1.0, 23.0)
_KEPT = Activations(18.5, 9.6, 15.5, 3.8, 2.9, 24.0, 1.0, 3.0)
FORWARD = Coefficients(  # without a gradient; on a latent cache, scores of positions are held besides
    _FORWARD,
    {"loop": _FORWARD._replace(states=0.75), "latent cache": _FORWARD._replace(scores=1.9)},
)
BACKWARD = Coefficients(  # one block's vjp from its input
    _BACKWARD,
    {
        "loop": _BACKWARD._replace(states=3.4, slices=(0.225, 27.0)),
        "latent cache": _BACKWARD._replace(scores=5.4),
        "conv": _BACKWARD._replace(mixed=8.0),
    },
)
KEPT = Coefficients(  # each block, if none runs twice
    _KEPT,
    {
        "loop": _KEPT._replace(mixed=0.0, states=5.3),
        "latent": _KEPT._replace(scores=1.0),
        "latent cache": _KEPT._replace(scores=1.0),
        "conv": _KEPT._replace(mixed=4.0),
    },
)
HEAD = {"top_k": 15.5, "full": 24.0, "sampled": 11.0, "sequence": 11.0}  # float32 copies of a chunk's logits
HEAD_KEPT = 1.6  # times as many inside one graph


@dataclass(frozen=True)
class Workload:
    """What a step forwards: tokens of a prompt, a rollout and a teacher's context, and how much runs at once."""

    prompt: int
    answer: int
    context: int
    group: int
    problems: int
    micro_batch: int
    concurrency: int
    keep: bool
    support: str
    bytes: int  # of an activation
    shares: bool = True  # whether a group's prompt runs once, or once with each rollout
    ranks: int = 1  # over which the blocks of the base are split

    @property
    def rows(self) -> int:
        """Rollouts that are generated at once: whole groups, at least one."""
        return min(max(self.concurrency // self.group, 1), self.problems) * self.group

    def packed(self, prompt: int) -> int:
        """Rollouts of a group that a micro-batch holds after a prompt of this length, at least one."""
        if not self.shares:
            return min(self.group, max(1, self.micro_batch // (prompt + self.answer)))
        return min(self.group, max(1, (self.micro_batch - prompt) // self.answer))

    def tokens(self, prompt: int, rows: int) -> int:
        """Tokens that are forwarded for so many rollouts after one prompt."""
        return prompt * (1 if self.shares else rows) + rows * self.answer


@dataclass(frozen=True)
class Memory:
    """Bytes: what is always held, by name, and what each phase adds at its peak."""

    always: dict[str, float]
    phases: dict[str, dict[str, float]]

    @property
    def base(self) -> float:
        """What every phase holds."""
        return sum(self.always.values())

    def peak(self, phase: str) -> float:
        """The total of a phase."""
        return self.base + sum(self.phases[phase].values())

    @property
    def highest(self) -> float:
        """The largest peak."""
        return max(map(self.peak, self.phases))

    @property
    def dominant(self) -> str:
        """The largest single item of the phase with the highest peak."""
        items = {**self.always, **self.phases[max(self.phases, key=self.peak)]}
        return max(items, key=lambda name: items[name])


def number_bytes(model: ModelConfig) -> int:
    """Return the bytes of a number in the model: 4 on a CPU, whose 16-bit products are slow; otherwise 2."""
    if model.dtype != "auto":
        return 4 if model.dtype == "float32" else 2
    if model.backend == "torch" and model.device != "mps":
        return 2 if autograd_plan.on_card(model) else 4
    return 2 if platform.system() == "Darwin" else 4


def work_of(cfg: Config, prompt: int, context: int, bytes_: int, *, shares: bool = True, ranks: int = 1) -> Workload:
    """Return the step of a configuration with prompts and contexts of these lengths, before settings are chosen."""
    return Workload(
        prompt=prompt,
        answer=cfg.rollout.max_tokens,
        context=min(context, cfg.teacher.max_context_tokens),
        group=cfg.rollout.group_size,
        problems=cfg.rollout.problems_per_step,
        micro_batch=cfg.train.micro_batch_tokens or MICRO_BATCHES[0],
        concurrency=cfg.rollout.concurrency or CONCURRENCIES[0],
        keep=cfg.train.grad_checkpoint is False,
        support=cfg.objective.support if cfg.objective.top_k else "full",
        bytes=bytes_,
        shares=shares and ranks == 1,
        ranks=ranks,
    )


def memory(shape: ModelDims, cfg: Config, work: Workload) -> Memory:
    """Return what the step holds with these settings."""
    if cfg.model.backend == "torch":
        return Memory(*autograd_plan.memory(shape, cfg, work))
    adapter = shape.adapter_parameters(cfg.model.adapter)
    full = cfg.model.adapter.kind == "full"
    hidden = work.problems * work.group * work.answer * shape.width * work.bytes
    always = {
        "weights": 0.0 if full else shape.weight_bytes(work.bytes),
        "student, teacher": 8.0 * adapter,
        "optimizer": 8.0 * adapter,
    }
    return Memory(
        always,
        {
            "generate": _generation(shape, work),
            "teacher": {
                "teacher's hidden states": hidden,
                "activations": max(_pass(shape, FORWARD, work, work.context)),
            },
            "learn": {"gradients": 12.0 * adapter, "teacher's hidden states": hidden, **_learning(shape, work)},
        },
    )


def _generation(shape: ModelDims, work: Workload) -> dict[str, float]:
    rows, whole = work.rows, work.prompt + _up(work.answer, KV_STEP)
    held = rows * shape.cached(whole) + shape.cached(_up(work.prompt, KV_STEP))
    one_layer = 1.2 * rows * (work.prompt + work.answer) * shape.kv_width
    piece = min(work.prompt, PREFILL)
    prefill = max(
        _activations(each, shape.width, FORWARD.of(each), piece, piece * work.prompt, work.bytes)
        + _recurrence(each, piece)
        for each in shape.layer
    )
    return {
        "keys and values": work.bytes * (held + one_layer) + 2 * rows * shape.state * 4.0,
        "logits, prefill": max(5.5 * rows * shape.vocabulary * 4, prefill),
    }


def _recurrence(layer: Layer, tokens: int) -> float:
    """Bytes of a prefill's recurrence: for gated delta a kernel on Metal, elsewhere a loop over tokens."""
    if layer.kind in ("conv", "ssm"):
        return 2.0 * _scan(layer, FORWARD.of(layer), tokens)
    on_metal = platform.system() == "Darwin" and layer.kind != "loop"
    return 0.0 if on_metal else 4.0 * FORWARD.of(layer).states * tokens * layer.state


def _learning(shape: ModelDims, work: Workload) -> dict[str, float]:
    tokens = work.tokens(work.prompt, work.packed(work.prompt))
    rows = min(max(16, CHUNK_BYTES // (4 * shape.vocabulary)), min(work.group, tokens) * work.answer)
    head = HEAD[work.support] * rows * shape.vocabulary * 4
    if work.keep:
        return {"activations": sum(_pass(shape, KEPT, work, work.prompt)), "head": HEAD_KEPT * head}
    inputs = shape.layers * tokens * shape.width * work.bytes
    layer = max(_pass(shape, BACKWARD, work, work.prompt))
    larger = {"head": head} if head > layer else {"activations": layer}
    return {"blocks' inputs": float(inputs), **larger}


def _pass(shape: ModelDims, found: Coefficients, work: Workload, prompt: int) -> list[float]:
    """Bytes that each layer holds in the largest pass: one group's prompt, and the answers that fit."""
    rows, whole = work.packed(prompt), prompt + work.answer
    tokens = work.tokens(prompt, rows)
    pairs = rows * work.answer * whole + min(prompt, PREFILL) * prompt if work.shares else rows * whole * whole
    stretches = [(prompt, 1), (work.answer, rows)] if work.shares else [(whole, rows)]

    def layer(each: Layer) -> float:
        held = found.of(each)
        states = sum(math.ceil(length / each.chunk) * count for length, count in stretches)
        states_held = 4.0 * held.states * each.state * states
        states_held += sum(count * _scan(each, held, length) for length, count in stretches)
        states_held = max(states_held, *(_slices(each, held, length) for length, _ in stretches))
        return _activations(each, shape.width, held, tokens, pairs, work.bytes) + states_held

    held_by = {each: layer(each) for each in set(shape.layer)}
    return [held_by[each] for each in shape.layer]


def _slices(layer: Layer, held: Activations, length: int) -> float:
    """Bytes of a loop's backward pass: the gradient of the slice of one token is as long as the whole text."""
    a_pair, a_token = held.slices
    return 4.0 * layer.queries * length * (a_pair * length + a_token)


def _scan(layer: Layer, held: Activations, length: int) -> float:
    """Bytes of the token pairs in the chunks of a Mamba 2 layer."""
    return 4.0 * held.scan * layer.heads * length * min(length, layer.chunk) if layer.kind == "ssm" else 0.0


def _activations(layer: Layer, width: int, held: Activations, tokens: int, pairs: float, bytes_: int) -> float:
    a_token = held.width * width + held.inner * layer.inner + held.keys * layer.keys_values / 2
    a_token += (held.mixed if layer.state else held.queries) * layer.queries
    scores = 0.0 if layer.kind == "ssm" else held.scores * layer.heads * pairs
    return SAFETY * bytes_ * (tokens * a_token + scores)


def _up(tokens: int, step: int) -> int:
    return math.ceil(tokens / step) * step


def choose(shape: ModelDims, cfg: Config, work: Workload, limit: float) -> Workload:
    """Return the fastest settings that fit; only what the configuration leaves open is chosen.

    If nothing fits, return the smallest.
    """

    def fits(each: Workload, *phases: str) -> bool:
        return all(memory(shape, cfg, each).peak(phase) <= limit for phase in phases)

    if cfg.rollout.concurrency is None:
        on_card = autograd_plan.on_card(cfg.model)
        options = [replace(work, concurrency=n) for n in (CARD_CONCURRENCIES if on_card else CONCURRENCIES)]
        work = next((each for each in options if fits(each, "generate")), options[-1])
    keeps = {None: (True, False), True: (False,), False: (True,)}[cfg.train.grad_checkpoint]
    budgets: tuple[int, ...] = (
        MICRO_BATCHES if cfg.train.micro_batch_tokens is None else (cfg.train.micro_batch_tokens,)
    )
    if cfg.model.backend == "torch" and (most := autograd_plan.most_tokens(cfg.model)):
        budgets = tuple(each for each in budgets if each <= most) or budgets
    options = [replace(work, keep=keep, micro_batch=budget) for keep in keeps for budget in budgets]
    # One graph pays off only with whole groups: running a prompt again for each part costs more than it saves.
    whole = min(work.group * work.answer + work.prompt, MICRO_BATCHES[-2])
    options = [each for each in options if not each.keep or each.micro_batch >= whole or None not in keeps] or options
    return next((each for each in options if fits(each, "teacher", "learn")), options[-1])


def limit_of(cfg: Config, machine: int | None = None, *, mac: bool | None = None) -> float:
    """Return the bytes that a run may hold; on a Mac no more than `memory.limit`, of what Metal recommends.

    `machine` are the bytes of another machine's memory, `mac` whether that one is a Mac (None: as this one is).
    """
    if cfg.train.memory_gb:
        return cfg.train.memory_gb * 2**30
    if cfg.model.backend == "torch":
        return autograd_plan.limit_of(cfg, machine)
    usable = USABLE * (machine or total_memory())
    mac = platform.system() == "Darwin" if mac is None else mac
    return min(usable, amount_of(cfg.memory.limit, int(usable))) if mac else usable


def bounded(work: Workload, sizes: EvaluationSizes) -> Workload:
    """Return the step with micro-batches and graphs that one evaluation may cover, as the backend runs it."""
    micro_batch = min(work.micro_batch, sizes.learning)
    return replace(work, micro_batch=micro_batch, keep=work.keep and micro_batch <= sizes.one_graph)


def fitting(shape: ModelDims, cfg: Config, work: Workload, limit: float) -> Workload:
    """Return `choose`, or raise ConfigError with the changes that would make it fit."""
    chosen = choose(shape, cfg, work, limit)
    needed = memory(shape, cfg, chosen).highest
    if needed <= limit:
        return chosen
    ways = [flag for flag, peak in remedies(shape, cfg, work, limit) if peak < needed]
    raise ConfigError(
        f"a step needs {needed / 2**30:.1f} GB, but the limit is {limit / 2**30:.1f} GB",
        where="train.memory_gb",
        fix=f"try {' or '.join(ways)}; `sdpo plan` lists what needs it",
    )


def settled(cfg: Config, work: Workload) -> Config:
    """Return the configuration with what it leaves open filled in."""
    train, rollout = cfg.train, cfg.rollout
    keep = work.keep if train.grad_checkpoint is None else not train.grad_checkpoint
    filled = {"micro_batch_tokens": train.micro_batch_tokens or work.micro_batch, "grad_checkpoint": not keep}
    return cfg.model_copy(
        update={
            "train": train.model_copy(update=filled),
            "rollout": rollout.model_copy(update={"concurrency": rollout.concurrency or work.concurrency}),
        }
    )


def remedies(shape: ModelDims, cfg: Config, work: Workload, limit: float) -> list[tuple[str, float]]:
    """Return the three changes that save most, as options, each with its peak in bytes."""
    answer, group = max(16, work.answer // 2), max(2, work.group // 2)
    problems, context = max(1, work.problems // 2), max(256, work.context // 2)
    rank = max(1, cfg.model.adapter.rank // 4)
    ways = [
        (f"--max-tokens {answer}", shape, cfg, replace(work, answer=answer)),
        (f"--group-size {group}", shape, cfg, replace(work, group=group)),
        (f"--set rollout.problems_per_step={problems}", shape, cfg, replace(work, problems=problems)),
        (f"--set teacher.max_context_tokens={context}", shape, cfg, replace(work, context=context)),
        (f"--set model.adapter.rank={rank}", shape, _adapted(cfg, rank=rank), work),
    ]
    if cfg.model.adapter.kind == "full":
        ways.append(("--set model.adapter.kind=lora", shape, _adapted(cfg, kind="lora"), work))
    if cfg.model.backend == "torch" and not cfg.model.bits:
        ways.append(("--set model.bits=4", shape, _changed(cfg, bits=4), work))
    elif cfg.model.backend != "torch" and not shape.bits:
        ways.append(("--model with 4-bit weights", shape.quantized(4, 64), cfg, work))
    found = [(flag, memory(s, c, choose(s, c, w, limit)).highest) for flag, s, c, w in ways]
    return sorted(found, key=lambda each: each[1])[:3]


def _adapted(cfg: Config, **changes: object) -> Config:
    return _changed(cfg, adapter=cfg.model.adapter.model_copy(update=changes))


def _changed(cfg: Config, **changes: object) -> Config:
    return cfg.model_copy(update={"model": cfg.model.model_copy(update=changes)})
