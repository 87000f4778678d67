"""The options that several commands share, under one name and with one meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from sdpo_cli import completion

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Alias, folder, or hub repository; tiny where none is named.",
        autocompletion=completion.models,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="A name of `sdpo tasks list`, or a file of yours.",
        autocompletion=completion.tasks,
    ),
]
Data = Annotated[str | None, typer.Option("--data", metavar="FILE", help="Problems of your own: a file, or hub:NAME.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="Settings in YAML, a run's folder, or a shipped preset's name.",
        autocompletion=completion.presets,
    ),
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of `sdpo config show`; repeatable.")
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer, in tokens.")]
GroupSize = Annotated[int | None, typer.Option("--group-size", metavar="N", min=1, help="Answers for each problem.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", metavar="X", help="AdamW's learning rate.")]
Problems = Annotated[
    int | None, typer.Option("--problems", metavar="N", min=1, help="Only the first N held-out problems.")
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", min=1, help="Answers for each problem.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, no live view.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Everything random follows from it.")]
SandboxKind = Annotated[
    str | None,
    typer.Option(
        "--sandbox",
        metavar="KIND",
        help="auto, bubblewrap, seatbelt, container; unconfined gives up containment.",
        autocompletion=completion.kinds("sandbox.kind"),
    ),
]
Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="KIND",
        help="sdpo, grpo, hybrid.",
        autocompletion=completion.kinds("objective.kind"),
    ),
]
Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        metavar="KIND",
        help="ema, trust_region, frozen, live.",
        autocompletion=completion.kinds("teacher.kind"),
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend", metavar="NAME", help="auto, mlx, torch.", autocompletion=completion.kinds("model.backend")
    ),
]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="A run folder, or a model.", autocompletion=completion.targets)
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=completion.runs)]
