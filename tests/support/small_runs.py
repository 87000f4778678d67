"""Small real runs on the embedded model, in this process or in one of their own, and what they leave behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from child_processes import ONE_THREAD, Child
from run_process import run

from sdpo_mlx.config import Config
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import train
from sdpo_mlx.training.session import TrainingSession, TrainState
from sdpo_mlx.types import RolloutGroup

SMALL: dict[str, dict[str, Any]] = {
    "model": {"name": "tiny", "adapter": {"rank": 8}},
    "rollout": {"problems_per_step": 2, "group_size": 4, "max_tokens": 24},
    "objective": {"kind": "sdpo", "support": "full"},
    "train": {
        "steps": 6,
        "save_every": 2,
        "eval_every": 3,
        "learning_rate": 5e-3,
        "probe": False,
        "on_decline": "warn",
    },
    "eval": {"problems": 2, "samples": 1},
    "log": {"samples": 1, "teacher_answers": 0},
}


def settings(**sections: Mapping[str, Any]) -> Config:
    """The small settings with some sections' keys replaced."""
    names = {*SMALL, *sections}
    return Config.model_validate({name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in names})


def with_value(config: Config, key: str, value: Any) -> Config:
    """The settings with one dotted key replaced."""
    tree = config.model_dump()
    *path, last = key.split(".")
    section = tree
    for name in path:
        section = section[name]
    section[last] = value
    return Config.model_validate(tree)


@dataclass
class Watcher:
    """Keeps what a run shows, and asks it to stop after so many events of one type."""

    kind: str = "step"
    after: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)

    def __call__(self, event: Mapping[str, Any], groups: Sequence[RolloutGroup]) -> None:
        self.events.append(dict(event))

    def interrupted(self) -> bool:
        """Whether the run should stop now."""
        return bool(self.after) and sum(event["type"] == self.kind for event in self.events) >= self.after


def trained(
    folder: Path, cfg: Config, watcher: Watcher | None = None, change: Callable[[Components], Any] = lambda _: None
) -> TrainState | None:
    """Train or go on in this process; None where it was interrupted. `change` meddles with the parts first."""
    watcher = watcher or Watcher()
    setup = build_components(cfg)
    change(setup)
    with RunFolder.open(folder) as opened:
        run = TrainingSession(setup, opened, watcher, watcher.interrupted)
        try:
            return train(run, run.resume())
        except KeyboardInterrupt:
            return None
        finally:
            run.close()


def start(folder: Path, cfg: Config, hook: Mapping[str, Any] | None = None) -> Child:
    """Start a training run in a child process."""
    return Child(run, (str(folder), cfg.model_dump_json(), hook), ONE_THREAD, folder.parent)


def finish(process: Child) -> tuple[int, str]:
    """Wait for its end; return its exit code and stderr."""
    _, stderr = process.communicate()
    assert process.returncode is not None
    return process.returncode, stderr


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """What a run said of its steps and scores, clocks and memory left out."""
    kept = kinds or ("step", "eval")
    return [
        {name: v for name, v in event.items() if name != "time" and not name.startswith(("time/", "memory/"))}
        for event in read_events(folder / "events.jsonl")
        if event["type"] in kept
    ]


def last_state(folder: Path) -> dict[str, bytes]:
    """Student, teacher and optimizer of the newest checkpoint, byte for byte."""
    loaded = checkpoint.load(folder / "checkpoints")
    assert loaded is not None
    return {f"{part}/{name}": a.tobytes() for part, arrays in loaded.state.items() for name, a in arrays.items()}


def remains(folder: Path) -> dict[str, Any]:
    """All that must be equal between two runs of equal settings."""
    loaded = checkpoint.load(folder / "checkpoints")
    assert loaded is not None
    return {
        "step": loaded.step,
        "meta": loaded.meta,
        "state": last_state(folder),
        "adapter": (folder / "adapters.safetensors").read_bytes(),
        "events": events(folder),
        "rollouts": {path.name: path.read_bytes() for path in (folder / "rollouts").iterdir()},
    }


def assert_same(folder: Path, other: Path) -> None:
    """Name the parts that differ, without their megabytes."""
    ours, theirs = remains(folder), remains(other)
    assert [name for name in ours if ours[name] != theirs[name]] == []
