"""Careless words and damaged folders, for every command but `train`: one line, its code, and nothing lost."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import harmless, sdpo
from safetensors.numpy import save
from sdpo_cli import main

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import StorageError
from sdpo_mlx.core.storage import write_text
from sdpo_mlx.runs.events import EventLog
from sdpo_mlx.runs.folder import RunFolder

NASTY = "\x1b[2J\u202e[/red]</script><script>x</script>\x00\x9b"
LORA = {"rank": 1, "scale": 2.0, "dropout": 0.0}
LONG = "x" * 300
HUGE = "9" * 400

WORDS = [
    (["runs", "absent"], 2, "no runs here"),
    (["runs", LONG], 5, "name too long"),
    (["watch", LONG, "--once"], 5, "shorter path"),
    (["report", LONG], 5, "name too long"),
    (["eval", LONG], 5, "name too long"),
    (["data", "check", LONG], 5, "name too long"),
    (["init", LONG, "--yes"], 5, "name too long"),
    (["config", "show", "absent"], 2, "not a run folder"),
    (["config", "show", "--set", "future.key=1"], 2, "known here"),
    (["config", "show", "-c", "bin"], 2, "UTF-8"),
    (["compare", "absent"], 2, "nothing to compare"),
    (["chat", "tiny", "--json"], 2, "--prompt"),
    (["chat", "tiny", "--compare"], 2, "no adapter to compare"),
    (["coach", "tiny", "--problems", "0"], 2, "--problems"),
    (["serve", "tiny", "--port", "99999"], 2, "--port"),
    (["eval", "tiny", "--problems", "-1"], 2, "--problems"),
    (["eval", "tiny", "--samples", "1e9"], 2, "--group-size"),
    (["eval", "tiny", "--out", "/dev/null"], 5, "cannot write here"),
    (["eval", "tiny", "--out", ""], 5, "cannot write here"),
    (["rollout", "--n", "-1"], 2, "--group-size"),
    (["solve", "--attempts", "0"], 2, "--attempts"),
    (["solve", "--seeds", "3"], 2, "--every-problem"),
    (["solve", "--minutes", "nan"], 2, "--minutes"),
    (["plan", "--memory", "many"], 2, "16GB"),
    (["plan", "--memory", f"{HUGE}GB", "--prompt-tokens", "9"], 2, "smaller"),
    (["plan", "--prompt-tokens", HUGE], 2, "smaller"),
    (["export", "absent", "--to", "peft"], 5, "no run here"),
    (["export", "bin", "--to", "peft"], 5, "no run here"),
    (["export", "run", "--to", "peft", "--quantized"], 2, "--to fused"),
    (["export", "run", "--to", "fused", "--kind", "Q8_0"], 2, "--to gguf"),
    (["export", "run", "--to", "mlx"], 2, "--model"),
    (["push", "run", "me/\x1b[2Jfirst"], 2, "OWNER/NAME"),
    (["report", "run", "--out", ""], 5, "names no file"),
    (["report", "run", "--out", "absent/r.html"], 5, "absent"),
    (["models", "show", "bin"], 2, "a model is a folder"),
    (["models", "import", "absent.gguf"], 2, "absent.gguf"),
    (["tasks", "grade", "tiny", "--answer", "run"], 3, "run"),
    (["tasks", "check", "./broken.py"], 2, "broken.py"),
]


def make_run(folder: Path, text: str = "hello") -> Path:
    """A finished run whose every foreign word is `text`."""
    with RunFolder.open(folder) as run:
        run.write_config(Config())
        run.write_manifest({"policy": {"device": text}, "command": text})
        run.write_card(text)
        run.save_adapter({"model.layers.0.q.lora_a": np.ones((2, 1), np.float32)}, {"lora_parameters": LORA})
        row = {"problem": text, "prompt": [{"role": "user", "content": text}], "answer": text, "feedback": text}
        run.write_rollouts(1, [{**row, "kind": text, "success": False, "reward": 0.0}])
    with EventLog(folder / "events.jsonl") as log:
        config = Config().model_dump(mode="json") | {"model": {"name": text}, "task": {"name": text}}
        log.emit({"type": "run_started", "step": 0, "config": config})
        log.emit({"type": "step", "step": 1, "success/rate": 0.5, "loss": 0.1})
        log.emit({"type": "warning", "step": 1, "message": text})
        log.emit({"type": "run_finished", "step": 1})
    return folder


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "cache"))
    make_run(tmp_path / "run")
    Path("bin").write_bytes(b"\xff\x00\x1b")
    Path("broken.py").write_text("def grade(:\n", encoding="utf-8")


@pytest.mark.parametrize(("words", "code", "told"), WORDS, ids=[" ".join(w[0])[:40] for w in WORDS])
def test_careless_words_are_one_line_and_a_code(words: list[str], code: int, told: str) -> None:
    found, out, err = sdpo(*words)
    line = err.splitlines()[-1]
    assert (found, out) == (code, ""), err
    assert line.startswith("sdpo: ")
    assert told in line
    assert harmless(err)


def rewritten(name: str, content: bytes) -> Callable[[], None]:
    return lambda: Path("run", name).write_bytes(content) and None


NANS = save({"model.layers.0.q.lora_a": np.full((2, 1), np.nan, np.float32)})
ODD_EVENTS = b'[1]\nnull\n{}\n{"type":"step","step":"x","time":[]}\n{"type":"step","step":1e300,"loss":{}}\n\xff'
ODD_ROWS = gzip.compress(b'[1]\nnull\n{"prompt":3,"answer":[],"feedback":{}}\n{"prompt":[{}],"feedback":"x"}\n')
DAMAGE = {
    "odd events": rewritten("events.jsonl", ODD_EVENTS),
    "no events in it": rewritten("events.jsonl", b""),
    "manifest cut": rewritten("manifest.json", b"{"),
    "manifest of another kind": rewritten("manifest.json", b'{"policy": 3, "command": []}'),
    "no manifest": lambda: Path("run/manifest.json").unlink(),
    "rollouts cut": rewritten("rollouts/step-000001.jsonl.gz", ODD_ROWS[:30]),
    "rollouts of another kind": rewritten("rollouts/step-000001.jsonl.gz", ODD_ROWS),
    "config of a later version": lambda: write_text(Path("run/config.yaml"), "future: {key: 1}\n"),
    "config is no text": rewritten("config.yaml", b"\xff\xfe"),
    "adapter cut": rewritten("adapters.safetensors", b"\xff" * 40),
    "adapter not finite": rewritten("adapters.safetensors", NANS),
    "adapter's config of another kind": rewritten("adapter_config.json", b'{"lora_parameters": 3}'),
}
LOOKS = [
    ["runs", "run", "--json"],
    ["watch", "run", "--once", "--plain"],
    ["report", "run"],
    ["config", "show", "run", "--json"],
    ["export", "run", "--to", "peft", "--json"],
    ["push", "run", "me/first"],
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_shown_or_refused_but_never_a_bug(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    DAMAGE[damage]()
    for words in LOOKS:
        monkeypatch.setattr(sys, "stdin", io.StringIO(""))
        code, out, err = sdpo(*words)
        assert code in (0, 2, 5) or (words[0], code) == ("push", 1), (words, err)
        assert "bug of ours" not in err
        assert harmless(out + err)
        if code not in (0, 1):
            assert out == ""
            assert err.splitlines()[-1].startswith("sdpo: ")
        elif "--json" in words:
            json.loads(out)


def test_an_adapter_that_is_not_finite_is_refused() -> None:
    DAMAGE["adapter not finite"]()
    with pytest.raises(StorageError, match="not finite"):
        RunFolder("run").load_adapter()


def test_hostile_text_in_a_run_stays_text_everywhere() -> None:
    make_run(Path("nasty"), NASTY)
    for words in (["runs", "nasty"], ["watch", "nasty", "--once", "--plain"], ["report", "nasty"]):
        code, out, err = sdpo(*words)
        assert code == 0, err
        assert harmless(out + err)
    page = Path("nasty/report.html").read_text(encoding="utf-8")
    assert "<script>x</script>" not in page
    assert not re.search("[\x00\x1b\x9b]", page)


def test_a_device_is_written_to_and_not_replaced() -> None:
    os.mkfifo("pipe")
    command = [sys.executable, "-c", "print(open('pipe', encoding='utf-8').read(), end='')"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        write_text(Path("pipe"), "hello")
        assert reader.communicate()[0] == "hello"
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)


def ended(command: str) -> tuple[int, str]:
    """Exit code and stderr of a shell's line, in which $SDPO is the command."""
    env = {**os.environ, "SDPO": f"{sys.executable} -m sdpo_cli.main"}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_an_output_that_is_full_is_one_line() -> None:
    code, err = ended("$SDPO tasks list > /dev/full")
    assert code == 5
    assert len(err.splitlines()) == 1
    assert "No space left" in err


def test_closed_streams_are_no_bug() -> None:
    assert ended("$SDPO tasks list >&-") == (0, "")
    assert ended("printf '' | $SDPO push run me/first 0<&-")[0] == 1


def test_question_of_push_leaves_stdout_to_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    code, out, err = sdpo("push", "run", "me/first", "--json")
    assert (code, out) == (1, "")
    assert "nothing was uploaded" in err


def test_every_verb_is_known_to_refuse_an_unknown_option() -> None:
    for verb in main.VERBS:
        code, out, err = sdpo(verb, "--bogus")
        assert (code, out) == (2, "")
        assert err.startswith("sdpo: ")
