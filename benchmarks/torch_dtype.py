"""bfloat16 against float32 with torch on a CPU: `python benchmarks/torch_dtype.py`.

A random model of SmolLM2-135M's shape, another of `--shape`, or the base at `--model` saved as bfloat16, generates and
learns in both types in turn; times are seconds of the processor. Agreement is that of the same weights: log-probs of
the rollouts' tokens, and the gradient of one step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from reporting import distill_sample, machine, write_json

PROMPT, ANSWER, CONTEXT = 256, 64, 512  # tokens
SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8_192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}


# Four layers with the widths of a model of 1.7 billion parameters.
WIDE = {
    **SMOLLM2,
    "vocab_size": 32_000,
    "hidden_size": 2_048,
    "intermediate_size": 6_144,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
SHAPES = {"smollm2": SMOLLM2, "wide": WIDE}


def main() -> None:
    """Print times and agreement; write them as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2")
    parser.add_argument("--model", type=Path, help="folder of a base; default: random weights")
    parser.add_argument("--group", type=int, default=8, help="rollouts")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with TemporaryDirectory() as place:
        folder = save(Path(place), options.model, SHAPES[options.shape])
        policies = {dtype: opened(folder, dtype) for dtype in ("float32", "bfloat16")}
        seconds: dict[str, dict[str, list[float]]] = {dtype: {"generate": [], "learn": []} for dtype in policies}
        rng, exact = np.random.default_rng(0), policies["float32"]
        size = exact.model.vocab_size
        prompt, context = (rng.integers(size, size=length).astype(np.int32) for length in (PROMPT, CONTEXT))
        found = agreement(policies, prompt, context, options.group)
        for _ in range(options.rounds):
            for dtype, policy in policies.items():
                for phase, spent in step(policy, prompt, context, options.group).items():
                    seconds[dtype][phase].append(spent)
    for phase in ("generate", "learn"):
        pairs = zip(seconds["bfloat16"][phase], seconds["float32"][phase], strict=True)
        ratios = sorted(ours / theirs for ours, theirs in pairs)
        times = {dtype: statistics.median(seconds[dtype][phase]) for dtype in seconds}
        found[phase] = {**times, "ratio": statistics.median(ratios), "range": [ratios[0], ratios[-1]]}
    for name, value in found.items():
        print(f"{name:<28} {value}")
    write_json(options.out, {"machine": machine(), **found})


def save(place: Path, model: Path | None, shape: dict[str, Any]) -> Path:
    """Save the model in bfloat16; random weights are drawn as transformers does before training."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if model is None:
        whole = LlamaForCausalLM(LlamaConfig(**shape))
    else:
        whole = AutoModelForCausalLM.from_pretrained(model, local_files_only=True)
    whole.bfloat16().save_pretrained(place)
    return place


def opened(folder: Path, dtype: str) -> Any:
    """Return the policy in this type."""
    from sdpo_mlx.backends.torch.policy import TorchPolicy
    from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig

    model = ModelConfig(name="benchmark", backend="torch", device="cpu", dtype=dtype)
    return TorchPolicy(folder, model, TeacherConfig(), TrainConfig())


def rollouts(policy: Any, prompt: Any, group: int) -> list[Any]:
    """Sample a group."""
    from sdpo_mlx.backends.base import SamplingParams

    sampling = SamplingParams(ANSWER, 1.0, 1.0, frozenset())
    return [each for _, _, each in policy.generate([prompt], sampling, [list(range(group))])]


def samples_of(found: list[Any], prompt: Any, context: Any) -> list[Any]:
    """Return the samples to learn from."""
    return [distill_sample(at, prompt, context, each.ids_T, each.logps_T) for at, each in enumerate(found)]


def step(policy: Any, prompt: Any, context: Any, group: int) -> dict[str, float]:
    """Return the seconds of generating a group and of learning from it."""
    from sdpo_mlx.config import ObjectiveConfig

    begun = time.process_time()
    found = rollouts(policy, prompt, group)
    between = time.process_time()
    policy.learn(samples_of(found, prompt, context), ObjectiveConfig(), 1e-4)
    return {"generate": between - begun, "learn": time.process_time() - between}


def agreement(policies: dict[str, Any], prompt: Any, context: Any, group: int) -> dict[str, Any]:
    """Return differences of log-probs and the cosine of the gradients, on rollouts that float32 sampled."""
    from sdpo_mlx.config import ObjectiveConfig

    exact, rounded = policies["float32"], policies["bfloat16"]
    found = rollouts(exact, prompt, group)
    sequences = [np.concatenate([prompt, each.ids_T]) for each in found]
    spans = [(prompt.size, each.size) for each in sequences]
    scores = [np.concatenate([s.logps_T for s in p.score("student", sequences, spans)]) for p in (exact, rounded)]
    own = rollouts(rounded, prompt, group)
    again = [np.concatenate([prompt, each.ids_T]) for each in own]
    scored = rounded.score("student", again, [(prompt.size, each.size) for each in again])
    noise = np.concatenate([each.logps_T - score.logps_T for each, score in zip(own, scored, strict=True)])
    flat = []
    for policy in (exact, rounded):
        with policy.learning():
            grads = policy.gradient(samples_of(found, prompt, context), ObjectiveConfig(), 1.0, lambda: None).grads
            flat.append(np.concatenate([each.double().numpy().ravel() for each in grads.values()]))
    gap = np.abs(scores[1] - scores[0])
    return {
        "log_prob_mean": float(gap.mean()),
        "log_prob_max": float(gap.max()),
        "generate_against_score_mean": float(np.abs(noise).mean()),
        "gradient_cosine": float(flat[0] @ flat[1] / (np.linalg.norm(flat[0]) * np.linalg.norm(flat[1]))),
        "gradient_norm_ratio": float(np.linalg.norm(flat[1]) / np.linalg.norm(flat[0])),
    }


if __name__ == "__main__":
    sys.exit(main())
