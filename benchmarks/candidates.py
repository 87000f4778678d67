"""Measure the cost of `log.candidates`: `python benchmarks/candidates.py --out docs/figures/candidates.json`.

Three training runs alternate step by step in one process: `log.candidates` 1 (the default: the most likely tokens of
student and self-teacher for one in 64 rollouts), `log.candidates` 0, and `log.samples` 0 (no rollouts stored). The
models are the embedded one and a random Qwen3 of 2 layers with 151,936 tokens. Seconds are processor seconds, so that
other work on the machine counts less; medians of the steps after the first, ratios of neighbouring steps, bytes of a
step's rollout file. With small groups few steps compute candidates. `share` is therefore computed from the cost of one
computation, measured in every step, over the time of all steps between two of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memory import qwen
from reporting import machine, write_json

from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models import resolve as models
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.rl.diagnostics import ROLLOUTS_PER_LOOK, candidates, due
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.optimization import learn
from sdpo_mlx.rl.rollouts import Sampler, sample
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training.session import StepClock, TrainingSession

COMMON = ("task.name=tiny", "train.eval_every=0", "train.patience=0", "train.save_every=1000")
RANDOM = ("task.feedback=full", "rollout.max_tokens=12", "rollout.group_size=8", "rollout.problems_per_step=1")
SIDES: Mapping[str, tuple[str, ...]] = {
    "candidates 1": ("log.candidates=1",),
    "candidates 0": ("log.candidates=0",),
    "samples 0": ("log.samples=0",),
}


@dataclass(frozen=True)
class Case:
    """Settings of a run; `shape` is the configuration of a random model."""

    settings: tuple[str, ...]
    shape: Mapping[str, Any] | None = None


CASES: Mapping[str, Case] = {
    "embedded, 8 problems x 8 rollouts": Case(("model.name=tiny",)),
    "random Qwen3, 151,936 tokens, 8 rollouts of 12": Case(RANDOM, qwen(2, 128, 2, 1, 384, 151_936)),
}


def main() -> None:
    """Measure every case; print it and write it as JSON to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=[], help="cases whose name contains one of these words")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for name, case in CASES.items():
        if options.only and not any(word in name for word in options.only):
            continue
        rows.append({"case": name, **measured(case, options.steps)})
        print(json.dumps(rows[-1]), flush=True)
        write_json(options.out, {"machine": machine(), "rows": rows})


def measured(case: Case, steps: int) -> dict[str, Any]:
    """Return processor seconds and bytes per step of every side, ratios, and the share of computing candidates."""
    with TemporaryDirectory(prefix="sdpo-candidates-") as place:
        settings = (*COMMON, f"train.steps={steps}", *case.settings)
        if case.shape is not None:
            settings = (*settings, f"model.name={random_model(Path(place, 'model'), case.shape)}")
        sides = {name: stepping(settings, extra, Path(place, name)) for name, extra in SIDES.items()}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for turn in range(steps):
            # The order alternates, so that no side always follows the same one
            for name in list(sides)[:: 1 if turn % 2 else -1]:
                seconds[name].append(next(sides[name]))
        sizes = {name: size_of(Path(place, name), steps) for name in sides}
    steps_only = {name: [whole for whole, _ in values[1:]] for name, values in seconds.items()}
    first, *others = steps_only
    look = statistics.median(looked for _, looked in seconds[first][1:])
    rollout = resolve(None, settings, {}).config.rollout
    rollouts = rollout.problems_per_step * rollout.group_size
    every = next(step for step in range(1, ROLLOUTS_PER_LOOK + 1) if due(step, 1, rollouts))
    return {
        "look": look,
        "every": every,
        "share": look / (every * statistics.median(steps_only["candidates 0"])),
        "seconds": {name: statistics.median(values) for name, values in steps_only.items()},
        "ratios": {name: spread(steps_only[first], steps_only[name]) for name in others},
        "bytes a step": sizes,
    }


def spread(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Return median and range of the ratios of neighbouring steps."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return {"ratio": statistics.median(ratios), "low": ratios[0], "high": ratios[-1]}


def stepping(settings: Sequence[str], extra: Sequence[str], folder: Path) -> Iterator[tuple[float, float]]:
    """Make one step per `next`, without scores and checkpoints; yield its seconds and those of `candidates`."""
    cfg = resolve(None, [*settings, *extra], {}).config
    setup = build_components(cfg)
    sampler = Sampler(setup.task.problems("train"), cfg.rollout.problems_per_step, cfg.train.seed)
    length = setup.policy.info.context_length
    with RunFolder.open(folder) as place:
        run = TrainingSession(setup, place, lambda *_: None)
        state = run.resume()
        while True:
            step, begun, spent = state.step, time.perf_counter(), time.process_time()
            problems = sampler.batch(step)
            sampled = sample(setup.policy, setup.task, setup.chat, problems, setup.sampling, run.seeds(step, problems))
            clock, seed = StepClock(begun, time.perf_counter()), derive(cfg.train.seed, step)
            batch = distillation_batch(
                sampled.groups, setup.chat, cfg.teacher, cfg.objective, context_length=length, seed=seed
            )
            run.record_diagnostics(step, sampled.groups, batch.samples)
            learned = learn(setup.policy, batch.samples, cfg, step, lambda: False)
            state = run.record_step(state, sampled, batch, learned, clock)
            spent, looking = time.process_time() - spent, time.process_time()
            candidates(setup.policy, setup.chat, batch.samples, cfg.log.candidates)
            yield spent, time.process_time() - looking


def size_of(run: Path, steps: int) -> float:
    """Return the bytes of rollout files per step."""
    return sum(file.stat().st_size for file in (run / "rollouts").glob("step-*.jsonl.gz")) / steps


def random_model(folder: Path, shape: Mapping[str, Any]) -> Path:
    """Write a model of random weights with the embedded model's tokenizer (640 tokens)."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
    from small_models import write_config

    write_config(folder, dict(shape))
    tiny = models.resolve("tiny").path
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / name, folder / name)
    return folder


if __name__ == "__main__":
    main()
