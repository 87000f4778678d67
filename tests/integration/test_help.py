"""Every command's help has an example, and every example is one that its command takes."""

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
def test_the_example_in_the_help_is_one_that_the_command_takes(words: tuple[str, ...]) -> None:
    command = command_of(words)
    examples = re.findall(r"Example: (sdpo [^\n]+)", command.help or command.callback.__doc__ or "")
    assert examples, f"sdpo {' '.join(words)} has no example"
    for example in examples:
        said = shlex.split(example.partition(" | ")[2] or example, comments=True)
        assert tuple(said[1 : 1 + len(words)]) == words
        try:
            command.make_context("sdpo", said[1 + len(words) :])
        except click.exceptions.UsageError as error:
            pytest.fail(f"{example}: {error.format_message()}")
