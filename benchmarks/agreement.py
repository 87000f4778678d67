"""Measure how closely the two backends agree with each other and with the float64 formulas; print the worst values.

`python benchmarks/agreement.py` needs the extra `torch`; `SDPO_TEST_DEVICE=cuda` runs torch on a GPU. The cases are
those of `tests/numerics`: small random models of four architectures, every loss, teacher and aggregation; then models
in the published layout of nine more (`--architectures`: only those), one SDPO step each.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [str(TESTS / "support")]

from backend_pairs import disagreement, make_pair, published_pair, torch_gradient  # noqa: E402
from loss_cases import AGGREGATIONS, CASES, SUPPORTS, TEACHERS  # noqa: E402
from published_models import DIFFERENT, PUBLISHED  # noqa: E402
from small_policies import expected, found, make_samples, term_size  # noqa: E402

from sdpo_mlx.backends.base import SamplingParams  # noqa: E402
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig  # noqa: E402

ARCHITECTURES = ("qwen3", "llama", "gemma3", "smollm2")
Cases = list[tuple[Any, list[Any], ObjectiveConfig, float]]


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", action="store_true", help="only the table of architectures")
    only = parser.parse_args().architectures
    device = os.environ.get("SDPO_TEST_DEVICE", "cpu")
    print(f"{platform.system()} {platform.machine()}, MLX on its default device, torch on {device}, float32\n")
    if not only:
        _print_losses()
    _print_architectures()


def _print_architectures() -> None:
    print("| architecture | log-probs | loss, relative | 1 - cosine of the gradients | greedy outputs that differ |")
    print("|---|---|---|---|---|")
    for name in (*PUBLISHED, *DIFFERENT):
        found = disagreement(*published_pair(name))
        print(f"| {name} | {found.log_probs:.1e} | {found.loss:.1e} | {found.cosine:.1e} | {found.greedy} of 3 |")


def _print_losses() -> None:
    pairs = {name: make_pair(name) for name in ARCHITECTURES}
    cases = [
        (pair, teacher, make_samples(3, settings["kind"]), ObjectiveConfig(**settings), 0.8)
        for pair in [pairs["qwen3"]]
        for settings, teacher in (case.values for case in CASES)
    ]
    for name, number in ((name, number) for name in ARCHITECTURES for number in (1, 4, 6, 10)):
        objective = ObjectiveConfig(kind="hybrid", aggregation=AGGREGATIONS[number % 3], **SUPPORTS[number])
        cases.append((pairs[name], TEACHERS[number % 4], make_samples(5, "hybrid"), objective, 1.0))
    figures = [_of_step(*case) for case in cases]
    steps = [_ten_steps(kind) for kind in ("lora", "dora", "full")]
    rows = [
        ("loss, MLX to formulas", len(figures), max(f["mlx"] for f in figures), "1e-5"),
        ("loss, torch to formulas", len(figures), max(f["torch"] for f in figures), "1e-5"),
        ("gradient, MLX to formulas, relative", len(figures), max(f["mlx gradient"] for f in figures), "1e-4"),
        ("gradient, torch to formulas, relative", len(figures), max(f["torch gradient"] for f in figures), "1e-4"),
        ("1 - cosine of the gradients, torch to MLX", len(figures), max(f["cosine"] for f in figures), "1e-4"),
        ("log-probs of given tokens, torch to MLX", 4, max(map(_scores, pairs.values())), "2e-5"),
        ("greedy outputs that differ, of 20", 4, sum(map(_greedy, pairs.values())), "0"),
        ("adapter after ten steps, relative (lora, dora, full)", 3, max(a for a, _ in steps), "1e-3"),
        ("teacher after ten updates, relative", 3, max(b for _, b in steps), "1e-3"),
    ]
    print("| | cases | worst | bound |\n|---|---|---|---|")
    for label, count, worst, bound in rows:
        print(f"| {label} | {count} | {worst:.1e} | {bound} |")
    print()


def _of_step(pair: Any, teacher: str, samples: list[Any], objective: ObjectiveConfig, heat: float) -> dict[str, float]:
    for policy in pair:
        policy.teacher_cfg = policy.teacher_cfg.model_copy(update={"kind": teacher})
    loss, grads = expected(pair[0], samples, objective, heat)
    ours = found(pair[0], samples, objective, heat)
    torch_loss, torch_grads = torch_gradient(pair[1], samples, objective, heat)
    # Terms of opposite sign may cancel: rounding is relative to their size, not to their sum
    size = max(abs(loss), term_size(pair[0], samples, objective, heat))
    reference, mlx, other = (_flat(each) for each in (grads, ours.grads, torch_grads))
    return {
        "mlx": abs(ours.loss - loss) / size,
        "torch": abs(torch_loss - loss) / size,
        "mlx gradient": _distance(mlx, reference),
        "torch gradient": _distance(other, reference),
        "cosine": float(1 - mlx @ other / (np.linalg.norm(mlx) * np.linalg.norm(other))),
    }


def _scores(pair: Any) -> float:
    ids = np.arange(30, dtype=np.int32) % 50 + 4
    return max(
        float(np.abs(ours.logps_T - theirs.logps_T).max())
        for role in ("student", "teacher")
        for ours, theirs in zip(*(p.score(role, [ids, ids[3:20]], [(1, 30), (9, 17)]) for p in pair), strict=True)
    )


def _greedy(pair: Any) -> int:
    ids = np.arange(30, dtype=np.int32) % 50 + 4
    prompts = [ids[: 3 + n] for n in range(5)]
    sampling = SamplingParams(16, 0.0, 1.0, frozenset({3}))
    outputs = [{at: g.ids_T for at, _, g in p.generate(prompts, sampling, [[1]] * 5)} for p in pair]
    return sum(not np.array_equal(outputs[0][at], outputs[1][at]) for at in outputs[0])


def _ten_steps(kind: str) -> tuple[float, float]:
    pair = make_pair("qwen3", kind=kind, learning_rate=1e-3, weight_decay=0.01)
    for step in range(10):
        for policy in pair:
            policy.learn(make_samples(step, "hybrid"), ObjectiveConfig(kind="hybrid", support="full"), 1e-3)
            policy.update_teacher(TeacherConfig(kind="ema", update_rate=0.1))
    ours, theirs = (policy.state() for policy in pair)
    return tuple(_distance(_flat(theirs[part]), _flat(ours[part])) for part in ("student", "teacher"))  # type: ignore


def _flat(arrays: Any) -> Any:
    return np.concatenate([np.asarray(arrays[name], np.float64).reshape(-1) for name in sorted(arrays)])


def _distance(ours: Any, theirs: Any) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


if __name__ == "__main__":
    main()
