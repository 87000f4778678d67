"""Compare the plan for torch with what torch holds on a CPU: `python benchmarks/torch_memory.py`.

Kept bytes are those of the tensors that autograd saves of one block (`torch.autograd.graph.saved_tensors_hooks`), by
the differences of two depths and two lengths. Peaks are those of all living tensors in each phase of a step, counted
operation by operation, beside the plan's; they bound no library's workspace, and no card was measured.
"""

from __future__ import annotations

import sys
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from reporting import distill_sample

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from sdpo_mlx.config import Config, ModelConfig, TeacherConfig

TOKENS = 64
PHASES = ("generate", "teacher", "learn")


def shape(kind: str, width: int, inner: int, heads: int, keys: int, head: int, **more: Any) -> dict[str, Any]:
    """Return a configuration of transformers."""
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_attention_heads": heads, "head_dim": head}
    return {"model_type": kind, "num_key_value_heads": keys, "num_hidden_layers": 4, "vocab_size": 512, **sizes, **more}


# A tenth of SmolLM2-135M and of Qwen3-4B, and one with as many key heads as query heads.
SHAPES = {
    "smollm2": shape("llama", 144, 384, 9, 3, 16),
    "qwen3": shape("qwen3", 256, 972, 4, 1, 128),
    "all heads": shape("llama", 64, 192, 4, 4, 16),
}


def built(config: dict[str, Any], dtype: str) -> Any:
    """Return a random model of this configuration."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = config["model_type"]
    rest = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **rest), dtype=getattr(torch, dtype)).eval()


def saved_bytes(config: dict[str, Any], model: ModelConfig) -> float:
    """Return the bytes per token that autograd keeps of one block."""
    few, many = (
        _saved({**config, "num_hidden_layers": 2}, model, tokens)
        - _saved({**config, "num_hidden_layers": 1}, model, tokens)
        for tokens in (TOKENS, 2 * TOKENS)
    )
    return (many - few) / TOKENS  # without what a weight's norm keeps, whatever the text


def _saved(config: dict[str, Any], model: ModelConfig, tokens: int) -> int:
    from sdpo_mlx.backends.torch import adapter  # before torch, whose settings it makes
    import torch  # isort: skip

    whole = built(config, model.dtype)
    adapter.attach(whole, model.adapter, 0, config)
    weights = {each.untyped_storage().data_ptr() for each in whole.parameters()}
    found: dict[int, int] = {}
    alive: list[Any] = []  # so that no address is used twice

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    ids = torch.arange(tokens)[None] % 61
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        whole.get_decoder()(input_ids=ids, use_cache=False)
    return sum(found.values())


def peaks(config: dict[str, Any], cfg: Config, prompt: int) -> dict[str, tuple[float, float]]:
    """Return planned and measured bytes of each phase of a step on one group."""
    from sdpo_mlx.backends.memory_plan import memory, number_bytes, work_of
    from sdpo_mlx.models.dimensions import ModelDims

    work = work_of(cfg, prompt, 2 * prompt, number_bytes(cfg.model))
    planned = memory(ModelDims.of(config, "small"), cfg, work)
    measured = _measured(config, cfg, prompt)
    return {phase: (planned.peak(phase), measured[phase]) for phase in PHASES}


def _measured(config: dict[str, Any], cfg: Config, prompt: int) -> dict[str, float]:
    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    answer, group = cfg.rollout.max_tokens, cfg.rollout.group_size
    with TemporaryDirectory() as folder:
        built(config, cfg.model.dtype).save_pretrained(folder)
        policy = TorchPolicy(Path(folder), cfg.model, TeacherConfig(), cfg.train)
    rng = np.random.default_rng(0)
    words = [rng.integers(config["vocab_size"], size=size).astype(np.int32) for size in (prompt, 2 * prompt)]
    logps = np.full(answer, -3.0, np.float32)
    samples = [
        distill_sample(i, *words, rng.integers(config["vocab_size"], size=answer).astype(np.int32), logps)
        for i in range(group)
    ]
    found: dict[str, float] = {}
    living = _living()
    now = ""

    def begin(phase: str) -> None:
        nonlocal now
        found[now], now, living.peak = living.peak, phase, living.bytes

    policy.begin_phase = begin  # type: ignore[method-assign]
    with living:
        list(policy.generate(words[:1], SamplingParams(answer, 1.0, 1.0, frozenset(), group), [list(range(group))]))
        policy.learn(samples, cfg.objective, 1e-5)
        begin("end")
    return found


def _living() -> Any:
    """Return a mode that counts the bytes of all tensors that operations have made and nothing has freed."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Living(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.bytes = self.peak = 0
            self.seen: set[int] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = function(*args, **(kwargs or {}))
            for storage in (each.untyped_storage() for each in tree_leaves(made) if isinstance(each, torch.Tensor)):
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.bytes += storage.nbytes()
                    weakref.finalize(storage, self.freed, storage._cdata, storage.nbytes())
            self.peak = max(self.peak, self.bytes)
            return made

        def freed(self, key: int, size: int) -> None:
            self.seen.discard(key)
            self.bytes -= size

    return Living()


def main() -> None:
    """Print both tables."""
    from sdpo_mlx.backends.autograd_plan import kept_bytes
    from sdpo_mlx.models.dimensions import ModelDims

    for name, found in SHAPES.items():
        for dtype, width in (("bfloat16", 2), ("float32", 4)):
            cfg = Config.model_validate({"model": {"backend": "torch", "device": "cuda", "dtype": dtype}})
            dims = ModelDims.of(found, name)
            planned, saved = kept_bytes(dims, dims.layer[0], cfg, width), saved_bytes(found, cfg.model)
            print(f"{name:10} {dtype:9} kept {planned:8,.0f} planned, {saved:8,.0f} saved bytes a token and block")
    for recompute in (False, True):
        for words in (512, 8_192):
            model = {"backend": "torch", "device": "cpu", "dtype": "bfloat16"}
            train = {"grad_checkpoint": recompute, "micro_batch_tokens": 16_384}
            rollout = {"problems_per_step": 1, "group_size": 4, "max_tokens": 64}
            cfg = Config.model_validate({"model": model, "train": train, "rollout": rollout})
            for phase, (planned, held) in peaks({**SHAPES["qwen3"], "vocab_size": words}, cfg, 64).items():
                how = "recomputed" if recompute else "kept"
                print(
                    f"{words:5} words {how:10} {phase:8} {planned / 2**20:6.1f} planned, {held / 2**20:6.1f} MiB held"
                )


if __name__ == "__main__":
    main()
