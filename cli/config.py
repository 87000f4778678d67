"""`sdpo config show`: the resolved configuration, and where each value comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from sdpo_cli import render

from sdpo_mlx.settings import Resolved, resolve, value_at

app = typer.Typer(help="The resolved configuration.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    """The resolved configuration."""


@app.command()
def show(
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file, or a shipped preset")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="section.key=value; repeatable")] = None,
    model: Annotated[str | None, typer.Option(help="alias, folder, or hub repository")] = None,
    task: Annotated[str | None, typer.Option(help="a task's name")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on stdout")] = False,
) -> None:
    """Show every setting with its value and its origin (flag, --set, file and line, preset, default).

    Example: sdpo config show --model qwen --task code --set train.steps=20
    """
    resolved = resolve(config, sets or [], {"model.name": model, "task.name": task})
    if as_json:
        document = {"config": resolved.config.model_dump(mode="json"), "origins": resolved.origins}
        render.document(document)
    else:
        render.result(as_lines(resolved))


@app.command()
def schema() -> None:
    """Print the configuration's JSON Schema, which editors read to complete and check a file.

    Example: sdpo config schema
    """
    from sdpo_mlx.config import json_schema

    render.document(json_schema())


def as_lines(resolved: Resolved) -> list[str]:
    """YAML with each value's origin as a comment beside it; it can be saved and used as a file."""
    lines: list[tuple[str, str]] = []
    path: list[str] = []
    for key, origin in resolved.origins.items():
        *sections, name = key.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(sections, path, strict=False)) if a != b), None)
        shared = min(len(sections), len(path)) if shared is None else shared
        lines += [(f"{'  ' * depth}{sections[depth]}:", "") for depth in range(shared, len(sections))]
        path = sections
        lines.append((f"{'  ' * len(sections)}{name}: {_scalar(value_at(resolved.config, key))}", origin))
    width = min(48, max(len(text) for text, _ in lines))
    return [f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines]


def _scalar(value: Any) -> str:
    import yaml

    # One line whatever the value holds: a double-quoted scalar escapes line breaks and control characters.
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
