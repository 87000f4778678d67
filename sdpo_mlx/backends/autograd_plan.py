"""What a step on torch holds in memory, from the model's dimensions: the part of `memory_plan` that differs from MLX.

The bytes that autograd keeps of a transformer block follow from its code: they are counted here tensor by tensor and
held against torch's saved tensors in a test. What lives only inside an operation, and the copies of the logits, were
measured on a CPU (`benchmarks/torch_memory.py`). Nothing was measured on a card.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdpo_mlx.backends.base import PREFILL, TORCH_CHUNK_BYTES
from sdpo_mlx.config import Config, ModelConfig
from sdpo_mlx.core import gpu
from sdpo_mlx.core.hardware import total_memory
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.layer_dimensions import Layer

if TYPE_CHECKING:
    from sdpo_mlx.backends.memory_plan import Workload

CARD_SHARE = 0.95  # of a card's free memory; the allocator's gaps and libraries take the rest
CPU_SHARE = 0.75  # of a machine's memory, as for MLX
CPU_TOKENS = 512  # of one pass on a CPU; more is hardly faster there
SAFETY = 1.05  # the plan should rather be too high than too low
BACKWARD = 1.3  # of a block's kept bytes: what its own backward pass holds at the peak
HEAD = {"top_k": 6.5, "full": 13.5, "sampled": 5.5, "sequence": 6.5}  # float32 copies of a chunk's logits
DRAWING = 31.0  # bytes per word of the vocabulary and row while a token is drawn

Phases = dict[str, dict[str, float]]


def on_card(model: ModelConfig) -> bool:
    """Return whether torch is expected to run this model on a CUDA device."""
    found = gpu.card() if model.backend == "torch" and model.device == "auto" else None
    return model.backend == "torch" and (model.device == "cuda" or (found is not None and found.vendor == "NVIDIA"))


def limit_of(cfg: Config, machine: int | None = None) -> float:
    """Return the bytes that torch may hold by default: a share of a card's free memory, or of `machine` bytes."""
    if on_card(cfg.model) and (free := machine or free_bytes()):
        return CARD_SHARE * free
    return CPU_SHARE * (machine or total_memory())


def free_bytes() -> int | None:
    """Return the free bytes of the card that torch would use; None if it finds none."""
    try:
        from sdpo_mlx.backends.torch.device import free_on_card
    except ImportError:
        return None
    return free_on_card()


def most_tokens(model: ModelConfig) -> int | None:
    """Return the tokens that one pass forwards at most; None: as many as fit."""
    return None if on_card(model) else CPU_TOKENS


def memory(shape: ModelDims, cfg: Config, work: Workload) -> tuple[dict[str, float], Phases]:
    """Return what is always held, and what each phase adds, by name."""
    adapter, full = shape.adapter_parameters(cfg.model.adapter), cfg.model.adapter.kind == "full"
    hidden = float(work.problems * work.group * work.answer * shape.width * work.bytes)
    always = {
        "weights": 0.0 if full else weight_bytes(shape, cfg.model.bits, work.bytes, work.ranks),
        "student, teacher": 8.0 * adapter,
        "optimizer": 8.0 * adapter,
    }
    return always, {
        "generate": _generation(shape, work),
        "teacher": {
            "teacher's hidden states": hidden,
            "activations": _forward(shape, work, work.context, work.packed(work.context)),
        },
        "learn": {"gradients": 8.0 * adapter, "teacher's hidden states": hidden, **_learning(shape, cfg, work)},
    }


def weight_bytes(shape: ModelDims, bits: int | None, width: int, ranks: int = 1) -> float:
    """Bytes of the weights; bitsandbytes quantizes the blocks alone, with a float32 scale for 64 numbers.

    If ranks split the blocks, one block is whole twice while it runs: as received, and in use.
    """
    inside = bits / 8 + 4 / 64 if bits else width
    largest = (
        max(each.other + sum(i * o * n for _, i, o, n in each.linears) for each in shape.layer) if shape.layer else 0
    )
    whole = shape.embedding_parameters + shape.outside + (2 * largest if ranks > 1 else 0)
    return shape.trunk_parameters * inside / ranks + whole * width


def kept_bytes(shape: ModelDims, layer: Layer, cfg: Config, bytes_: int) -> float:
    """Bytes per token that autograd keeps of one block whose attention makes no matrix of scores.

    Norms keep float32 inputs; attention queries, keys, values and its output; the gated layer three states.
    """
    width, inner, queries = shape.width, layer.inner, layer.queries
    base = 8.0 * width + 3 * bytes_ * inner + (4 + 2 * bytes_) * queries + (2 + bytes_) * layer.keys_values
    base += 4 * layer.state / layer.chunk  # of a recurrence, at the end of each chunk of tokens
    if cfg.model.adapter.kind == "full":  # norms keep their outputs too
        return base + bytes_ * (2 * width + inner) + 8 * width + 4 * queries + 2 * layer.keys_values
    rank, keys = cfg.model.adapter.rank, cfg.model.adapter.keys
    adapted = [(i, o) for name, i, o, count in layer.linears if count == 1 and (keys is None or name in keys)]
    # peft's own layers copy their input in float32 (`torch/mixed_precision.py` replaces those of plain LoRA).
    copies = bytes_ == 2 and bool(cfg.model.adapter.kind == "dora" or cfg.model.bits)
    shared = bytes_ * (2 * width + inner) if adapted else 0
    inputs = 4 * sum(i for i, _ in adapted) if copies else shared
    outputs = (4 + bytes_) * sum(o for _, o in adapted) if cfg.model.adapter.kind == "dora" else 0
    return base + inputs + outputs + (4 if copies else bytes_) * rank * len(adapted)


def _learning(shape: ModelDims, cfg: Config, work: Workload) -> dict[str, float]:
    # Computed again, a block takes no cache: prompts are shared in one row, which windows and states do not allow.
    plain = all(each.kind == "attention" and each.window is None for each in shape.layer)
    shares = work.shares and (work.keep or plain)
    rows = work.packed(work.prompt) if shares else max(1, work.micro_batch // (work.prompt + work.answer))
    rows = min(rows, work.group)
    tokens = work.prompt + rows * work.answer if shares else rows * (work.prompt + work.answer)
    again = rows * work.prompt * work.bytes if shares else 0  # the prompt's keys and values, copied for each row
    kept = {
        each: SAFETY * tokens * kept_bytes(shape, each, cfg, work.bytes) + again * each.keys_values
        for each in set(shape.layer)
    }
    largest = max(kept.values())
    positions = min(max(16, TORCH_CHUNK_BYTES // (4 * shape.vocabulary)), rows * work.answer)
    head = HEAD[work.support] * positions * shape.vocabulary * 4
    if work.keep:
        held = {"activations": sum(kept[each] for each in shape.layer)}
        return held | {"head": max(head, (BACKWARD - 1) * largest)}
    inputs = float(shape.layers * tokens * shape.width * work.bytes)
    larger = {"head": head} if head > BACKWARD * largest else {"activations": BACKWARD * largest}
    return {"blocks' inputs": inputs, **larger}


def _generation(shape: ModelDims, work: Workload) -> dict[str, float]:
    rows, whole = work.rows, work.prompt + work.answer
    one_layer = 2.0 * rows * whole * shape.kv_width  # it is copied when a token is added
    held = _keys(shape, rows * whole + work.prompt) + one_layer
    prefill = _forward(shape, work, min(work.prompt, PREFILL), 0)
    return {
        "keys and values": work.bytes * held + 2 * rows * shape.state * 4.0,
        "logits, prefill": max(DRAWING * rows * shape.vocabulary, prefill),
    }


def _forward(shape: ModelDims, work: Workload, prompt: int, rows: int) -> float:
    """Bytes of the largest block without a gradient, and of the shared prompt's keys and values."""
    shared = work.shares and rows > 0
    tokens = max(prompt, rows * work.answer) if work.shares else max(rows, 1) * (prompt + work.answer * (rows > 0))
    largest = max((6 * work.bytes + 8) * each.inner + 12 * (shape.width + each.queries) for each in shape.layer)
    return SAFETY * tokens * largest + (work.bytes * _keys(shape, prompt + rows * prompt) if shared else 0.0)


def _keys(shape: ModelDims, tokens: int) -> float:
    """Numbers in the keys and values of tokens; layers with a window keep all of them (`torch/kv_cache.py`)."""
    return float(tokens * sum(each.keys_values for each in shape.layer))
