"""The self-test's run that is killed and resumed: a real kill, and that what was lost or changed is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from command import sdpo
from sdpo_cli.diagnostics import killed_run, self_test
from sdpo_cli.diagnostics.self_test import Line
from small_runs import settings, trained

from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events

pytest.importorskip("mlx.core")

SHORT = {"rollout.problems_per_step": 1, "rollout.group_size": 2, "rollout.max_tokens": 4, "eval.problems": 1}
SETTINGS = settings(
    rollout={"problems_per_step": 1, "group_size": 2, "max_tokens": 4},
    train={"steps": 3, "save_every": 1, "eval_every": 0},
    eval={"problems": 1},
)


def table_line() -> Line:
    part = next(part for part in self_test.default_parts() if part[0] == "run killed and resumed")
    (line,) = self_test.run([part])
    return line


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    trained(folder, SETTINGS)
    return folder


@pytest.mark.long
def test_process_is_killed_after_its_first_checkpoint_and_resumes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(killed_run, "OPTIONS", {**killed_run.OPTIONS, **SHORT})
    run = tmp_path / "run"
    killed_at = killed_run.kill(run)
    assert max(checkpoint.steps(run / "checkpoints")) == killed_at < killed_run.STEPS
    assert "run_finished" not in {event["type"] for event in read_events(run / "events.jsonl")}
    code, _, err = sdpo("train", "--resume", "--plain", "--out", str(run))
    assert code == 0, err
    events = list(read_events(run / "events.jsonl"))
    assert [event["step"] for event in events if event["type"] == "resumed"] == [killed_at]
    assert [event["step"] for event in events if event["type"] == "step"] == [1, 2, 3]


@pytest.mark.slow
def test_killed_run_ends_as_the_whole_one_bit_for_bit_on_a_cpu() -> None:
    line = table_line()
    assert line.ok, line
    assert (line.figure, line.bound, line.note) == (0.0, 0.0, "")


def test_process_that_fails_is_a_line_with_its_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = tmp_path / "no" / "model"
    monkeypatch.setattr(killed_run, "OPTIONS", {**killed_run.OPTIONS, "model.name": missing})
    line = table_line()
    assert not line.ok
    assert "sdpo train failed (exit code 2): " in line.note
    assert "sdpo: unknown model 'PATH'" in line.note
    assert tmp_path.name not in line.note


def test_process_that_is_too_fast_to_be_killed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(killed_run, "PROGRAM", "pass")
    with pytest.raises(RuntimeError, match="ended before it could be killed, 3 times"):
        killed_run.kill(tmp_path / "run")


def test_what_a_process_wrote_is_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = r"import sys; sys.exit('x' * 999 + '\n\x1b[2Jred\x1b]0;title\x07\nlast')"
    monkeypatch.setattr(killed_run, "PROGRAM", program)
    with pytest.raises(RuntimeError) as error:
        killed_run.kill(tmp_path / "run")
    assert str(error.value) == "sdpo train failed (exit code 1): red | last"


def lose_a_step(run: Path) -> None:
    lines = (run / "events.jsonl").read_text().splitlines(keepends=True)
    (run / "events.jsonl").write_text("".join(line for line in lines if '"type": "step"' not in line))


def tell_a_step_twice(run: Path) -> None:
    text = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(text + next(x for x in text.splitlines(keepends=True) if '"type": "step"' in x))


def change_a_loss(run: Path) -> None:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    next(event for event in events if event["type"] == "step" and event["step"] == 2)["loss"] = 7.0
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def change_the_adapter(run: Path) -> None:
    content = bytearray((run / "adapters.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "adapters.safetensors").write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "exact", "rough"),
    [
        (lambda run: None, [], []),
        (lose_a_step, ["the events of step 1 differ"], ["steps or scores are missing or told twice"]),
        (tell_a_step_twice, ["the events of step 3 differ"], ["steps or scores are missing or told twice"]),
        (change_a_loss, ["the events of step 2 differ"], []),
        (change_the_adapter, ["the adapters differ"], []),
    ],
)
def test_difference_is_named(
    change: Callable[[Path], None], exact: list[str], rough: list[str], whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    change(tmp_path / "run")
    assert list(killed_run.differences(whole, tmp_path / "run", exact=True)) == exact
    assert list(killed_run.differences(whole, tmp_path / "run", exact=False)) == rough


def test_lost_optimizer_shows_on_a_gpu_too(whole: Path) -> None:
    before, last = (checkpoint.load_step(whole / "checkpoints", step).state["student"] for step in (2, 3))
    assert killed_run.distance(last, last) == 0
    assert killed_run.distance(before, last) > 0
    assert killed_run.distance(before, {}) == float("inf")
