"""Words of mlx-lm, TRL and Unsloth on our command line: each leads to what is written here."""

from __future__ import annotations

import re

import pytest
from sdpo_cli import main

from sdpo_mlx.config.aliases import ADVICE, COMMANDS, SETTINGS, option_advice
from sdpo_mlx.config.keys import LEAVES, SECTIONS

OPTIONS = [
    (["train", "--lr", "1e-4"], "Use --learning-rate."),
    (["plan", "--lr", "1e-4"], "Use --train.learning_rate."),
    (["train", "--num-generations=8"], "Use --group-size."),
    (["train", "--batch-size", "4"], "Use --rollout.problems_per_step."),
    (["train", "--temperature", "0.7"], "Use --rollout.temperature."),
    (["train", "--beta", "0.1"], "no KL penalty"),
    (["train", "--resume-adapter-file", "a.safetensors"], "--adapter DIR"),
    (["init", "--run", "x"], "No such option: --run."),
    (["eval", "tiny", "--adapter-path", "x"], "Use --adapter."),
    (["train", "--lora-parameters", "x"], "of model.adapter"),
    (["lora", "--train"], "Use `sdpo train`."),
    (["train", "code"], "Did you mean --task code?"),
    (["train", "smollm2", "code"], "Did you mean --task code?"),
    (["train", "my_task.py"], "Did you mean --task my_task.py?"),
    (["solve", "tests"], "Did you mean --data tests?"),
    (["plan", "absent.yaml"], "Did you mean -c absent.yaml?"),
]


@pytest.mark.parametrize(("words", "told"), OPTIONS, ids=[" ".join(words) for words, _ in OPTIONS])
def test_a_word_of_another_tool_is_answered_in_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert told in err


def test_every_word_of_another_tool_leads_to_something_that_is_here() -> None:
    assert set(SETTINGS.values()) <= {*LEAVES, *SECTIONS}
    assert not set(SETTINGS) & set(ADVICE)
    for name in (*SETTINGS, *ADVICE):
        told = option_advice(f"--{name.replace('_', '-')}", ["--steps", "--set"])
        named = re.search(r"(?:Use|Use a setting of .*, such as) --([\w.]+)$", told)
        assert told[:1].isupper() or told[:1] == "`"
        assert named is None or named[1] in LEAVES or named[1] == "steps"


def test_every_verb_of_another_tool_leads_to_one_of_ours() -> None:
    assert {command.split()[1] for command in COMMANDS.values()} <= set(main.VERBS)
    assert not set(COMMANDS) & set(main.VERBS)


def test_option_named_like_a_section_leads_to_that_section() -> None:
    assert option_advice("--model", ["--set"]) == "Use a setting of model, such as --model.name"


def test_an_option_that_nobody_knows_gets_no_advice() -> None:
    assert option_advice("--stepps", ["--steps"]) == ""


@pytest.mark.parametrize("words", [["-h"], ["help"]])
def test_help_is_found_under_its_usual_names(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (main.main(words), main.main(["--help"])) == (0, 0)
    out = capsys.readouterr().out
    assert out[: len(out) // 2] == out[len(out) // 2 :]
    assert "Commands:" in out
