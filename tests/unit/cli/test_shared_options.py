"""Options that mean the same in every command: rollouts per problem with its earlier names, and the backend."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main
from command import sdpo
from sdpo_cli import completion, options
from sdpo_cli.main import VERBS, application

SAMPLING = {
    "train": [],
    "eval": ["tiny"],
    "compare": ["tiny", "tiny"],
    "rollout": [],
    "solve": [],
    "coach": ["tiny"],
    "plan": [],
    "probe": [],
}
OPENING = {verb: words for verb, words in SAMPLING.items() if verb != "train"} | {"chat": ["tiny", "--prompt", "x"]}


def parsed(verb: str, *words: str) -> dict[str, Any]:
    """The parameters of a command line, parsed and not run."""
    group: Any = typer.main.get_command(application([verb]))
    context = group.make_context("sdpo", [verb, *words])
    return dict(group.commands[verb].make_context(verb, list(words), parent=context).params)


@pytest.mark.parametrize("name", ["--group-size", "--samples", "--answers", "--rollouts", "--n"])
@pytest.mark.parametrize("verb", SAMPLING)
def test_rollouts_per_problem_has_one_name_and_its_aliases_work(verb: str, name: str) -> None:
    for words in ([name, "3"], [f"{name}=3"]):
        assert parsed(verb, *SAMPLING[verb], *words)["group_size"] == 3


def test_steps_is_accepted_under_the_name_of_mlx_lm() -> None:
    assert parsed("train", "--iters", "7")["steps"] == 7


@pytest.mark.parametrize("verb", SAMPLING)
def test_help_shows_the_name_without_its_aliases(verb: str) -> None:
    out = sdpo(verb, "--help")[1]
    assert "--group-size" in out
    assert not [alias for alias in options.ALIASES if f"--{alias} " in out]


def test_no_command_has_an_option_that_is_an_alias() -> None:
    for verb in VERBS:
        group: Any = typer.main.get_command(application([verb]))
        for command in (group.commands[verb], *getattr(group.commands[verb], "commands", {}).values()):
            names = {name.removeprefix("--") for each in command.params for name in each.opts}
            assert not names & {*options.ALIASES}, verb


@pytest.mark.parametrize("verb", OPENING)
def test_backend_is_the_setting_model_backend(verb: str) -> None:
    code, out, err = sdpo(verb, *OPENING[verb], "--backend", "jax")
    assert (code, out) == (2, "")
    assert "flag --backend: model.backend" in err.splitlines()[-1]
    assert parsed(verb, *OPENING[verb], "--backend", "torch")["backend"] == "torch"


def test_help_names_the_choices_of_a_setting() -> None:
    out = " ".join(sdpo("train", "--help")[1].split())
    for names in completion.KINDS.values():
        assert ", ".join(names) in out


def test_every_shared_setting_exists() -> None:
    from sdpo_mlx.config.keys import LEAVES

    assert set(options.KEYS.values()) <= set(LEAVES)
    assert options.settings(model="tiny", seed=None) == {"model.name": "tiny", "train.seed": None}
