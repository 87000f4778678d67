"""The command line: one line and the right code for every mistake, JSON alone on stdout, inert foreign text."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from command import harmless, process, sdpo
from hypothesis import given, settings
from hypothesis import strategies as st
from sdpo_cli import main
from sdpo_cli.commands import rollout
from sdpo_cli.terminal import live_view, progress, render
from sdpo_cli.terminal.progress import Header, Progress, Sample

from sdpo_mlx.types import Feedback, Problem, Rollout, RolloutGroup

SMALL = ["--set", "eval.problems=4", "--set", "eval.samples=1", "--set", "rollout.problems_per_step=2"]
TRAIN = ["train", "--group-size", "2", "--max-tokens", "8", "--plain", *SMALL]
VERBS = [*main.VERBS]
COMMANDS = [
    [],
    *([verb] for verb in VERBS),
    *(["tasks", name] for name in ("list", "show", "check", "grade")),
    *(["models", name] for name in ("list", "show", "import", "fetch")),
    ["config", "show"],
    ["data", "check"],
]
HEADER = Header("tiny", "tiny", "sdpo", "ema", "cpu float32", "runs/x", 10)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


# ---- mistakes


MISTAKES = [
    (["trian"], 2, "'trian'"),
    (["train", "--stepps", "3"], 2, "--steps"),
    (["train", "--steps", "many"], 2, "'--steps'"),
    (["train", "--model", "tinny"], 2, "Did you mean 'tiny'"),
    (["train", "--task", "tinny"], 2, "Did you mean tiny"),
    (["train", "--task", "tiny", "--data", "rows.jsonl"], 2, "task.data"),
    (["train", "--set", "train.lerning_rate=1"], 2, "learning_rate"),
    (["train", "--set", "train.steps"], 2, "--set"),
    (["train", "--set", "train.steps=-1"], 2, "train.steps"),
    (["train", "--objective", "sdop"], 2, "did you mean sdpo"),
    (["train", "-c", "absent.yaml"], 2, "absent.yaml"),
    (["train", "--resume"], 2, "--out"),
    (["train", "--resume", "--out", "absent"], 2, "absent"),
    (["train", "--task", "code", "--data", "bad.jsonl", "--sandbox", "unconfined"], 3, "bad.jsonl"),
    (["train", "--out", "taken/run"], 5, "taken"),
    (["eval", "no-such-model"], 2, "unknown model"),
    (["eval", "tiny", "--adapter", "absent"], 2, "no adapter here"),
    (["eval"], 2, "TARGET"),
    (["rollout", "--problem", "tiny-square-behed"], 2, "Did you mean tiny-square-behead"),
    (["rollout", "--run", "absent"], 2, "no run here"),
    (["tasks", "show", "cod"], 2, "Did you mean code"),
    (["tasks", "grade", "tiny", "--answer", "absent.txt"], 3, "absent.txt"),
    (["tasks", "check", "absent.py"], 2, "no file absent.py"),
    (["data", "check", "absent.jsonl"], 3, "absent.jsonl"),
    (["data", "check", "bad.jsonl", "--task", "tiny"], 2, "reads no rows"),
    (["init", "taken/here"], 5, "taken"),
    (["models", "show", "notes.txt"], 2, "a model is a folder"),
]


@pytest.mark.parametrize(("words", "code", "message"), MISTAKES, ids=[" ".join(m[0])[:50] for m in MISTAKES])
def test_a_mistake_is_one_line_and_its_code(words: list[str], code: int, message: str) -> None:
    Path("bad.jsonl").write_text('{"id": 1\n', encoding="utf-8")
    Path("taken").write_text("a file where a folder is wanted", encoding="utf-8")
    Path("notes.txt").write_bytes(b"GGUF")
    found, out, err = sdpo(*words)
    line = err.splitlines()[-1]
    assert found == code
    assert line.startswith("sdpo: ")
    assert message in line
    assert "Traceback" not in err
    assert out == ""


def test_a_refused_run_leaves_no_folder_behind() -> None:
    assert sdpo("train", "--model", "tinny")[0] == 2
    assert list(Path().iterdir()) == []


def test_a_bug_is_one_line_and_with_debug_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_words: list[str]) -> None:
        raise RuntimeError("a \x1b[31mred\x1b[0m herring")

    monkeypatch.setattr(main, "application", broken)
    code, out, err = sdpo("tasks", "list")
    assert (code, out) == (1, "")
    assert err.startswith("sdpo: internal error: RuntimeError: a red herring")
    assert len(err.splitlines()) == 1
    assert "Traceback" in sdpo("--debug", "tasks", "list")[2]


def test_an_interrupt_before_anything_began_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "application", interrupted)
    assert sdpo("train")[0] == 130


# ---- help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_has_an_example_where_something_runs(command: list[str]) -> None:
    code, out, _ = sdpo(*command, "--help")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    if command not in (["tasks"], ["models"], ["config"], ["data"]):
        assert "Example: sdpo" in " ".join(out.split())


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from sdpo_cli import main; assert main.main(['--help']) == 0; "
        "print({m.partition('.')[0] for m in sys.modules} & {'mlx', 'mlx_lm', 'transformers', 'numpy', 'pydantic'})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_help_is_shown_without_arguments() -> None:
    assert sdpo()[1] == sdpo("--help")[1]


def test_version_is_printed() -> None:
    assert re.fullmatch(r"sdpo-mlx \d+\.\d+\.\d+\n", sdpo("--version")[1])


# ---- untrusted text


HOSTILE = st.text(max_size=300) | st.sampled_from(
    ["\x1b[2J[/red] [bold]x", "[/]", "a\rb\x9b31m", "\u202eevil", "\x1b]8;;http://x\x07link\x1b]8;;\x07", "\ud800"]
)


def groups_of(text: str) -> list[RolloutGroup]:
    """One group whose every text is the given one."""
    import numpy as np

    ids = np.array([1, 2], dtype=np.int32)
    made = Rollout(ids, ids, np.zeros(2, dtype=np.float32), "stop", 0, text)
    problem = Problem(text, ({"role": "user", "content": text},))
    return [RolloutGroup(problem, (made,), (Feedback(0.0, False, text, "wrong"),))]


@settings(deadline=None)
@given(HOSTILE)
def test_untrusted_text_is_inert_in_plain_lines(text: str) -> None:
    err, out = io.StringIO(), io.StringIO()
    watched = Progress(HEADER)
    with redirect_stderr(err), redirect_stdout(out):
        with live_view.run_view(watched, plain=True) as observe:
            observe({"type": "step", "step": 1, "loss": None}, groups_of(text))
            observe({"type": "warning", "step": 1, "message": text}, ())
        row = {"answer": text, "finish": "stop", "tokens": 2, "reward": 0.0, "kind": "wrong", "feedback": text}
        content = {"problem": text, "student": {"rendered": text}, "skip": None}
        render.result(rollout.as_lines({**content, "rollouts": [{**row, "teacher": None, "skip": "no_signal"}]}))
    assert harmless(err.getvalue() + out.getvalue())
    assert (err.getvalue() + out.getvalue()).encode("utf-8")


@settings(deadline=None)
@given(HOSTILE)
def test_untrusted_text_is_no_markup_in_the_live_view(text: str) -> None:
    from rich.console import Console
    from sdpo_cli.terminal.live_view import LiveView

    watched = Progress(HEADER, warnings=[text])
    watched.observe({"type": "step", "step": 1, "success/rate": 0.5}, groups_of(text))
    drawn = io.StringIO()
    Console(file=drawn, width=100, color_system=None).print(LiveView(watched))
    assert harmless(drawn.getvalue())


def test_markup_is_shown_literally() -> None:
    from rich.console import Console
    from sdpo_cli.terminal.live_view import LiveView

    drawn = io.StringIO()
    sample = Sample("Write f(x)", "[bold]x[/bold] [/nothing]", "wrong", "[red]no")
    Console(file=drawn, width=100).print(LiveView(Progress(HEADER, sample=sample)))
    assert "[bold]x[/bold] [/nothing]" in drawn.getvalue()


def test_live_view_needs_a_terminal_and_no_opt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert render.is_live(plain=False)
    assert not render.is_live(plain=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not render.is_live(plain=False)


def test_sample_is_a_failed_rollout_with_feedback() -> None:
    assert progress.pick_sample(groups_of("said")) == Sample("said", "said", "wrong", "said")
    assert progress.pick_sample([]) is None


# ---- commands


def test_tasks_list_is_one_json_document() -> None:
    names = [task["name"] for task in json.loads(sdpo("tasks", "list", "--json")[1])["tasks"]]
    assert {"tiny", "code"} <= set(names)


def test_grading_prints_reward_success_kind_and_feedback() -> None:
    Path("right.txt").write_text("x = square.power(x)\nx = behead.rest(x)", encoding="utf-8")
    Path("wrong.txt").write_bytes(b"x = square.pow(x)\xff\x00")
    words = ("tasks", "grade", "tiny", "--problem", "tiny-square-behead", "--json", "--answer")
    right, wrong = (json.loads(sdpo(*words, file)[1]) for file in ("right.txt", "wrong.txt"))
    assert right == {"reward": 1.0, "success": True, "kind": "pass", "feedback": ""}
    assert list(wrong) == ["reward", "success", "kind", "feedback"]
    assert wrong["success"] is False
    assert wrong["feedback"]


def test_config_show_names_the_flag() -> None:
    found = json.loads(sdpo("config", "show", "--set", "train.steps=7", "--json")[1])
    assert found["config"]["train"]["steps"] == 7
    assert found["origins"]["train.steps"] == "--set"


def test_doctor_checks_everything_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    code, out, _ = sdpo("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert {each["name"] for each in found["findings"]} >= {"python", "backend", "blas", "sandbox", "disk", "cache"}
    assert all(each["fix"] for each in found["findings"] if not each["ok"])


def test_rollout_shows_why_there_is_no_teacher_context() -> None:
    words = (
        "rollout",
        "--group-size",
        "1",
        "--plain",
        "--set",
        "teacher.feedback=false",
        "--set",
        "task.feedback=none",
    )
    code, out, _ = sdpo(*words)
    assert code == 0
    assert "Write f(x):" in out
    assert "no teacher context: no demonstration and no feedback (no_signal)" in out


def test_training_twice_resumes_and_eval_reads_the_run() -> None:
    first = sdpo(*TRAIN, "--steps", "1", "--out", "run", "--json")
    assert first[0] == 0, first[2]
    second = sdpo(*TRAIN, "--steps", "2", "--out", "run", "--json")
    assert second[0] == 0, second[2]
    assert "resumed after step 1" in second[2]
    one, two = json.loads(first[1]), json.loads(second[1])
    assert (one["steps"], two["steps"]) == (1, 2)
    assert (one["generations"], two["generations"]) == (4, 8)
    assert one["before"] == two["before"]
    for name in ("adapters.safetensors", "adapter_config.json", "README.md", "config.yaml", "manifest.json"):
        assert (Path("run") / name).is_file()
    evaluated = json.loads(sdpo("eval", "run", "--json", "--plain")[1])
    assert evaluated["score"] == two["after"]["score"]
    assert len(evaluated["problems"]) == 4


def test_resume_takes_its_settings_from_the_run_and_refuses_others() -> None:
    assert sdpo(*TRAIN, "--steps", "1", "--out", "run")[0] == 0
    code, _, err = sdpo("train", "--resume", "--out", "run", "--steps", "2", "--plain")
    assert code == 0, err
    kept = Path("run/config.yaml").read_text(encoding="utf-8")
    code, out, err = sdpo("train", "--resume", "--out", "run", "--group-size", "3", "--plain")
    assert (code, out) == (2, "")
    assert "group_size" in err.splitlines()[-1]
    assert Path("run/config.yaml").read_text(encoding="utf-8") == kept


def test_too_little_gain_fails_with_require_gain() -> None:
    code, out, err = sdpo(*TRAIN, "--steps", "0", "--out", "run", "--require-gain", "30")
    assert code == 1
    assert "less than --require-gain 30" in err.splitlines()[-1]
    assert "next:" in out


def test_interrupted_run_is_saved_and_prints_how_to_resume() -> None:
    command = [sys.executable, "-m", "sdpo_cli.main", *TRAIN, "--steps", "1000", "--out", "run"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            if line.startswith("step 1/"):
                break
        run.send_signal(signal.SIGTERM)
        last = run.stderr.read().splitlines()[-1]
    assert run.returncode == 143
    assert re.fullmatch(r"sdpo: interrupted, saved at step \d+\. Run the same command to resume\.", last)


def test_process_writes_no_escapes_and_only_json_on_stdout() -> None:
    done = process("rollout", "--group-size", "1", "--json", TERM="xterm-256color")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rollouts"]
    assert "\x1b" not in done.stdout + done.stderr
