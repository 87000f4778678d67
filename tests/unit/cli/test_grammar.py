"""A target is given bare, as --model or as --run, in every command that takes one."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from sdpo_cli.grammar import SYNONYMS, rewritten
from sdpo_cli.main import VERBS
from sdpo_cli.options import one_target

from sdpo_mlx.config.layers import FaultsError
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.targets import starting_config, target_config

OPENS_A_MODEL = ("train", "eval", "solve", "coach", "compare", "rollout", "chat", "probe", "plan", "serve")


@pytest.mark.parametrize("verb", OPENS_A_MODEL)
@pytest.mark.parametrize("option", ["--model", "--run"])
def test_command_that_opens_a_model_takes_every_form_of_target(verb: str, option: str) -> None:
    parameters = inspect.signature(import_module(f"sdpo_cli.commands.{verb}").command).parameters
    if option.removeprefix("--") in parameters:
        assert "target" in parameters
    else:
        assert {"x", "--plain", "--json"} == {*rewritten([verb, "--plain", option, "x", "--json"], VERBS)[1:]}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["eval", "--run=a"], ["eval", "a"]),
        (["push", "me/it", "--run", "a"], ["push", "a", "me/it"]),
        (["compare", "a", "--model", "b"], ["compare", "a", "b"]),
        (["export", "--run", "a", "--model", "b"], ["export", "a", "--model", "b"]),
        (["models", "check", "--model", "a"], ["models", "check", "a"]),
        (["data", "check", "--data", "a"], ["data", "check", "a"]),
        (["eval", "a", "--run"], ["eval", "a", "--run"]),
        (["eval", "--", "--run", "a"], ["eval", "--", "--run", "a"]),
        (["--version"], ["--version"]),
    ],
)
def test_option_of_a_target_becomes_its_argument(words: list[str], wanted: list[str]) -> None:
    assert rewritten(words, VERBS) == wanted


def test_every_synonym_is_an_option() -> None:
    assert all(option.startswith("--") for options in SYNONYMS.values() for option in options)


def test_two_targets_are_an_error() -> None:
    with pytest.raises(ConfigError, match="more than one model or run"):
        one_target("tiny", "tiny", None)


def test_missing_run_is_not_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "events.jsonl").touch()
    with pytest.raises(ConfigError, match="Did you mean runs/first"):
        target_config("runs/frist")
    assert target_config("owner/name").model.name == "owner/name"


def test_adapter_without_a_base_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs its base model"):
        starting_config(None, tmp_path, None)


def test_a_run_on_another_task_keeps_its_model_alone(tmp_path: Path) -> None:
    run = tmp_path / "first"
    shape = ["model.adapter.rank=2", "model.adapter.keys=[self_attn.q_proj]", "model.thinking=true"]
    rest = ["task.data=rows.jsonl", "train.steps=7", "train.learning_rate=1", "rollout.max_tokens=5"]
    cfg = resolve(None, [*shape, *rest], {"model.name": "smollm2", "task.name": "code"}).config
    run.mkdir()
    RunFolder(run).write_config(cfg)
    RunFolder(run).save_adapter({"a.lora_b": np.ones((2, 2), dtype=np.float32)}, {"lora_parameters": {"rank": 2}})
    (run / "events.jsonl").touch()
    assert starting_config(str(run), None, None, [], {"task.name": "code"}).train.steps == 7
    fresh = resolve(None, ["train.steps=3"], {"model.name": "smollm2", "task.name": "math"}).config
    for sets, flags in ((["train.steps=3"], {"task.name": "math"}), (["task.name=math", "train.steps=3"], {})):
        found = starting_config(str(run), None, None, sets, flags)
        assert (found.model.adapter.rank, found.model.thinking) == (2, True)
        assert found.model.adapter.start == str(run.resolve())
        assert found.model_copy(update={"model": fresh.model}) == fresh
    other = target_config(str(run), None, ["model.thinking=false"], {"task.name": "math"})
    assert (other.task.data, other.model.thinking, other.model.name) == (None, False, "smollm2")


def test_all_faults_of_all_layers_are_listed_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("train:\n  stepz: 3\n  steps: many\nrollout: {group_size: 0}\n")
    with pytest.raises(FaultsError) as caught:
        resolve(file, ["a.b=1", "c"], {"train.seed": "x"})
    keys = ("a.b", "'c'", "train.stepz", "train.steps", "rollout.group_size", "train.seed")
    assert [key for key in keys if key not in str(caught.value)] == []
