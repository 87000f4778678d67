"""Trackers hear what the event stream says, once, and cannot stop or change a run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tracker_readers
from small_runs import Watcher, settings, trained
from waiting import HANG_SECONDS

from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.runs.events import EventLog, read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.tracking import manager
from sdpo_mlx.runs.tracking.base import RunLocation, numbers
from sdpo_mlx.runs.tracking.manager import TrackerManager
from sdpo_mlx.runs.tracking.sent_log import SentLog
from sdpo_mlx.training.session import TrainingSession

SHORT = {"steps": 1, "save_every": 1, "eval_every": 1}


@dataclass
class Made:
    """A tracker that keeps what it hears, and fails at one of its calls (0: opening)."""

    fails_at: int = -1
    error: BaseException = field(default_factory=lambda: OSError("no space left"))
    heard: list[dict[str, Any]] = field(default_factory=list)
    closed: list[bool] = field(default_factory=list)
    calls: int = 0

    def open(self, name: str, place: RunLocation) -> Made:
        self._count()
        return self

    def log(self, event: Mapping[str, Any]) -> None:
        self._count()
        self.heard.append(dict(event))

    def close(self, finished: bool) -> None:
        self._count()
        self.closed.append(finished)

    def _count(self) -> None:
        self.calls += 1
        if self.calls - 1 == self.fails_at:
            raise self.error


def made(monkeypatch: pytest.MonkeyPatch, **trackers: Made) -> None:
    monkeypatch.setattr(manager, "open_tracker", lambda name, place: trackers[name].open(name, place))


def tracked(*names: str) -> Config:
    return settings(log={"sinks": list(names), "samples": 0}, train=SHORT, eval={"problems": 1})


# ---- choosing


@pytest.mark.parametrize(
    "text", ["tensorboard,wandb", "[tensorboard, wandb]", "tensorboard, wandb", "tensorboard wandb"]
)
def test_trackers_are_named_with_and_without_brackets(text: str) -> None:
    assert resolve(None, [f"log.sinks={text}"]).config.log.sinks == ["tensorboard", "wandb"]


def test_one_tracker_or_none_can_be_set_on_the_command_line() -> None:
    assert resolve(None, ["log.sinks=wandb"]).config.log.sinks == ["wandb"]
    assert resolve(None, ["log.sinks=[]"]).config.log.sinks == Config().log.sinks == []


def test_an_unknown_tracker_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(None, ["log.sinks=tensorboard,wandbb"])
    assert caught.value.line() == (
        "--set: log.sinks: 'wandbb' is not allowed, must be a list of tensorboard, wandb, trackio, mlflow, "
        "did you mean wandb?"
    )


def test_a_missing_package_is_told_before_anything_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sdpo_cli.main import main as run

    monkeypatch.setattr(manager, "find_spec", lambda name: None)
    assert run(["train", "--set", "log.sinks=trackio", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "trackio is not installed (log.sinks)" in said
    assert "pip install 'sdpo-mlx[trackio]'" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_named_like_a_tracker_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nosuchtracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="nosuchtracker is not installed"):
        manager.check(["nosuchtracker"])


# ---- failing


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without trackers."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    trained(folder, tracked())
    return folder


def test_a_failing_tracker_changes_nothing_but_one_warning(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = Made(fails_at=2), Made()
    made(monkeypatch, wandb=failing, trackio=other)
    state = trained(tmp_path / "run", tracked("wandb", "trackio"))
    assert state is not None
    assert state.step == 1
    ours, theirs = (list(read_events(each / "events.jsonl")) for each in (tmp_path / "run", alone))
    [warning] = [event for event in ours if event["type"] == "warning"]
    assert [e["type"] for e in ours if e is not warning] == [e["type"] for e in theirs]
    assert [event["type"] for event in failing.heard] == ["eval"]
    assert other.heard == [event for event in ours if event["type"] in ("eval", "step", "warning")]
    assert other.closed == [False]  # nobody said that the run was finished
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (alone / name).read_bytes()
    assert not (alone / "trackers.json").exists()


@pytest.mark.parametrize("call", range(6), ids=["open", "first", "warning", "second", "last", "close"])
def test_a_tracker_may_fail_at_any_call(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    failing, other, shown = Made(fails_at=call), Made(), []
    made(monkeypatch, wandb=failing, trackio=other)
    policy = SimpleNamespace(info=SimpleNamespace(aborts=False))
    components: Any = SimpleNamespace(cfg=tracked("wandb", "trackio"), policy=policy, sampling=None)
    run = TrainingSession(components, folder, lambda event, _: shown.append(event))
    kinds = ["run_started", "step", "warning", "checkpoint", "step", "run_finished"]
    for step, kind in enumerate(kinds):
        run.emit({"type": kind, "step": step, "message": "as said"})
    run.close()
    run.close()
    assert shown == list(read_events(folder.events))
    line = "tracker wandb is disabled for the rest of this session: OSError: no space left"
    assert [event["message"] for event in shown].count(line) == 1
    assert [event["type"] for event in shown if event["message"] != line] == kinds
    assert failing.calls == call + 1  # never asked again
    assert [event["step"] for event in other.heard if event["message"] != line] == [1, 2, 4, 5]
    assert other.closed == [True]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ImportError("cannot import name\n'x'")])
def test_whatever_a_tracker_raises_stays_with_it(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    made(monkeypatch, mlflow=Made(fails_at=0, error=error))
    [line] = TrackerManager(tracked("mlflow"), folder).send(emitted(folder, "run_started", 0))
    assert line.startswith(f"tracker mlflow is disabled for the rest of this session: {type(error).__name__}:")
    assert "\n" not in line


@pytest.mark.parametrize("limit", ["OPEN", "LOG", "CLOSE"])
def test_a_tracker_that_hangs_is_left_behind(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    let_go = threading.Event()
    slow = Made()
    monkeypatch.setattr(slow, limit.lower(), lambda *_: let_go.wait(HANG_SECONDS))
    made(monkeypatch, wandb=slow)
    monkeypatch.setattr(manager, limit, 0.01)
    trackers = TrackerManager(tracked("wandb"), folder)
    lines = [*trackers.send(emitted(folder, "run_started", 0)), *trackers.send(emitted(folder, "step", 1))]
    lines += trackers.close()
    let_go.set()
    assert lines == ["tracker wandb is disabled for the rest of this session: no response within 0.01 seconds"]


def test_what_a_tracker_prints_stays_off_stdout(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    noisy = Made()
    monkeypatch.setattr(noisy, "log", lambda event: print("* noise"))
    made(monkeypatch, trackio=noisy)
    trackers = TrackerManager(tracked("trackio"), folder)
    trackers.send(emitted(folder, "run_started", 0))
    trackers.send(emitted(folder, "step", 1))
    print("the result")
    assert capsys.readouterr().out == "the result\n"


# ---- resuming


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def emitted(folder: RunFolder, kind: str, step: int, **values: Any) -> dict[str, Any]:
    with EventLog(folder.events) as log:
        return log.emit({"type": kind, "step": step, **values})


def test_a_tracker_switched_on_late_hears_the_whole_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        emitted(folder, "step", step, loss=0.5)
    tracker = Made()
    made(monkeypatch, wandb=tracker)
    trackers = TrackerManager(tracked("wandb"), folder)
    assert trackers.send(emitted(folder, "resumed", 2)) == []
    trackers.send(emitted(folder, "step", 3, loss=0.4))
    assert [event["step"] for event in tracker.heard] == [1, 2, 3]


def test_steps_that_are_repeated_are_told_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Made(), Made()
    for tracker, steps in ((first, (0, 1, 2, 3)), (second, (2, 3, 4))):
        made(monkeypatch, mlflow=tracker)
        trackers = TrackerManager(tracked("mlflow"), folder)
        trackers.send(emitted(folder, "resumed" if steps[0] else "run_started", 1))
        for step in steps:
            trackers.send(emitted(folder, "step", step, loss=0.5))
        trackers.close()
        with EventLog(folder.events) as log:
            log.rewind(1)
    assert [event["step"] for event in (*first.heard, *second.heard)] == [0, 1, 2, 3, 4]


def test_values_that_a_kill_may_have_taken_along_are_told_again(tmp_path: Path) -> None:
    now, path = [0.0], tmp_path / "trackers.json"
    told = SentLog(path, fresh=True, clock=lambda: now[0])
    for step in (1, 2):
        now[0] += 20.0
        told.add("wandb", {"type": "step", "step": step})
        told.add("tensorboard", {"type": "step", "step": step})
        told.save()
    now[0] += 15.0  # wandb has had its 30 seconds with the first alone
    told.save()
    again = SentLog(path, fresh=False)
    assert again.id == told.id
    known = {
        name: [again.contains(name, {"type": "step", "step": s}) for s in (1, 2)] for name in ("wandb", "tensorboard")
    }
    assert known == {"wandb": [True, False], "tensorboard": [True, True]}
    told.save(closed="wandb")
    assert SentLog(path, fresh=False).contains("wandb", {"type": "step", "step": 2})


@pytest.mark.parametrize("content", [b"", b"[]", b'{"id": 3}', b'{"id": "a", "told": [1]}', b"\xff"])
def test_a_damaged_record_of_what_was_told_begins_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trackers.json"
    path.write_bytes(content)
    assert not SentLog(path, fresh=False).contains("wandb", {"type": "step", "step": 0})


def test_names_stay_and_only_the_end_of_a_run_is_set_apart() -> None:
    common = {"time": 1.0, "step": 4}
    step = {"type": "step", **common, "loss": 0.5, "grad/norm": None, "non_finite": ["a"], "generations/total": 8}
    assert numbers(step) == {"loss": 0.5, "generations/total": 8}
    score = {"type": "eval", **common, "split": "held_out", "score": 0.5, "pass@1": 0.5, "low": float("nan")}
    assert numbers(score) == {"score": 0.5, "pass@1": 0.5}
    last = {**score, "final": True, "adapter": "best", "adapter_step": 3, "rewards": {"a": [1.0]}}
    assert numbers(last) == {"final/score": 0.5, "final/pass@1": 0.5}
    assert numbers({"type": "run_finished", **common, "best_step": 3}) == {"final/best_step": 3}


# ---- the real ones


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every tracker that is installed: stopped after step 2, gone on with from step 1."""
    folder = tmp_path_factory.mktemp("trackers") / "run"
    here = [name for name in ("tensorboard", "wandb", "trackio", "mlflow") if installed(name)]
    cfg = settings(log={"sinks": here}, train={**SHORT, "steps": 3}, eval={"problems": 1})
    with pytest.MonkeyPatch.context() as environ:
        for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_API_KEY", "MLFLOW_TRACKING_URI", "TRACKIO_SPACE_ID"):
            environ.delenv(name, raising=False)
        environ.setenv("TRACKIO_DIR", str(folder.parent / "trackio"))
        environ.setenv("WANDB_MODE", "offline")
        trained(folder, cfg, Watcher(after=2))
        shutil.rmtree(folder / "checkpoints" / "step-000002")
        trained(folder, cfg)
    return folder


def installed(name: str) -> bool:
    try:
        manager.check([name])
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_real_tracker_holds_each_number_of_the_stream_once(run: Path, name: str) -> None:
    pytest.importorskip(name, reason=f"the extra {name} is not installed")
    found, stream = getattr(tracker_readers, name)(run), tracker_readers.stream(run)
    said = {(key.replace("@", "_") if name == "mlflow" else key, step): v for (key, step), v in stream.items()}
    assert {step for _, step in said} == {0, 1, 2, 3}
    assert {key: len(values) for key, values in found.items()} == dict.fromkeys(said, 1)
    for key, [value] in said.items():
        if not key[0].startswith(("time/", "memory/")):  # a repeated step takes another time
            assert found[key][0] == pytest.approx(value, rel=1e-6), key
    assert [event for event in read_events(run / "events.jsonl") if event["type"] == "warning"] == []


def test_tensorboard_shows_the_settings_once(run: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    [text] = tracker_readers.tensorboard_texts(run, "config")
    assert "group_size: 4" in text


def test_tensorboard_forgets_what_a_kill_left_untold(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip(
        "sdpo_mlx.runs.tracking.tensorboard", reason="the extra tensorboard is not installed"
    )
    for told, steps in ((-1, (1, 2, 3)), (1, (2, 3))):
        tracker = tensorboard.open_run(RunLocation(tmp_path, "a", {}, told))
        for step in steps:
            tracker.log({"type": "step", "step": step, "time": 1.0, "loss": 0.5})
        tracker.log({"type": "warning", "step": 3, "time": 1.0, "message": "look"})
        tracker.close(True)
    assert tracker_readers.tensorboard(tmp_path) == {("loss", step): [0.5] for step in (1, 2, 3)}
    assert set(tracker_readers.tensorboard_texts(tmp_path, "warning")) == {"look"}


def test_wandb_goes_on_with_the_same_run_and_knows_the_settings(run: Path) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    known = json.loads((run / "trackers.json").read_text())["id"]
    begun = [r.run for r in tracker_readers.wandb_records(run) if r.WhichOneof("record_type") == "run"]
    assert [each.run_id for each in begun] == [known, known]
    assert {each.project for each in begun} == {"sdpo-mlx"}
    assert {each.display_name for each in begun} == {"run"}
    kept = {item.key: json.loads(item.value_json) for item in begun[0].config.update}
    assert kept["rollout"]["group_size"] == 4


def test_mlflow_goes_on_with_the_same_run_and_knows_the_settings(run: Path) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    _, only = tracker_readers.mlflow_run(run)
    assert only.data.params["rollout.group_size"] == "4"
    assert (only.info.run_name, only.info.status) == ("run", "KILLED")
