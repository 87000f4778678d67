"""The `sdpo` command: finds the verb, loads that verb's file alone, and turns errors into one line and a code."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any

import typer

from sdpo_mlx import __version__
from sdpo_mlx.core.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, SdpoError

EXIT_USAGE = 2
COMPLETING = "_SDPO_COMPLETE"  # as in completion.py, which only a shell needs
_SETTING = re.compile(r"--([a-zA-Z_][\w-]*(?:\.[\w-]+)+)(?:=(.*))?", re.DOTALL)
EXIT_BROKEN_PIPE = 141

# Kept here so that `sdpo --help` imports none of the files.
VERBS: Mapping[str, str] = MappingProxyType(
    {
        "train": "Train a model on a task by self-distillation.",
        "eval": "Score a run, a model, or a model with an adapter.",
        "solve": "Test-time training on one hard problem.",
        "coach": "Learn from your own remarks, answer by answer.",
        "compare": "Pair two evaluations: the difference, and whether to believe it.",
        "rollout": "Show one problem through the eyes of all involved.",
        "runs": "A table of runs.",
        "watch": "The live view of a run, from another terminal.",
        "report": "What a run did, in one HTML file.",
        "chat": "Talk to a run, with and without its adapter.",
        "serve": "Answer OpenAI's clients with a run's adapter.",
        "export": "Take an adapter to PEFT and back, or fuse it into its base.",
        "push": "Send a run's adapter and card to a model hub.",
        "plan": "Memory and time of a step, before it starts.",
        "tasks": "List tasks, show one, check one, grade one answer.",
        "data": "Check rows of your own, line by line.",
        "init": "Write a starter folder: own task, rows, settings.",
        "models": "List, show, import and fetch models.",
        "config": "The resolved configuration.",
        "doctor": "What this machine can do, and how to mend the rest.",
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command line and exit with its code (PROMISES.md)."""
    _opened_streams()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if COMPLETING in os.environ:
        sys.exit(_completed())
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def _opened_streams() -> None:
    """Whoever started us may have closed some: a file opened later must not take the place of one, nor it be None."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == number and getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))


def _completed() -> int:
    """Answer a shell that asks what can follow; the exit code."""
    from sdpo_cli import completion

    return completion.answer(application(completion.words_so_far(os.environ)), os.environ)


def run(words: list[str]) -> int:
    """The exit code of one command line; every error becomes one line on stderr."""
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    words = [*words[1:], "--help"] if words[0] == "help" else words
    try:
        app = application(words)
        code = app(with_settings(words), prog_name="sdpo", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except SdpoError as error:
        return _ended(error.line(), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _ended("interrupted", EXIT_INTERRUPTED, debug)
    except BrokenPipeError:
        _forget_output()
        return EXIT_BROKEN_PIPE
    except Exception as error:  # the boundary to the user: a traceback is for --debug
        return _failed(error, debug)


def _failed(error: Exception, debug: bool) -> int:
    """The exit code and the line of what nobody further in could name better."""
    if hasattr(error, "format_message"):
        return _misused(error, debug)
    if isinstance(error, OSError):  # the system refused: a full output, a name too long
        from sdpo_mlx.core.storage import trouble

        _forget_output()
        refused = trouble(error, error.filename or "the output", "read" if error.filename else "write")
        return _ended(refused.line(), refused.exit_code, debug)
    if isinstance(error, OverflowError):
        said = f"a number is larger than anything can count with here: {error}. Write a smaller one."
        return _ended(said, EXIT_USAGE, debug)
    hint = "" if debug else " (--debug shows where)"
    return _ended(f"a bug of ours: {type(error).__name__}: {error}{hint}", EXIT_BUG, debug)


def _forget_output() -> None:
    """Nobody takes what is still buffered: it must not be tried again at exit."""
    with suppress(OSError, ValueError):  # none at all, or a test's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def application(words: Sequence[str]) -> typer.Typer:
    """All verbs by name and line, and in full only the one that was asked for."""
    # Plain help: readable in 80 columns, and quicker than with rich.
    asked = next((word for word in words if not word.startswith("-")), "")
    app = typer.Typer(
        rich_markup_mode=None,
        add_completion=not asked or COMPLETING in os.environ,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
        callback=_root,
        name="sdpo",
    )
    for verb, line in VERBS.items():
        if verb != asked:
            app.command(verb, help=line)(_absent)
            continue
        module = import_module(f"sdpo_cli.commands.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb, help=line)
        else:
            app.command(verb)(module.command)
    return app


def with_settings(words: Sequence[str]) -> list[str]:
    """`--section.key VALUE` and `--section.key=VALUE` as `--set section.key=VALUE`, for verbs that take --set."""
    if not _takes_settings(words):
        return list(words)
    made, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        named = _SETTING.fullmatch(word)
        if word == "--":
            return [*made, word, *rest]
        if named is None:
            made.append(word)
            continue
        value = named[2]
        if value is None and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        key = named[1].replace("-", "_")
        made += ["--set", key if value is None else f"{key}={value}"]
    return made


def _takes_settings(words: Sequence[str]) -> bool:
    """Whether the verb (or one of its own verbs) has the option --set; only that verb's file is loaded."""
    asked = next((word for word in words if not word.startswith("-")), "")
    if asked not in VERBS:
        return False
    module = import_module(f"sdpo_cli.commands.{asked}")
    group = getattr(module, "app", None)
    commands = [each.callback for each in group.registered_commands] if group else [module.command]
    return any("sets" in inspect.signature(each).parameters for each in commands)


def _absent() -> None:
    raise AssertionError("only the verb that was asked for is called")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sdpo-mlx {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """SDPO on MLX: a language model learns your task from what the environment says.

    Example: sdpo train --model tiny --task tiny
    """


def _misused(error: Any, debug: bool) -> int:
    """An error of the command line itself: unknown option, missing value."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return EXIT_USAGE
    where = context.command_path if context is not None else "sdpo"
    message = _told(error, context) or " ".join(str(error.format_message()).split()).rstrip(".")
    stop = "" if message.endswith("?") else "."
    return _ended(f"{message}{stop} See `{where} --help`.", int(getattr(error, "exit_code", EXIT_USAGE)), debug)


def _told(error: Any, context: Any) -> str:
    """What to write instead of a word of another tool; empty where it is none."""
    from sdpo_cli import foreign

    option = getattr(error, "option_name", None)
    flags = [flag for param in context.command.params for flag in param.opts] if context is not None else []
    if alone := re.match(r"Got unexpected extra arguments?\(?s?\)? \((\S+)\)", str(error.message)):
        return foreign.bare(alone[1], flags)
    if option and type(error).__name__ == "NoSuchOption":
        told = foreign.instead(option, flags) if "--set" in flags else ""
        return f"No such option: {option}. {told}" if told else ""
    verb = re.match(r"No such command '([\w-]+)'", str(error.message))
    told = foreign.VERBS.get(verb[1], "") if verb else ""
    return f"No such command: {verb[1]}. Write `{told}`" if verb and told else ""


def _ended(line: str, code: int, debug: bool) -> int:
    from sdpo_mlx.core.text import display

    if debug:
        import traceback

        typer.echo(display(traceback.format_exc(), 20_000), err=True)
    write: Callable[..., None] = typer.echo
    write(f"sdpo: {' '.join(display(line).split())}", err=True)
    return code


if __name__ == "__main__":
    main()
