"""The Python API: the same run as the command line's, from objects, functions, files and names."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import sdpo as command
from paths import EXAMPLES

import sdpo_mlx as sdpo
from sdpo_mlx.api import default_out
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, SdpoError

pytest.importorskip("mlx.core", reason="the API is tried on the embedded model with mlx")
SMALL: dict[str, Any] = {"rollout.problems_per_step": 2, "rollout.max_tokens": 8, "eval.problems": 2}
WORDS = ("--set", "rollout.problems_per_step=2", "--max-tokens", "8", "--set", "eval.problems=2", "--group-size", "2")


class Naming(sdpo.Task):
    """Answers must be one line that names the module `sort`."""

    name = "naming"

    def problems(self, split: str) -> list[sdpo.Problem]:
        message = {"role": "user", "content": "Write f(x): sort"}
        return [sdpo.Problem(f"{split}-{n}", (message,)) for n in range(3)]

    def grade(self, problem: sdpo.Problem, text: str, *, truncated: bool = False) -> sdpo.Feedback:
        right = text.startswith("x = sort.order")
        return sdpo.Feedback(float(right), right, "" if right else "call sort.order", "pass" if right else "wrong")


def rows() -> list[dict[str, str]]:
    return [{"id": str(n), "prompt": "Write f(x): sort", "split": "train" if n else "held_out"} for n in range(4)]


def grade(problem: Any, answer: str) -> tuple[float, str]:
    return (1.0, "") if "order" in answer else (0.0, "call sort.order")


def trained(**changes: Any) -> sdpo.Run:
    given = {"task": Naming(), "steps": 1, "out": "run", "group_size": 2, "settings": SMALL, "progress": False}
    return sdpo.train(**{**given, **changes})


@pytest.fixture
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "home"))


@pytest.mark.usefixtures("_folder")
def test_train_leaves_the_same_bytes_as_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(task="tiny", seed=3)
    assert (
        command("train", "--task", "tiny", "--steps", "1", "--seed", "3", "--out", "other", "--plain", *WORDS)[0] == 0
    )
    for name in ("adapters.safetensors", "config.yaml"):
        assert (run.path / name).read_bytes() == Path("other", name).read_bytes()
    shown = capsys.readouterr()
    assert shown.out == ""  # the API prints nothing to stdout


@pytest.mark.parametrize("task", [Naming(), (rows, grade), "./mine.py"], ids=["object", "functions", "file"])
@pytest.mark.usefixtures("_folder")
def test_every_form_of_a_task_trains_evaluates_and_compares(task: Any) -> None:
    Path("mine.py").write_text(
        "def problems():\n    return [{'id': str(n), 'prompt': 'Write f(x): sort', 'split': s}\n"
        "            for n, s in enumerate(['train', 'held_out'])]\n"
        "def grade(problem, answer):\n    return (1.0, '') if 'order' in answer else (0.0, 'call sort.order')\n"
    )
    run = trained(task=task)
    assert run.result is not None
    assert run.result.state.step == 1
    assert [event["type"] for event in run.events if event["type"] in ("run_started", "run_finished")] == [
        "run_started",
        "run_finished",
    ]
    found = run.evaluate()
    assert found.scores.score == run.result.after.result.score  # type: ignore[union-attr]
    first, second = run.compare().scores
    assert (first.score, second.score) == (run.result.before.result.score, found.scores.score)  # type: ignore[union-attr]
    again = sdpo.load_run("run", task=task)
    assert again.config == run.config
    assert again.evaluate().scores.score == found.scores.score


@pytest.mark.usefixtures("_folder")
def test_a_run_generates_reports_and_exports() -> None:
    run = trained()
    text = run.generate("Write f(x): sort", max_tokens=8)
    assert text == run.generate("Write f(x): sort", max_tokens=8)
    assert "x = " in text
    assert run.report() == Path("run/report.html")
    assert "<svg" in Path("run/report.html").read_text(encoding="utf-8")
    exported = run.export("peft")
    assert (exported.folder / "adapter_model.safetensors").is_file()
    assert exported.folder == Path("run-peft")
    with pytest.raises(ConfigError, match="run-peft"):
        run.export("peft")


@pytest.mark.usefixtures("_folder")
def test_callbacks_receive_every_event_in_order() -> None:
    events: list[Any] = []
    run = trained(callbacks=[events.append, lambda event: None])
    assert [dict(event) for event in events] == run.events


@pytest.mark.usefixtures("_folder")
def test_ctrl_c_saves_and_the_same_call_resumes_to_the_same_bytes() -> None:
    whole = trained(steps=3, out="whole")

    def interrupt(event: Any) -> None:
        if event["type"] == "step" and event["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(steps=3, callbacks=[interrupt])
    assert sdpo.load_run("run").events[-1]["step"] == 2
    assert signal.getsignal(signal.SIGINT) is before
    resumed = trained(steps=3)
    assert (resumed.path / "adapters.safetensors").read_bytes() == (whole.path / "adapters.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"train.lerning_rate": 1e-3}}, "argument: train.lerning_rate: did you mean train.learning_rate"),
        ({"stepz": 2}, "'stepz'"),
        ({"task": 7}, "int is not a task"),
        ({"task": "tinny"}, "tinny"),
        ({"model": "tinny"}, "tinny"),
        ({"steps": -1}, "train.steps"),
    ],
)
@pytest.mark.usefixtures("_folder")
def test_wrong_arguments_raise_one_line_and_leave_no_folder(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SdpoError) as caught:
        trained(**changes)
    assert message.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)
    assert not Path("run").exists()


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    ("task", "folder"),
    [
        ("./my_task.py", "tiny-my_task-seed0"),
        ("../tasks/my_task.py:hard", "tiny-my_task-hard-seed0"),
        ("tiny:mid", "tiny-tiny-mid-seed0"),
    ],
)
def test_default_folder_has_the_names_of_model_and_task_without_their_paths(task: str, folder: str) -> None:
    cfg = Config.model_validate({"model": {"name": "tiny"}, "task": {"name": task}})
    assert default_out(cfg) == Path("runs") / folder


@pytest.mark.usefixtures("_folder")
def test_a_run_on_an_object_needs_it_again_to_evaluate() -> None:
    trained()
    with pytest.raises(ConfigError, match="load_run"):
        sdpo.load_run("run").evaluate()
    code, _, error = command("eval", "run")
    assert code == 2
    assert "load_run" in error
    with pytest.raises(ConfigError, match="no run"):
        sdpo.load_run("absent")


@pytest.mark.usefixtures("_folder")
def test_the_progress_bar_counts_steps_and_shows_scores(capsys: pytest.CaptureFixture[str]) -> None:
    trained(progress=True, steps=2)
    error = capsys.readouterr().err
    assert "2/2" in error
    assert "held-out=" in error


def test_importing_the_package_loads_nothing_heavy_and_names_the_api() -> None:
    code = (
        "import sys, json, sdpo_mlx as sdpo\n"
        "heavy = [m for m in ('numpy', 'pydantic', 'mlx', 'torch', 'transformers') if m in sys.modules]\n"
        "print(json.dumps([heavy, [n for n in sdpo.__all__ if not hasattr(sdpo, n)], 'train' in dir(sdpo)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[], [], True]
    with pytest.raises(AttributeError, match="nothing"):
        _ = sdpo.nothing  # type: ignore[attr-defined]


@pytest.mark.usefixtures("_folder")
def test_the_notebook_runs_from_top_to_bottom() -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra dev (nbclient, ipykernel) is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra dev (nbclient, ipykernel) is not installed")
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    (training,) = [cell for cell in notebook.cells if "steps=8" in cell.source]
    training.source = training.source.replace("steps=8", "steps=4")  # otherwise unchanged
    nbclient.NotebookClient(notebook, timeout=None, kernel_name="python3").execute()
    printed = {cell["id"]: cell.get("outputs", []) for cell in notebook.cells}
    rates = json.loads(printed["success"][-1]["data"]["text/plain"])
    assert len(rates) == 4
    assert max(rates[-2:]) > rates[0] + 0.3
    assert "difference" in printed["compare"][-1]["data"]["text/plain"]
    assert Path("runs/notebook/report.html").is_file()
