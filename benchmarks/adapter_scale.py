"""Score and divergence of a trained LoRA that is multiplied by less than 1, on the embedded task.

OMP_NUM_THREADS=1 python benchmarks/adapter_scale.py --seeds 3

Each seed trains 300 steps, the long run of docs/results.md with the default settings; its last adapter is evaluated.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import fmean

from experiments import LONG
from reporting import machine, markdown_table

from sdpo_mlx import trainer
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.evaluation.evaluate import evaluate
from sdpo_mlx.evaluation.forgetting import divergence_from, reference
from sdpo_mlx.evaluation.spec import eval_spec
from sdpo_mlx.rl.components import build_components
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.training.session import TrainingSession

SCALES = (1.0, 0.85, 0.7, 0.5)


def main() -> None:
    """Train each seed once and print the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = [measured(seed) for seed in range(parser.parse_args().seeds)]
    rows = []
    for scale, *found in zip(SCALES, *seeds, strict=True):
        scores, divergences = zip(*found, strict=True)
        cells = (", ".join(f"{value:.3f}" for value in values) for values in (scores, divergences))
        rows.append([f"{scale:g}", *cells, f"{fmean(scores):.3f}", f"{fmean(divergences):.3f}"])
    print(markdown_table(["scale", "held-out success", "divergence (nats/token)", "mean", "mean"], rows))
    print(machine())


def measured(seed: int) -> list[tuple[float, float]]:
    """Return held-out score and divergence from the base at each scale."""
    setup = build_components(resolve(None, [*LONG, f"train.seed={seed}"]).config)
    with tempfile.TemporaryDirectory() as folder, RunFolder.open(Path(folder, "run")) as place:
        run = TrainingSession(setup, place, lambda *_: None, lambda: False)
        base = run.reference = reference(setup.policy, setup.chat)
        trainer.train(run, run.resume())
        trained = {name: array.copy() for name, array in setup.policy.state()["student"].items()}
        found = []
        for scale in SCALES:
            setup.policy.load_student({n: a * scale if n.endswith("lora_b") else a for n, a in trained.items()})
            score = evaluate(setup.policy, setup.task, setup.chat, eval_spec(setup)).event()["score"]
            found.append((score, divergence_from(base, setup.policy)[0]))
    print(f"seed {seed}:", found, flush=True)
    return found


if __name__ == "__main__":
    main()
