"""Write the reference pages of docs/ from the program itself: `python benchmarks/reference.py` (`make docs` does).

A generated part is between `<!-- reference: NAME -->` and `<!-- end -->`; NAME is a key of `PARTS`.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import typer.main
from reporting import markdown_table
from sdpo_cli.main import VERBS, application
from sdpo_cli.options import KEYS

import sdpo_mlx
from sdpo_mlx.api import ExportFormat, Options
from sdpo_mlx.config import json_schema
from sdpo_mlx.core import errors
from sdpo_mlx.evaluation.compare import Comparison
from sdpo_mlx.evaluation.evaluate import EvalDocument
from sdpo_mlx.runs.export.formats import Exported
from sdpo_mlx.tasks.base import Split
from sdpo_mlx.training.final_scores import TrainingResult
from sdpo_mlx.types import FeedbackKind

DOCS = Path(__file__).parents[1] / "docs"
SLOT = re.compile(r"(<!-- reference: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
EXAMPLE = re.compile(r"Example: (sdpo [^\n]+)")
WIDTH = 88  # columns of a help text
KINDS = {"FeedbackKind": FeedbackKind, "Split": Split, "ExportFormat": ExportFormat}
RELATED = (Options, TrainingResult, EvalDocument, Comparison, Exported)  # what public names take and return

# More examples than the help of a command has.
EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "train": (
        "sdpo train --model tiny --task tiny --out runs/first",
        "sdpo train -c config.yaml --set train.learning_rate=3e-4 --seed 1",
        "sdpo train --model ./my-model --task ./my_task.py --data problems.jsonl --backend torch",
    ),
    "eval": (
        "sdpo eval runs/first --data unseen.jsonl --json > scores.json",
        "sdpo eval smollm2 --task code:easy --problems 8",
    ),
    "solve": ("sdpo solve --model tiny --task tiny:hard --method best-of-k",),
    "compare": ("sdpo compare runs/a runs/b", "sdpo compare scores-a.json scores-b.json"),
    "rollout": ("sdpo rollout --run runs/first --problem ID",),
    "report": ("sdpo report runs/a runs/b --out both.html",),
    "chat": ("sdpo chat smollm2", "sdpo chat runs/first --prompt 'Write f(x): square, behead'"),
    "serve": ("sdpo serve smollm2 --port 8081",),
    "export": (
        "sdpo export runs/first --to fused --out models/first",
        "sdpo export runs/first --to gguf --kind Q8_0",
        "sdpo export ./peft-adapter --to mlx --model smollm2",
    ),
    "probe": ("sdpo probe --model smollm2 --task code:easy --every-template",),
    "plan": (
        "sdpo plan --model qwen --task code --max-tokens 8192 --memory 64GB",
        "sdpo plan -c config.yaml --json",
    ),
    "tasks show": ("sdpo tasks show code --data problems.jsonl --problem ID",),
    "tasks check": ("sdpo tasks check ./my_task.py --data problems.jsonl",),
    "config show": ("sdpo config show runs/first --changed",),
    "init": ("sdpo init my-task --model smollm2 --task own --yes",),
}


def main() -> None:
    """Update every page."""
    for page in sorted(DOCS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if SLOT.search(text):
            page.write_text(filled(text), encoding="utf-8")


def filled(text: str) -> str:
    """Return the text of a page with its generated parts made again."""
    return SLOT.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def commands() -> str:
    """Return a section for each command, with examples and its help."""
    parts = []
    for verb in VERBS:
        chosen = typer.main.get_command(application([verb])).commands[verb]  # type: ignore[attr-defined]
        parts += [_command(words, command) for words, command in _leaves(verb, chosen)]
    return "\n\n".join(parts)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield a command, or those of a group, with its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    else:
        for each in inner:
            yield from _leaves(f"{name} {each}", inner[each])


def _command(words: str, command: Any) -> str:
    context = click.Context(command, info_name=f"sdpo {words}", terminal_width=WIDTH, max_content_width=WIDTH)
    context.help_option_names = ["--help", "-h"]
    text = command.get_help(context)
    examples = "\n".join([*EXAMPLE.findall(text), *EXAMPLES.get(words, ())])
    shown = re.sub(r"\n+ *Example: [^\n]+", "", text).strip()
    return f"## sdpo {words}\n\n```sh\n{examples}\n```\n\n```text\n{shown}\n```"


def settings() -> str:
    """Return a table of the settings of each section."""
    schema = json_schema()
    return "\n\n".join(_sections(schema, schema, ""))


def _sections(schema: Mapping[str, Any], section: Mapping[str, Any], path: str) -> Iterator[str]:
    option = {key: f"`--{name.replace('_', '-')}`" for name, key in KEYS.items()}
    rows, inner = [], []
    for name, found in section["properties"].items():
        key = f"{path}.{name}" if path else name
        if "$ref" in found:
            inner.append((key, schema["$defs"][found["$ref"].rpartition("/")[2]]))
        elif path:
            flag = f" ({option[key]})" if key in option else ""
            meaning = f"{found.get('description', '')}{flag}"
            rows.append([f"`{key}`", _values(found), f"`{_written(found.get('default'))}`", _escaped(meaning)])
    if rows:
        table = markdown_table(["setting", "values", "default", "meaning"], rows)
        yield f"## {path}\n\n{section['description']}\n\n{table}"
    for key, definition in inner:
        yield from _sections(schema, definition, key)


def _values(found: Mapping[str, Any]) -> str:
    """Return in words which values a setting takes."""
    kinds = found.get("anyOf", [found])
    return ", ".join(_kind(each) for each in kinds)


def _kind(found: Mapping[str, Any]) -> str:
    if "enum" in found or "const" in found:
        return ", ".join(f"`{_written(each)}`" for each in found.get("enum", [found.get("const")]))
    if found["type"] == "array":
        return f"list of {_kind(found['items'])}"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true`, `false`"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {found[key]:g}" for key, sign in bounds.items() if key in found)
    return names.get(found["type"], "`null`") + (f" {limits}" if limits else "")


def _written(value: Any) -> str:
    """Return a value as YAML has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("{", "`{").replace("}", "}`").replace("` `", " ")


def python() -> str:
    """Return the signature and the docstring of every public name, and of what they take and return."""
    public = [getattr(sdpo_mlx, name) for name in sdpo_mlx.__all__ if name != "__version__"]
    shown = [*sorted(public, key=lambda each: (inspect.isclass(each), each.__name__)), *RELATED]
    rows = [
        [f"`{each.__name__}`", str(each.exit_code), inspect.getdoc(each) or ""]
        for each in vars(errors).values()
        if inspect.isclass(each) and issubclass(each, errors.SdpoError) and each is not errors.SdpoError
    ]
    table = markdown_table(["error", "exit code", "meaning"], rows)
    kinds = [[f"`{name}`", ", ".join(f"`{each}`" for each in get_args(kind))] for name, kind in KINDS.items()]
    types = f"## Types\n\n{markdown_table(['type', 'values'], kinds)}"
    return "\n\n".join(
        [*map(_documented, shown), types, f"## Errors\n\nIn `sdpo_mlx.core.errors`; each is an `SdpoError`.\n\n{table}"]
    )


def _documented(found: Any) -> str:
    """Return the section of a function, or of a class with its fields and members, as they are written."""
    source = textwrap.dedent(inspect.getsource(found))
    tree, lines = ast.parse(source).body[0], source.splitlines()
    if isinstance(tree, ast.FunctionDef):
        return f"## {tree.name}\n\n{_signature(lines, tree)}\n\n{ast.get_docstring(tree)}"
    assert isinstance(tree, ast.ClassDef)
    fields = [lines[each.lineno - 1 : each.end_lineno] for each in tree.body if isinstance(each, ast.AnnAssign)]
    head = _code([f"class {tree.name}", *(line for field in fields for line in field)])
    parts = [f"## {tree.name}\n\n{head}\n\n{ast.get_docstring(tree)}"]
    for each in tree.body:
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            parts.append(f"### {tree.name}.{each.name}\n\n{_signature(lines, each)}\n\n{ast.get_docstring(each)}")
    return "\n\n".join(parts)


def _signature(lines: Sequence[str], function: ast.FunctionDef) -> str:
    """Return a function's decorators and parameters as code."""
    kept = [f"@{name}" for name in map(ast.unparse, function.decorator_list) if name != "abstractmethod"]
    head = lines[function.lineno - 1 : function.body[0].lineno - 1]
    return _code([*kept, *textwrap.dedent("\n".join(head)).removesuffix(":").splitlines()])


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


PARTS: Mapping[str, Callable[[], str]] = {"commands": commands, "settings": settings, "python": python}


if __name__ == "__main__":
    main()
