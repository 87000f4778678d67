"""`sdpo config show`: the value of every setting and where it comes from, of a run too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from command import sdpo

from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import dump_yaml, resolve


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_folder(folder: Path) -> Path:
    run = folder / "first"
    run.mkdir()
    (run / "config.yaml").write_text(dump_yaml(resolve(None, ["train.steps=7", "task.name=math"]).config))
    return run


def test_every_kind_of_origin_is_told(folder: Path) -> None:
    (folder / "mine.yaml").write_text("train:\n  steps: 5\n  seed: 1\n")
    words = ("-c", "mine.yaml", "--model", "qwen:8b", "--data", "rows.jsonl", "--set", "train.seed=3", "--task", "math")
    origins = json.loads(sdpo("config", "show", *words, "--json")[1])["origins"]
    assert origins["model.name"] == "flag --model"
    assert origins["task.data"] == "flag --data"
    assert origins["train.seed"] == "--set"
    assert origins["train.steps"] == "mine.yaml:2"
    assert origins["train.micro_batch_tokens"] == "preset qwen"
    assert origins["eval.samples"] == "preset math"
    assert origins["train.clip_norm"] == "default"


def test_changed_shows_what_differs_and_can_be_used_as_a_file(folder: Path) -> None:
    words = ("--model", "qwen", "--task", "./mine.py", "--set", "train.steps=7", "--set", "train.seed=0")
    _, out, _ = sdpo("config", "show", "--changed", *words)
    assert "default" not in out
    assert "seed" not in out
    (folder / "again.yaml").write_text(out)
    assert resolve(Path("again.yaml")).config == resolve(None, ["train.steps=7"], {
        "model.name": "qwen", "task.name": "./mine.py"}).config  # fmt: skip
    assert yaml.safe_load(out)["train"]["steps"] == 7


def test_a_run_is_shown_by_its_folder_and_its_settings_can_be_used_again(folder: Path) -> None:
    run = run_folder(folder)
    code, out, _ = sdpo("config", "show", "first", "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["config"]["train"]["steps"] == 7
    assert shown["origins"]["train.steps"].startswith("first/config.yaml:")
    assert "train.steps" in shown["changed"]
    assert "train.seed" not in shown["changed"]
    assert resolve(run).config == resolve(run / "config.yaml").config


def test_neither_a_missing_run_nor_two_sources_are_guessed_at(folder: Path) -> None:
    run_folder(folder)
    code, _, err = sdpo("config", "show", "second")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "not a run folder" in err
    code, _, err = sdpo("config", "show", "first", "-c", "qwen")
    assert code == 2
    assert "Remove RUN or -c FILE" in err


def test_nothing_changed_is_an_empty_answer() -> None:
    assert Config() == resolve(None, [], {"model.name": "owner/x", "task.name": "./x.py"}).config.model_copy(
        update={"model": Config().model, "task": Config().task}
    )
    document = json.loads(sdpo("config", "show", "--model", "owner/x", "--task", "./x.py", "--json")[1])
    assert document["changed"] == ["model.name", "task.name"]
