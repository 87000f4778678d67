"""Rewrites of the command line before typer parses it, so that one grammar holds for every command."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from typer.models import ArgumentInfo

# The options that mean an argument of this name, in commands that have no such option.
SYNONYMS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "target": ("--model", "--run"),
        "first": ("--model", "--run"),
        "run": ("--run",),
        "runs": ("--run",),
        "name": ("--model",),
        "task": ("--task",),
        "rows": ("--data",),
    }
)
_SETTING = re.compile(r"--([a-zA-Z_][\w-]*(?:\.[\w-]+)+)(?:=(.*))?", re.DOTALL)


def rewritten(arguments: Sequence[str], verbs: Mapping[str, str]) -> list[str]:
    """Return the arguments with `--section.key VALUE` as `--set`, and with a target's options as its argument."""
    parameters, at = _called(arguments, verbs)
    made, rest = list(arguments[:at]), list(arguments[at:])
    if "sets" in parameters:
        rest = _with_settings(rest)
    return made + _with_target(rest, parameters)


def command_name(arguments: Sequence[str]) -> str:
    """Return the first argument that is no option; blank if there is none."""
    return next((argument for argument in arguments if not argument.startswith("-")), "")


def options_for(argument: str) -> list[str]:
    """Return the options that may be meant by an argument without one."""
    from sdpo_mlx.models.resolve import ALIASES, EMBEDDED, FETCHED
    from sdpo_mlx.tasks.registry import DESCRIPTIONS

    path = Path(argument)
    if argument.endswith((".yaml", ".yml")):
        return ["-c"]
    if path.suffix == ".py":
        return ["--task"]
    if (path / "events.jsonl").is_file():
        return ["--run"]
    if (path / "config.json").is_file() or path.suffix.lower() == ".gguf":
        return ["--model"]
    if path.exists():
        return ["--data"]
    known = {"--model": {EMBEDDED, *FETCHED, *ALIASES}, "--task": {*DESCRIPTIONS}}
    return [option for option, names in known.items() if argument in names]


def _called(arguments: Sequence[str], verbs: Mapping[str, str]) -> tuple[Mapping[str, bool], int]:
    """Return the parameters of the command, and whether each is an argument; and where its own arguments begin."""
    verb = command_name(arguments)
    if verb not in verbs:
        return {}, len(arguments)
    at, module = arguments.index(verb) + 1, import_module(f"sdpo_cli.commands.{verb}")
    if not hasattr(module, "app"):
        return _parameters(module.command), at
    name = command_name(arguments[at:])
    for command in module.app.registered_commands:
        if name and name == (command.name or command.callback.__name__):
            return _parameters(command.callback), at + arguments[at:].index(name) + 1
    return {}, len(arguments)


def _parameters(command: Callable[..., Any]) -> dict[str, bool]:
    found = inspect.signature(command, eval_str=True).parameters.items()
    return {name: any(isinstance(each, ArgumentInfo) for each in get_args(p.annotation)) for name, p in found}


def _with_settings(rest: list[str]) -> list[str]:
    """Rewrite `--section.key VALUE` and `--section.key=VALUE` to `--set section.key=VALUE`."""
    made: list[str] = []
    while rest:
        argument = rest.pop(0)
        named = _SETTING.fullmatch(argument)
        if argument == "--":
            return [*made, argument, *rest]
        if named is None:
            made.append(argument)
            continue
        value = named[2]
        if value is None and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        key = named[1].replace("-", "_")
        made += ["--set", key if value is None else f"{key}={value}"]
    return made


def _with_target(rest: list[str], parameters: Mapping[str, bool]) -> list[str]:
    """Rewrite `--run R` to `R` for a command with an argument for it."""
    targets = [name for name, is_argument in parameters.items() if is_argument and name in SYNONYMS]
    own = {f"--{name}" for name, is_argument in parameters.items() if not is_argument}
    meant = {option for name in targets for option in SYNONYMS[name]} - own
    made: list[str] = []
    while rest:
        argument = rest.pop(0)
        option, equals, value = argument.partition("=")
        if argument == "--":
            return [*made, argument, *rest]
        if option in meant and (equals or (rest and not rest[0].startswith("-"))):
            value = value if equals else rest.pop(0)
            # Of two targets the first remains the first; other arguments, such as a repository, follow the target.
            made = [*made, value] if "second" in parameters else [value, *made]
        else:
            made.append(argument)
    return made
