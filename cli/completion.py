"""Shell completion of models, tasks, runs, presets and kinds.

It runs at every TAB: nothing here imports what the commands need, and errors are silent.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from glob import escape
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

COMPLETING = "_SDPO_COMPLETE"  # set by the completion scripts: `complete_bash`, `source_zsh`, ...

MAX_RUNS = 200
# A copy, since importing the settings takes half a second; a test compares both.
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "objective.kind": ("sdpo", "grpo", "hybrid", "auto"),
        "teacher.kind": ("ema", "trust_region", "frozen", "live"),
        "model.backend": ("auto", "mlx", "torch"),
        "sandbox.kind": ("auto", "bubblewrap", "seatbelt", "container", "unconfined"),
    }
)

Completer = Callable[[str], list[str]]


def completer(find: Callable[[str], Iterable[str]]) -> Completer:
    """Return typer's callback for the values of an option: distinct values with the typed prefix, never an error."""

    def complete(incomplete: str) -> list[str]:
        found: list[str] = []
        with contextlib.suppress(Exception):
            found += (each for each in find(incomplete) if each.startswith(incomplete) and each.isprintable())
        return list(dict.fromkeys(found))

    return complete


def kinds(key: str) -> Completer:
    """Complete the choices of one setting."""
    return completer(lambda _: KINDS[key])


@completer
def models(incomplete: str) -> Iterator[str]:
    """Complete aliases, local models, and folders and files of models."""
    from sdpo_mlx.models.resolve import ALIASES, EMBEDDED, FETCHED, SOURCES

    yield from (EMBEDDED, *FETCHED, *ALIASES)
    for source in SOURCES:
        with contextlib.suppress(Exception):
            yield from (found.name for found in source.local())
    yield from _paths(incomplete, ".gguf", lambda folder: (folder / "config.json").is_file())


@completer
def tasks(incomplete: str) -> Iterator[str]:
    """Complete the shipped tasks, and Python files."""
    from sdpo_mlx.tasks.registry import DESCRIPTIONS

    yield from DESCRIPTIONS
    yield from _paths(incomplete, ".py")


@completer
def runs(incomplete: str) -> Iterator[str]:
    """Yield run folders, latest first: in `runs`, at the typed path, and one folder below it."""
    typed = escape(incomplete)
    patterns = ("runs/*/events.jsonl", f"{typed}*/events.jsonl", f"{typed}*/*/events.jsonl")
    root = Path("/") if incomplete.startswith("/") else Path()
    found = {path for each in patterns for path in root.glob(each.lstrip("/")) if path.is_file()}
    for path in sorted(found, key=lambda path: -path.stat().st_mtime)[:MAX_RUNS]:
        yield f"{'./' if incomplete.startswith('./') else ''}{path.parent}"


targets = completer(lambda typed: [*runs(typed), *models(typed)])


@completer
def presets(incomplete: str) -> Iterator[str]:
    """Complete the presets, and YAML files."""
    root = files("sdpo_configs")
    for folder, prefix in ((root, ""), (root / "paper", "paper/")):
        yield from sorted(prefix + e.name.removesuffix(".yaml") for e in folder.iterdir() if e.name.endswith(".yaml"))
    yield from _paths(incomplete, ".yaml")


@completer
def settings(incomplete: str) -> Iterator[str]:
    """Complete `KEY=` of every setting, and `KEY=VALUE` of one with fixed choices."""
    schema = json.loads(files("sdpo_configs").joinpath("schema.json").read_text(encoding="utf-8"))

    def keys(node: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, below in node["properties"].items():
            if "$ref" in below:
                yield from keys(schema["$defs"][below["$ref"].rpartition("/")[2]], f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", below

    typed, equals, _ = incomplete.partition("=")
    for key, node in keys(schema, ""):
        if not equals:
            yield f"{key}="
        elif key == typed:
            kinds = node.get("anyOf", [node])
            known = [value for kind in kinds for value in kind.get("enum", ())]
            known += ["true", "false"] if any(kind.get("type") == "boolean" for kind in kinds) else []
            yield from (f"{key}={value}" for value in known)


def _paths(incomplete: str, suffix: str, fits: Callable[[Path], bool] = lambda _: False) -> Iterator[str]:
    """Yield folders that fit, files with the suffix and, once a path was begun, other folders to continue from."""
    folder, _, begun = incomplete.rpartition("/")
    prefix = f"{folder}/" if "/" in incomplete else ""
    for path in sorted(Path(prefix or ".").expanduser().glob(f"{escape(begun)}*")):
        if (path / "events.jsonl").exists():  # a run, not a model
            continue
        if path.is_dir() and (fits(path) or prefix):
            yield f"{prefix}{path.name}{'' if fits(path) else '/'}"
        elif path.suffix.lower() == suffix and path.is_file():
            yield prefix + path.name


def typed_arguments(environment: Mapping[str, str]) -> list[str]:
    """Return the typed words after `sdpo`, as the completion scripts pass them."""
    line = environment.get("COMP_WORDS", environment.get("_TYPER_COMPLETE_ARGS", ""))
    try:
        return shlex.split(line)[1:]
    except ValueError:  # an open quote
        return line.split()[1:]


def answer(app: Callable[..., Any], environment: Mapping[str, str]) -> int:
    """Print the completions silently on errors; return the exit code, which fish needs."""
    instruction = environment.get(COMPLETING, "")
    if not instruction.startswith("complete"):  # the script itself
        return _code(app)
    typed = ""
    if instruction == "complete_bash":
        with contextlib.suppress(ValueError, KeyError):
            words, at = joined(environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"]))
            typed = words[at] if at < len(words) else ""
            os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(at))
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        code = _code(app)
    # bash replaces only the part after the last colon or equals sign.
    known = 1 + max(typed.rfind(":"), typed.rfind("="))
    for line in out.getvalue().splitlines():
        print(line[known:])  # noqa: T201 - to the shell
    return code


def joined(words: list[str], at: int) -> tuple[list[str], int]:
    """Undo bash's splitting at `:` and `=`; `at` is the current word.

    `qwen:tiny` becomes one word, `--model=x` two, `--set a.b=x` two.
    """
    made: list[str] = []
    place, glued = at, False
    for n, word in enumerate(words):
        if word == "=" and made and made[-1].startswith("--"):
            # The value is bash's next word; while it is still missing, it is blank.
            place -= int(n < at)
            if n == at:
                made.append("")
            continue
        parts_value = word == "=" and made[-2:-1] == ["--set"]
        if (word == ":" or parts_value or glued) and made:
            made[-1] += word
            place -= int(n <= at)
        else:
            made.append(word)
        glued = word == ":" or parts_value
    return made, place


def _code(app: Callable[..., Any]) -> int:
    try:
        code = app([], prog_name="sdpo", standalone_mode=False)
    except SystemExit as left:
        code = left.code
    except Exception:
        return 1
    return code if isinstance(code, int) else 0
