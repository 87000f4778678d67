"""Store the events of healthy runs: `python benchmarks/healthy_runs.py --seeds 20 --out FOLDER`.

One file of events a run, so that changed health rules are tried on them again without training.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

KINDS = {
    "tiny": (),
    "tiny:mid": ("task.name=tiny:mid", "train.steps=30"),
    "feedback alone": ("teacher.demonstration=off",),
    "groups of 2": ("rollout.group_size=2", "train.steps=64", "train.eval_every=4"),
    "GRPO": ("objective.kind=grpo", "train.learning_rate=5e-3", "train.steps=24"),
}


def main() -> None:
    """Run what is missing, seed by seed, so that an interrupted benchmark has some of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--kinds", nargs="*", default=[*KINDS])
    parser.add_argument("--replay", action="store_true", help="train nothing, try the rules on the stored runs")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in range(0 if options.replay else options.seeds):
        for kind in options.kinds:
            _run_missing(kind, seed, _path(options.out, kind, seed))
    for kind in options.kinds:
        paths = [_path(options.out, kind, seed) for seed in range(options.seeds)]
        found = [(path.stem, *each) for path in paths if path.exists() for each in warnings(path)]
        print(f"{kind}: {sum(path.exists() for path in paths)} runs, {len(found)} warnings")
        print("".join(f"  {name}, step {step}: {message}\n" for name, step, message in found), end="")


def _path(out: Path, kind: str, seed: int) -> Path:
    return out / f"{kind.replace(':', '-').replace(' ', '-')}-{seed}.jsonl"


def warnings(path: Path) -> list[tuple[int, str]]:
    """Return the warnings that the rules of today give on a stored run, by step."""
    from sdpo_mlx.runs.events import read_events
    from sdpo_mlx.training import health
    from sdpo_mlx.training.history import History

    history, found = History(), []
    for event in read_events(path):
        if event["type"] == "warning":  # of the rules of its day
            continue
        history.add(event)
        if event["type"] in ("step", "eval") and not event.get("final"):
            for rule, finding in health.check(history, event["type"]).items():
                history.warned.add(rule)
                found.append((event["step"], finding.message))
    return found


def _run_missing(kind: str, seed: int, out: Path) -> None:
    from sdpo_mlx.config.resolve import resolve
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.folder import RunFolder
    from sdpo_mlx.trainer import fit

    if out.exists():
        return
    settings = ["model.name=tiny", "task.name=tiny", *KINDS[kind], f"train.seed={seed}", "log.samples=0"]
    components = build_components(resolve(None, settings, {}).config)
    with tempfile.TemporaryDirectory() as place, RunFolder.open(Path(place, "run")) as folder:
        fit(components, folder, lambda *_: None, command=["benchmark"])
        shutil.copy(folder.events, out)


if __name__ == "__main__":
    main()
