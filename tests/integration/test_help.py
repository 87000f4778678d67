"""Every command has an example in its help, and its command accepts it."""

from __future__ import annotations

import re
import shlex
from typing import Any

import click
import pytest
import typer.main
from sdpo_cli.main import VERBS, application


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for verb in VERBS:
        group = typer.main.get_command(application([verb]))
        chosen: Any = group.commands[verb]  # type: ignore[attr-defined]
        inner = getattr(chosen, "commands", None)
        found += [(verb, name) for name in inner] if inner else [(verb,)]
    return found


def command_of(words: tuple[str, ...]) -> Any:
    found: Any = typer.main.get_command(application(list(words)))
    for word in words:
        found = found.commands[word]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_command_accepts_the_example_in_its_help(words: tuple[str, ...]) -> None:
    command = command_of(words)
    examples = re.findall(r"Example: (sdpo [^\n]+)", command.help or command.callback.__doc__ or "")
    assert examples, f"sdpo {' '.join(words)} has no example"
    for example in examples:
        words_given = shlex.split(example.partition(" | ")[2] or example, comments=True)
        assert tuple(words_given[1 : 1 + len(words)]) == words
        try:
            command.make_context("sdpo", words_given[1 + len(words) :])
        except click.exceptions.UsageError as error:
            pytest.fail(f"{example}: {error.format_message()}")
