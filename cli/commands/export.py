"""`sdpo export`: an adapter for other tools, a fused model, or a PEFT adapter as an mlx-lm one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer
from sdpo_cli import completion, options
from sdpo_cli.terminal import render

# Options that go with one --to only.
FORMATS: Mapping[str, str] = MappingProxyType({"model": "mlx", "quantized": "fused", "kind": "gguf"})


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="A run folder; a PEFT folder with --to mlx.", autocompletion=completion.runs
        ),
    ],
    *,
    to: Annotated[Literal["peft", "mlx", "fused", "gguf", "gguf-lora"], typer.Option("--to", help="Format.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder; default: TARGET-KIND beside the target.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="With --to mlx: the base model.")] = None,
    quantized: Annotated[bool, typer.Option("--quantized", help="With --to fused: quantize again.")] = False,
    kind: Annotated[
        Literal["F16", "BF16", "Q8_0"] | None,
        typer.Option("--kind", help="With --to gguf: data type; default: F16."),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            "--scale",
            min=0.0,
            help="Multiply a run's LoRA by this; below 1 it forgets less and keeps less of its task.",
        ),
    ] = 1.0,
    as_json: options.AsJson = False,
) -> None:
    """Convert an adapter: to PEFT, to GGUF, fused into the base, or from PEFT to mlx-lm.

    Example: sdpo export runs/first --to peft
    """
    from sdpo_mlx.runs.export import formats

    # `.` and `..` have no name
    named = target if target.name not in ("", "..") else target.resolve()
    _check(target, to, model=model, quantized=quantized, kind=kind, scale=scale)
    given = formats.ExportOptions(model or "", quantized, kind or "F16", scale)
    place = out or named.with_name(f"{named.name}-{to}")
    with render.status("", as_json) as start_task:
        start_task(f"exporting {target}")
        made = formats.export(target, to, place, given, start_task)
    render.warn(made.warnings)
    content = {"folder": str(made.folder), **made.figures}
    content |= {"next": dict(made.next_steps), "warnings": list(made.warnings)}
    steps = [f"  {line}" for line in render.columns([*made.next_steps.items()])]
    render.output(content, [f"wrote {made.folder}: {made.content}", "next:", *steps], as_json)


def _check(target: Path, to: str, **given: Any) -> None:
    """Raise ConfigError for options of another --to, and for --to mlx without a base model."""
    from sdpo_mlx.core.errors import ConfigError

    for name, kind in FORMATS.items():
        if given[name] and to != kind:
            fix = f"use --to {kind}, or remove --{name}"
            raise ConfigError(f"--{name} does not apply to --to {to}", where="sdpo export", fix=fix)
    if to == "mlx" and given["scale"] != 1.0:
        fix = "change `scale` in its adapter_config.json"
        raise ConfigError("--scale does not apply to --to mlx", where="sdpo export", fix=fix)
    if to == "mlx" and given["model"] is None:
        if (target / "config.yaml").is_file():  # a run
            fix = f"use it directly: mlx_lm.generate --model BASE --adapter-path {target}"
            raise ConfigError(f"{target} is in mlx-lm's layout already", where="--to mlx", fix=fix)
        raise ConfigError("--to mlx needs the base model", where="--model", fix="add --model NAME")
