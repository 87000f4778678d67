"""The `sdpo` command: loads the file of one subcommand, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any

import typer
from sdpo_cli.grammar import command_name, options_for, rewritten
from sdpo_cli.options import ALIASES

from sdpo_mlx import __version__
from sdpo_mlx.core.errors import EXIT_BUG, EXIT_INTERRUPTED, EXIT_OK, SdpoError

EXIT_USAGE = 2
COMPLETING = "_SDPO_COMPLETE"  # as in completion.py, which only completion imports
EXIT_BROKEN_PIPE = 141

# Here rather than in the files of the commands, so that `sdpo --help` imports none of them.
VERBS: Mapping[str, str] = MappingProxyType(
    {
        "train": "Train a model on a task by self-distillation.",
        "eval": "Score a run, a model, or a model with an adapter.",
        "solve": "Solve one hard problem by test-time training.",
        "coach": "Train interactively from your own feedback.",
        "compare": "Compare two evaluations, paired by problem.",
        "rollout": "Show rollouts, grades and teacher context for one problem.",
        "runs": "List runs.",
        "watch": "Watch a run from another terminal.",
        "report": "Write an HTML report of a run.",
        "chat": "Chat with a run, with and without its adapter.",
        "serve": "Serve a run through an OpenAI-compatible API.",
        "export": "Export an adapter: PEFT, GGUF, or fused into the base.",
        "push": "Upload an adapter and its model card to the hub.",
        "probe": "Check before training whether the self-teacher beats the student.",
        "plan": "Estimate memory and time of a training step.",
        "tasks": "List, show and check tasks; grade an answer.",
        "data": "Check your data files.",
        "init": "Write a starter folder: config, rows, grader.",
        "models": "List, show, check, import and fetch models.",
        "config": "Show the resolved configuration.",
        "doctor": "Check this machine and suggest fixes.",
    }
)


def _open_streams() -> None:
    """Open the standard streams that the parent closed: no file may get their descriptor, and none is None."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if os.open(os.devnull, os.O_RDWR) == number and getattr(sys, name) is None:
                setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8"))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def main(command_line: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; every error becomes one line on stderr."""
    _open_streams()
    if COMPLETING in os.environ:
        from sdpo_cli import completion

        return completion.answer(application(completion.typed_arguments(os.environ)), os.environ)
    given = sys.argv[1:] if command_line is None else command_line
    debug = "--debug" in given
    arguments = [argument for argument in given if argument != "--debug"] or ["--help"]
    arguments = [*arguments[1:], "--help"] if arguments[0] == "help" else arguments
    try:
        app = application(arguments)
        code = app(rewritten(arguments, VERBS), prog_name="sdpo", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else EXIT_OK
    except SdpoError as error:
        return _report(error.line(), error.exit_code, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _report("interrupted", EXIT_INTERRUPTED, debug)
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except Exception as error:  # the boundary to the user: --debug shows the traceback
        return _unexpected(error, debug)


def _unexpected(error: Exception, debug: bool) -> int:
    """Report an error that is no SdpoError; return its exit code."""
    if hasattr(error, "format_message"):
        return _usage_error(error, debug)
    if isinstance(error, OSError):  # of the output or of a path: disk full, name too long
        from sdpo_mlx.core.storage import trouble

        _discard_output()
        failure = trouble(error, error.filename or "the output", "read" if error.filename else "write")
        return _report(failure.line(), failure.exit_code, debug)
    if isinstance(error, OverflowError):
        return _report(f"a number is too large: {error}. Use a smaller one.", EXIT_USAGE, debug)
    hint = "" if debug else ". Add --debug for the traceback."
    return _report(f"internal error: {type(error).__name__}: {error}{hint}", EXIT_BUG, debug)


def _discard_output() -> None:
    """Redirect stdout, so that its buffer is not written to a closed pipe at exit."""
    with suppress(OSError, ValueError):  # no stdout, or one without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def application(arguments: Sequence[str]) -> typer.Typer:
    """Return the application, in which only the requested command is loaded."""
    # Plain help: readable in 80 columns, and faster than with rich.
    requested = command_name(arguments)
    app = typer.Typer(
        rich_markup_mode=None,
        add_completion=not requested or COMPLETING in os.environ,
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["--help", "-h"],
            "token_normalize_func": lambda name: ALIASES.get(name, name),
        },
        callback=_root,
        name="sdpo",
    )
    for verb, line in VERBS.items():
        if verb != requested:
            app.command(verb, help=line)(lambda: None)  # never called
            continue
        module = import_module(f"sdpo_cli.commands.{verb}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=verb, help=line)
        else:
            app.command(verb)(module.command)
    return app


def _version(value: bool) -> None:
    if value:
        typer.echo(f"sdpo-mlx {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """SDPO on MLX: train a language model on your task from feedback.

    Example: sdpo train --model tiny --task tiny
    """


def _usage_error(error: Any, debug: bool) -> int:
    """Report an error of the command line: unknown option, missing value."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return EXIT_USAGE
    command = context.command_path if context is not None else "sdpo"
    message = _suggestion(error, context) or " ".join(str(error.format_message()).split()).rstrip(".")
    stop = "" if message.endswith("?") else "."
    return _report(f"{message}{stop} See `{command} --help`.", int(getattr(error, "exit_code", EXIT_USAGE)), debug)


def _suggestion(error: Any, context: Any) -> str:
    """Return the error with what to write instead, for arguments known from other tools; otherwise blank."""
    from sdpo_mlx.config.aliases import COMMANDS, option_advice

    option = getattr(error, "option_name", None)
    flags = [flag for param in context.command.params for flag in param.opts] if context is not None else []
    if extra := re.match(r"Got unexpected extra arguments?\(?s?\)? \((\S+)\)", str(error.message)):
        return _argument_advice(extra[1], flags)
    if option and type(error).__name__ == "NoSuchOption":
        advice = option_advice(option, flags) if "--set" in flags else ""
        return f"No such option: {option}. {advice}" if advice else ""
    verb = re.match(r"No such command '([\w-]+)'", str(error.message))
    ours = COMMANDS.get(verb[1], "") if verb else ""
    return f"No such command: {verb[1]}. Use `{ours}`" if verb and ours else ""


def _argument_advice(argument: str, flags: Collection[str]) -> str:
    """Return the error for an argument too many, naming the option that takes it; blank if none does."""
    found = [f"{option} {argument}" for option in options_for(argument) if option in flags]
    return f"Unexpected argument {argument!r}. Did you mean {' or '.join(found)}?" if found else ""


def _report(line: str, code: int, debug: bool) -> int:
    """Print an error on one line; return its exit code."""
    from sdpo_mlx.core.text import display

    if debug:
        import traceback

        typer.echo(display(traceback.format_exc(), 20_000), err=True)
    typer.echo(f"sdpo: {' '.join(display(line).split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
