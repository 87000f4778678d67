"""The options that several commands share, under one name and with one meaning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer
from sdpo_cli import completion


def _choice(option: str, key: str, note: str = "") -> Any:
    """An option for a setting with fixed choices."""
    names = ", ".join(completion.KINDS[key])
    return typer.Option(option, metavar="KIND", help=f"{names}{note}.", autocompletion=completion.kinds(key))


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Alias, folder, or hub repository; default: tiny.",
        autocompletion=completion.models,
    ),
]
ModelName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Alias, folder, GGUF, owner/name[@commit] on the hub, or a name from `sdpo models list`.",
        autocompletion=completion.models,
    ),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="A name from `sdpo tasks list`, or your Python file.",
        autocompletion=completion.tasks,
    ),
]
Data = Annotated[str | None, typer.Option("--data", metavar="FILE", help="Your problems: a file, or hub:NAME.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "-c",
        "--config",
        metavar="FILE",
        help="YAML config, run folder, or preset name.",
        autocompletion=completion.presets,
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting from `sdpo config show`; repeatable.",
        autocompletion=completion.settings,
    ),
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", metavar="N", min=1, help="Maximum tokens of a rollout.")]
GroupSize = Annotated[int | None, typer.Option("--group-size", metavar="N", min=1, help="Rollouts per problem.")]
LearningRate = Annotated[float | None, typer.Option("--learning-rate", metavar="X", help="AdamW learning rate.")]
Problems = Annotated[
    int | None, typer.Option("--problems", metavar="N", min=1, help="Only the first N held-out problems.")
]
ProblemId = Annotated[str | None, typer.Option("--problem", metavar="ID", help="Problem id; default: the first.")]
Adapter = Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="Adapter for the model.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, no live view.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Random seed.")]
SandboxKind = Annotated[str | None, _choice("--sandbox", "sandbox.kind", " (no isolation)")]
Objective = Annotated[str | None, _choice("--objective", "objective.kind")]
Teacher = Annotated[str | None, _choice("--teacher", "teacher.kind")]
Backend = Annotated[str | None, _choice("--backend", "model.backend")]
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="A run folder, or a model; also as --run or --model.", autocompletion=completion.targets
    ),
]
# Of commands that have --model: the same, without the option.
AnyTarget = Annotated[
    str | None,
    typer.Argument(
        metavar="[TARGET]", help="A model or a run folder, as --model or --run.", autocompletion=completion.targets
    ),
]
Run = Annotated[
    Path | None,
    typer.Option(
        "--run",
        metavar="RUN",
        help="A run folder: its model with its adapter, and its settings.",
        autocompletion=completion.runs,
    ),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", autocompletion=completion.runs)]

# The setting that each option of the same name sets.
KEYS: Mapping[str, str] = MappingProxyType(
    {
        "model": "model.name",
        "task": "task.name",
        "data": "task.data",
        "steps": "train.steps",
        "group_size": "rollout.group_size",
        "max_tokens": "rollout.max_tokens",
        "num_layers": "model.adapter.layers",
        "learning_rate": "train.learning_rate",
        "grad_checkpoint": "train.grad_checkpoint",
        "objective": "objective.kind",
        "teacher": "teacher.kind",
        "backend": "model.backend",
        "seed": "train.seed",
        "sandbox": "sandbox.kind",
    }
)
# Hidden names of options, accepted by every command that has the option: earlier ones, and one of mlx-lm.
ALIASES: Mapping[str, str] = MappingProxyType(
    {"samples": "group-size", "answers": "group-size", "rollouts": "group-size", "n": "group-size", "iters": "steps"}
)


def one_target(target: str | None, model: str | None, run: Path | None) -> str | None:
    """Return the one model or run that a command was given; raises ConfigError for several."""
    from sdpo_cli.grammar import options_for

    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import is_run, refuse_other_folder

    given = {"TARGET": target, "--model": model, "--run": run and str(run)}
    named = {where: name for where, name in given.items() if name is not None}
    if len(named) > 1:
        raise ConfigError("more than one model or run", where=" and ".join(named), fix="keep one of them")
    if run is not None and not is_run(run):
        refuse_other_folder(run)
    if target is not None and (meant := options_for(target)) and not {"--run", "--model"} & {*meant}:
        raise ConfigError(f"{target!r} is neither a model nor a run", fix=f"Did you mean {meant[0]} {target}?")
    return next(iter(named.values()), None)


def settings(**values: Any) -> dict[str, Any]:
    """Return the values of options as dotted settings; None for an option that was not given."""
    return {KEYS[name]: value for name, value in values.items()}
