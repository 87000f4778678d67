"""`sdpo config show`: the resolved configuration, and where each value comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import Resolved, resolve, value_at
from sdpo_mlx.core.errors import ConfigError

app = typer.Typer(help="The resolved configuration.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    """The resolved configuration."""


@app.command()
def show(  # noqa: PLR0913 - typer reads the options off the signature
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder: the settings it was made with.")
    ] = None,
    *,
    model: options.Model = None,
    task: options.TaskName = None,
    data: options.Data = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from the defaults.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show every setting, its value and its origin.

    An origin is a flag, --set, a file with its line, a preset, or the default.

    Example: sdpo config show --model qwen --task code --set train.steps=20
    """
    if run is not None and config is not None:
        raise ConfigError("a run has its own settings", where="--config", fix="give the run, or -c FILE")
    if run is not None and not (run / "config.yaml").is_file():
        raise ConfigError(f"{run} is no run's folder", where="RUN", fix="`sdpo runs` lists them; a file is -c FILE")
    flags = {"model.name": model, "task.name": task, "task.data": data}
    resolved = resolve(run or config, sets or [], flags)
    usual = Config()
    different = [key for key in resolved.origins if value_at(resolved.config, key) != value_at(usual, key)]
    if as_json:
        content = {"config": resolved.config.model_dump(mode="json"), "origins": resolved.origins}
        render.document({**content, "changed": different})
    else:
        render.result(as_lines(resolved, different if changed else None))


@app.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors.

    They read it to complete and check a file. Write it beside the settings, `sdpo config schema > schema.json`, and
    begin them with the line `# yaml-language-server: $schema=schema.json`.

    Example: sdpo config schema
    """
    from sdpo_mlx.config import json_schema

    render.document(json_schema())


def as_lines(resolved: Resolved, keys: Sequence[str] | None = None) -> list[str]:
    """YAML with each value's origin as a comment beside it; it can be saved and used as a file.

    `keys`: those to show, null for all.
    """
    lines: list[tuple[str, str]] = []
    path: list[str] = []
    for key in resolved.origins if keys is None else keys:
        origin = resolved.origins[key]
        *sections, name = key.split(".")
        shared = next((i for i, (a, b) in enumerate(zip(sections, path, strict=False)) if a != b), None)
        shared = min(len(sections), len(path)) if shared is None else shared
        lines += [(f"{'  ' * depth}{sections[depth]}:", "") for depth in range(shared, len(sections))]
        path = sections
        lines.append((f"{'  ' * len(sections)}{name}: {_scalar(value_at(resolved.config, key))}", origin))
    width = min(48, max((len(text) for text, _ in lines), default=0))
    return [f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines]


def _scalar(value: Any) -> str:
    import yaml

    # One line whatever the value holds: a double-quoted scalar escapes line breaks and control characters.
    style = '"' if isinstance(value, str) and not value.isprintable() else None
    text = yaml.safe_dump(value, default_flow_style=True, default_style=style, allow_unicode=True, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
