"""Shell completion, called as the completion scripts of the shells call it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from sdpo_cli import completion
from sdpo_cli.main import main

from sdpo_mlx.config import Config
from sdpo_mlx.config.layers import preset_names
from sdpo_mlx.models.aliases import TABLE as ALIASES


def answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What bash gets for `sdpo WORDS<TAB>`, its words broken at `:` and `=` as bash breaks them."""
    monkeypatch.setenv("_SDPO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(("sdpo", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit):
        sys.exit(main([]))
    out, err = capsys.readouterr()
    assert err == ""
    return out.split()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs, the second one later, and a model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for at, name in enumerate(("runs/zero", "runs/one")):
        events = tmp_path / name / "events.jsonl"
        events.parent.mkdir(parents=True)
        events.touch()
        os.utime(events, (at, at))
    (tmp_path / "quiet").mkdir()
    (tmp_path / "quiet" / "config.json").touch()
    (tmp_path / "mine.yaml").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("tr",), ["train"]),
        (("train", "--mo"), ["--model"]),
        (("train", "--model", "q"), [*(name for name in ALIASES if name.startswith("q")), "quiet"]),
        (("train", "--model", "qwen", ":"), ["tiny", "8b", "30b-a3b"]),
        (("train", "--model", "qwen", ":", "t"), ["tiny"]),
        (("train", "--model", "=", "ti"), ["tiny"]),
        (("train", "--task", "c"), ["code", "code:easy"]),
        (("train", "--objective", "g"), ["grpo"]),
        (("train", "-c", "m"), ["math", "mine.yaml"]),
        (("eval", "runs/"), ["runs/one", "runs/zero"]),
        (("report", ""), ["runs/one", "runs/zero"]),
        (("train", "--set", "model.b"), ["model.backend=", "model.bits="]),
        (("train", "--set", "objective.kind=g"), ["grpo"]),
        (("models", "s"), ["show"]),
        (("tasks", "show", "sc"), ["science", "science:physics"]),
        (("nonsense", "x"), []),
        (("train", "--nonsense", "x"), []),
    ],
    ids=" ".join,
)
def test_completion_of_commands_options_and_values(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: Any, offered: list[str]
) -> None:
    assert answers(monkeypatch, capsys, *words) == offered


def test_damaged_files_and_unprintable_names_are_no_completion_and_no_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "qu\x1b[31m").mkdir()
    (place / "qu\x1b[31m" / "config.json").touch()
    assert answers(monkeypatch, capsys, "train", "--model", "qu") == ["quiet"]
    monkeypatch.setattr(completion, "_paths", lambda *_: 1 / 0)
    assert answers(monkeypatch, capsys, "train", "--model", "ti") == ["tiny"]


def test_kinds_are_those_of_the_settings() -> None:
    for key, offered in completion.KINDS.items():
        section, name = key.split(".")
        field = Config.model_fields[section].annotation.model_fields[name]  # type: ignore[union-attr]
        assert offered == get_args(field.annotation), key


def test_presets_are_the_shipped_ones(place: Path) -> None:
    (place / "mine.yaml").unlink()
    assert sorted(completion.presets("")) == sorted(preset_names())


def test_bash_completes_without_loading_model_libraries(place: Path) -> None:
    (place / "asked.py").write_text(
        "import sys\nfrom pathlib import Path\nfrom sdpo_cli.main import main\n"
        "try:\n    sys.exit(main([]))\nfinally:\n    Path('imported').write_text('\\n'.join(sys.modules))\n"
    )
    program = f"""
        sdpo() {{ {sys.executable} asked.py; }}
        export -f sdpo
        eval "$(_SDPO_COMPLETE=source_bash sdpo)"
        COMP_WORDS=(sdpo train --model sm); COMP_CWORD=3
        env() {{ local -x "${{@:1:$#-1}}"; "${{@: -1}}"; }}
        _sdpo_completion sdpo; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=place)
    assert done.stdout.split() == ["smollm2", "smollm3"]
    imported = set((place / "imported").read_text().splitlines())
    assert "sdpo_cli.commands.train" in imported
    assert not imported & {"mlx.core", "torch", "transformers", "mlx_lm", "huggingface_hub"}
