"""`sdpo export`: an adapter for other tools, a fused model, or a PEFT adapter brought here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from sdpo_cli import completion, options, render


def command(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="A run folder; a PEFT folder for --to mlx.", autocompletion=completion.runs
        ),
    ],
    *,
    to: Annotated[
        Literal["peft", "mlx", "fused", "gguf", "gguf-lora"], typer.Option("--to", help="What to make of it.")
    ],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Default: TARGET-KIND beside it.")] = None,
    model: Annotated[str | None, typer.Option("--model", metavar="NAME", help="--to mlx: the adapter's base.")] = None,
    quantised: Annotated[bool, typer.Option("--quantised", help="--to fused: quantise again.")] = False,
    kind: Annotated[
        Literal["F16", "BF16", "Q8_0"], typer.Option("--kind", help="--to gguf: how it is stored.")
    ] = "F16",
    as_json: options.AsJson = False,
) -> None:
    """Take an adapter where it is needed.

    Example: sdpo export runs/first --to peft
    """
    from sdpo_mlx import exports
    from sdpo_mlx.errors import ConfigError

    # `.` has no name of its own
    named = target if target.name not in ("", "..") else target.resolve()
    place = out or named.with_name(f"{named.name}-{to}")
    if to == "mlx" and model is None:
        if (target / "config.yaml").is_file():  # a run
            fix = f"use it as it is: mlx_lm.generate --model BASE --adapter-path {target}"
            raise ConfigError(f"{target} is in mlx-lm's layout already", where="--to mlx", fix=fix)
        raise ConfigError("the base of the adapter is not named", where="--model", fix="add --model NAME")
    with render.status("", as_json) as doing:
        doing(f"exporting {target}")
        if to == "mlx":
            made = exports.export_mlx(target, str(model), place)
        elif to == "fused":
            made = exports.export_fused(target, place, quantised=quantised, doing=doing)
        elif to == "gguf":
            made = exports.export_gguf(target, place, kind, doing)
        elif to == "gguf-lora":
            made = exports.export_gguf_lora(target, place)
        else:
            made = exports.export_peft(target, place)
    render.warn(made.warnings)
    if as_json:
        said = {"next": dict(made.next_steps), "warnings": list(made.warnings)}
        render.document({"folder": str(made.folder), **made.figures, **said})
        return
    told = [
        f"{name}: {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
        for name, value in made.figures.items()
    ]
    steps = [f"  {line}" for line in render.table(("", ""), [*made.next_steps.items()])[1:]]
    render.result([f"wrote {made.folder} ({', '.join(told)})", "next, in", *steps])
