"""`sdpo config show`: the resolved configuration and the origin of each value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import Resolved, resolve, value_at
from sdpo_mlx.core.errors import ConfigError

app = typer.Typer(help="Show the resolved configuration.", no_args_is_help=True)


@app.callback()
def _config() -> None:
    """Show the resolved configuration."""


@app.command()
def show(  # noqa: PLR0913 - typer reads the options off the signature
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="A run folder: show its settings.")] = None,
    *,
    model: options.Model = None,
    task: options.TaskName = None,
    data: options.Data = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only values that differ from the defaults.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show every setting with its value and origin.

    The origin is a flag, --set, a file with its line, a preset, or the default.

    Example: sdpo config show --model qwen --task code --set train.steps=20
    """
    if run is not None and config is not None:
        raise ConfigError("a run has its own settings", where="--config", fix="remove RUN or -c FILE")
    if run is not None and not (run / "config.yaml").is_file():
        fix = "list run folders with `sdpo runs`, or use -c FILE for a file"
        raise ConfigError(f"{run} is not a run folder", where="RUN", fix=fix)
    resolved = resolve(run or config, sets or [], options.settings(model=model, task=task, data=data))
    defaults = Config()
    different = [key for key in resolved.origins if value_at(resolved.config, key) != value_at(defaults, key)]
    content = {"config": resolved.config.model_dump(mode="json"), "origins": resolved.origins, "changed": different}
    render.output(content, as_lines(resolved, different if changed else None), as_json)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    Editors complete and check a config with it. Save it beside the config, `sdpo config schema > schema.json`, and
    begin the config with the line `# yaml-language-server: $schema=schema.json`.

    Example: sdpo config schema
    """
    from sdpo_mlx.config import json_schema

    render.document(json_schema())


def as_lines(resolved: Resolved, keys: Sequence[str] | None = None) -> list[str]:
    """Return YAML with the origin of each value as a comment; it can be saved and used as a config.

    `keys`: those to show, None for all.
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
        lines.append((f"{'  ' * len(sections)}{name}: {render.yaml_value(value_at(resolved.config, key))}", origin))
    width = min(48, max((len(text) for text, _ in lines), default=0))
    return [f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines]
