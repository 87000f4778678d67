"""`sdpo plan`: memory and time of a step, estimated before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdpo_mlx.backends.command_size import EvaluationSizes
    from sdpo_mlx.backends.memory_plan import Workload
    from sdpo_mlx.backends.step_time import Speed
    from sdpo_mlx.config import Config
    from sdpo_mlx.models.dimensions import ModelDims
    from sdpo_mlx.tasks.base import Task

GB = 2**30
DAY = 86_400


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.AnyTarget = None,
    *,
    model: options.Model = None,
    run: options.Run = None,
    task: options.TaskName = None,
    data: options.Data = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Plan for this much memory, for example 16GB; default: this machine."),
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest prompt; default: measured.")
    ] = None,
    ranks: Annotated[
        int, typer.Option(metavar="N", min=1, help="Ranks that split the base, with model.shard=true.")
    ] = 1,
    max_tokens: options.MaxTokens = None,
    group_size: options.GroupSize = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    backend: options.Backend = None,
    as_json: options.AsJson = False,
) -> None:
    """Estimate memory and time of a training step, and list settings that make it fit.

    Exit code 1 if it does not fit.

    Example: sdpo plan --model tiny --task tiny --memory 16GB
    """
    from sdpo_mlx.backends.fit import PROMPT
    from sdpo_mlx.config import TaskConfig
    from sdpo_mlx.runs.targets import named_config, run_or_none

    flags = options.settings(task=task, data=data, max_tokens=max_tokens, group_size=group_size, backend=backend)
    name = options.one_target(target, model, run)
    cfg = named_config(name, config, sets or [], flags)
    no_task = cfg.task.name == TaskConfig().name and not (task or config or run_or_none(name))
    if assumed := prompt_tokens is None and no_task:
        prompt_tokens = PROMPT
    found = planned(cfg, memory, prompt_tokens, ranks=ranks) | {"prompt_assumed": assumed}
    render.output(found, as_lines(found), as_json)
    if not found["fits"]:
        raise typer.Exit(1)


def planned(
    cfg: Config,
    size: str | None,
    prompt_tokens: int | None,
    config: Mapping[str, Any] | None = None,
    ranks: int = 1,
) -> dict[str, Any]:
    """Return the plan as a document, in bytes and seconds; `config` replaces the configuration of the model's name.

    `seconds` are null for another machine (`size`), and for torch. Of several `ranks` it is the plan of one.
    """
    from sdpo_mlx.backends.fit import evaluation_sizes, smaller_alias, step_work
    from sdpo_mlx.backends.memory_plan import limit_of, memory, remedies
    from sdpo_mlx.backends.preflight import FEEDBACK
    from sdpo_mlx.backends.step_time import times
    from sdpo_mlx.core.hardware import bytes_of
    from sdpo_mlx.models.dimensions import ModelDims
    from sdpo_mlx.models.resolve import planned_configuration
    from sdpo_mlx.tasks.registry import open_task

    torch = cfg.model.backend == "torch"
    limit = limit_of(cfg, bytes_of(size) if size else None)
    config = planned_configuration(cfg.model.name, cfg.model.backend) if config is None else config
    shape = ModelDims.of(config, cfg.model.name)
    task, sizes = None, (prompt_tokens or 0, (prompt_tokens or 0) + cfg.rollout.max_tokens + FEEDBACK)
    if prompt_tokens is None:
        task = open_task(cfg, grades=False).task
        sizes = _lengths(cfg, task, shape.context)
    work = step_work(shape, cfg, config, limit, sizes, ranks)
    held = memory(shape, cfg, work)
    fits, seconds, speed = held.highest <= limit, None, None
    if size is None and not torch:
        machine, speed = _speed()
        spent = times(shape, work, machine)
        seconds = {**vars(spent), "total": spent.total, "dominant": spent.dominant}
        seconds |= _beside_steps(cfg, shape, work, machine, task)
    ways = [] if fits else remedies(shape, cfg, work, limit)
    return {
        "model": cfg.model.name,
        "backend": "torch" if torch else "mlx",
        "note": shape.note,
        "parameters": shape.parameters,
        "trainable": shape.adapter_parameters(cfg.model.adapter),
        "work": vars(work),
        "limit": limit,
        "device": None if torch else _device(cfg, evaluation_sizes(cfg, config, shape)),
        "always": held.always,
        "phases": {name: {"peak": held.peak(name), **items} for name, items in held.phases.items()},
        "peak": held.highest,
        "fits": fits,
        "dominant": held.dominant,
        "remedies": [{"change": change, "peak": peak, "fits": peak <= limit} for change, peak in ways],
        "smaller": None if fits else smaller_alias(cfg, shape.parameters, limit),
        "steps": cfg.train.steps,
        "seconds": seconds,
        "speed": speed,
    }


def _beside_steps(
    cfg: Config, shape: ModelDims, work: Workload, machine: Speed, task: Task | None
) -> dict[str, float | None]:
    """Return the seconds of one evaluation (null without a task), their number, and the seconds of forgetting.

    A run is also evaluated before training, and its best adapter once more.
    """
    from sdpo_mlx.backends.step_time import sampling
    from sdpo_mlx.evaluation.forgetting import TOKENS, general_prompts
    from sdpo_mlx.evaluation.spec import held_out_in_training
    from sdpo_mlx.runs.pace import evaluations

    problems = len(held_out_in_training(task, cfg.eval)) if task else 0
    rollouts = problems, cfg.eval.samples, cfg.eval.max_tokens or cfg.rollout.max_tokens
    return {
        "evaluation": sampling(shape, work, machine, rollouts) if problems else None,
        "evaluations": evaluations(0, cfg.train.steps, cfg.train.eval_every) + 2,
        "forgetting": sampling(shape, work, machine, (len(general_prompts()), 1, TOKENS)),
    }


def _speed() -> tuple[Speed, dict[str, Any]]:
    """Return this machine's speed, and where it is from: the self-test, or two rates that take two seconds."""
    from sdpo_mlx.backends.mlx.device import block_gigaflops, gigabytes, has_metal
    from sdpo_mlx.backends.mlx.self_test.speed import measured
    from sdpo_mlx.backends.step_time import Machine

    if found := measured():
        return found, {"source": "measured", "date": found.date}
    return Machine(1e9 * block_gigaflops(), 1e9 * gigabytes(), has_metal()), {"source": "estimated", "date": None}


def _speed_line(found: dict[str, Any]) -> str:
    if found["source"] == "measured":
        return f"measured on this machine on {found['date']}"
    return "estimated; `sdpo doctor --self-test` measures this machine"


def _device(cfg: Config, sizes: EvaluationSizes) -> dict[str, Any]:
    """Return what MLX keeps to here: bytes (null without a GPU), and what one evaluation covers (null: no bound)."""
    import math

    from sdpo_mlx.backends.mlx.limits import limit_bytes

    limits, free = limit_bytes(cfg.memory), math.isinf(sizes.limit)
    return {
        "memory_limit": limits.get("memory"),
        "cache_limit": limits.get("cache"),
        "wired": cfg.memory.wired,
        "evaluation_gflop": None if free else sizes.limit / 1e9,
        "prompt_tokens_at_once": None if free else sizes.prefill,
        "micro_batch_at_most": None if free else sizes.learning,
    }


def _device_line(found: dict[str, Any]) -> str:
    if found["memory_limit"] is None:
        limits = "no memory limits on this device"
    else:
        limits = f"MLX stays under {size(found['memory_limit'])}, cache {size(found['cache_limit'])}"
        limits += f", wired memory {found['wired']}"
    if found["evaluation_gflop"] is None:
        return limits
    prompt, batch = found["prompt_tokens_at_once"], found["micro_batch_at_most"]
    return f"{limits}; {found['evaluation_gflop']:,.0f} GFLOP at once: {prompt} prompt tokens, micro-batches to {batch}"


def _lengths(cfg: Config, task: Task, context_length: int) -> tuple[int, int]:
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.models.resolve import tokenizer_folder
    from sdpo_mlx.rl.components import lengths

    # Token counts of another tokenizer are close enough if the model's own is not downloaded.
    folder = tokenizer_folder(cfg.model.name)
    chat = load_chat(folder, thinking=cfg.model.thinking, template=cfg.model.chat_template)
    return lengths(chat, task, cfg, context_length)


def as_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines of the text output."""
    work, assumed = found["work"], " (assumed without --task)" if found.get("prompt_assumed") else ""
    rows = [[name, size(items["peak"]), _items(items)] for name, items in found["phases"].items()]
    recomputed = "blocks recomputed" if found["backend"] == "torch" else "block by block"
    how = "one graph" if work["keep"] else recomputed
    head = [
        f"{found['model']}: {found['parameters'] / 1e6:,.1f} M parameters, {found['trainable'] / 1e6:,.2f} M trainable",
        f"{work['problems']} problems x {work['group']} rollouts of {work['answer']} tokens; "
        f"prompts up to {work['prompt']}{assumed}, teacher sequences up to {work['context']}",
        f"always    {size(sum(found['always'].values()))} ({_items(found['always'])})",
        "",
        *render.table(["phase", "peak", "parts"], rows),
        "",
        f"peak      {size(found['peak'])} of {size(found['limit'])}: {'fits' if found['fits'] else 'does not fit'}; "
        f"largest part: {found['dominant']}",
        f"chosen    micro-batches of {work['micro_batch']} tokens, {work['concurrency']} rollouts at once, {how}",
    ]
    if work["ranks"] > 1:
        head.append(f"ranks     these are the figures of one of {work['ranks']} ranks, each with a part of every block")
    if found["backend"] == "torch":
        then = "a step becomes smaller" if work["ranks"] == 1 else "the run is saved and ends"
        head.append(f"torch     not measured on a card; when a card runs out of memory, {then}")
    else:
        head.append(f"device    {_device_line(found['device'])}")
    head += _time_lines(found)
    ways = [
        f"  {way['change']}  ({size(way['peak'])}{'' if way['fits'] else ', does not fit'})"
        for way in found["remedies"]
    ]
    if smaller := found["smaller"]:
        ways.append(f"  --model {smaller['name']}  ({size(smaller['peak'])}, the next smaller model that fits)")
    note = [f"note      {found['note']}"] if found["note"] else []
    return [*head, *note, *(["", "to reduce memory:", *ways] if ways else [])]


def _time_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines on time; none for another machine, and for torch."""
    seconds, steps = found["seconds"], found["steps"]
    if seconds is None:
        return []
    phases = ", ".join(f"{name} {render.duration(seconds[name])}" for name in ("prefill", "decode", "teacher", "learn"))
    one, count = seconds["evaluation"], seconds["evaluations"]
    whole = steps * seconds["total"] + count * (one or 0.0) + seconds["forgetting"]
    run = f"{render.plural(steps, 'step')} at that length take about {_long(whole)}"
    if one is not None:
        run += f" with {count} evaluations of {_long(one)} each"
    return [
        f"time      {render.duration(seconds['total'])} per step here with rollouts of full length: {phases}",
        f"          {run}{': impractical on this machine' if whole > DAY else ''}",
        f"          {_speed_line(found['speed'])}",
    ]


def _long(seconds: float) -> str:
    return f"{seconds / DAY:,.0f} days" if seconds > 2 * DAY else render.duration(seconds)


def _items(items: dict[str, float]) -> str:
    return ", ".join(f"{name} {size(held)}" for name, held in items.items() if name != "peak" and held)


def size(held: float) -> str:
    """Return bytes in MB or GB."""
    return f"{held / GB:.1f} GB" if held >= GB else f"{held / 2**20:.0f} MB"
