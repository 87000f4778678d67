"""`sdpo export`: an adapter for other tools, a fused model, or a PEFT adapter brought here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer
from sdpo_cli import completion, options
from sdpo_cli.terminal import render

BELONGS: Mapping[str, str] = MappingProxyType({"model": "mlx", "quantised": "fused", "kind": "gguf"})


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
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="New folder; default: TARGET-KIND beside the target.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="With --to mlx: the adapter's base.")
    ] = None,
    quantised: Annotated[bool, typer.Option("--quantised", help="With --to fused: quantise again.")] = False,
    kind: Annotated[
        Literal["F16", "BF16", "Q8_0"] | None,
        typer.Option("--kind", help="With --to gguf: how weights are stored; default: F16."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Take a run's adapter to other tools, or PEFT's here; says what to type there.

    Example: sdpo export runs/first --to peft
    """
    from sdpo_mlx.runs.export import formats

    # `.` has no name of its own
    named = target if target.name not in ("", "..") else target.resolve()
    _agree(target, to, model=model, quantised=quantised, kind=kind)
    place = out or named.with_name(f"{named.name}-{to}")
    with render.status("", as_json) as doing:
        doing(f"exporting {target}")
        if to == "mlx":
            made = formats.export_mlx(target, str(model), place)
        elif to == "fused":
            made = formats.export_fused(target, place, quantised=quantised, doing=doing)
        elif to == "gguf":
            made = formats.export_gguf(target, place, kind or "F16", doing)
        elif to == "gguf-lora":
            made = formats.export_gguf_lora(target, place)
        else:
            made = formats.export_peft(target, place)
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


def _agree(target: Path, to: str, **given: Any) -> None:
    """Refuse what another --to is asked with, and --to mlx without its base."""
    from sdpo_mlx.core.errors import ConfigError

    for name, kind in BELONGS.items():
        if given[name] and to != kind:
            raise ConfigError(
                f"--{name} means nothing with --to {to}", where="sdpo export", fix=f"it is for --to {kind}"
            )
    if to == "mlx" and given["model"] is None:
        if (target / "config.yaml").is_file():  # a run
            fix = f"use it as it is: mlx_lm.generate --model BASE --adapter-path {target}"
            raise ConfigError(f"{target} is in mlx-lm's layout already", where="--to mlx", fix=fix)
        raise ConfigError("the base of the adapter is not named", where="--model", fix="add --model NAME")
