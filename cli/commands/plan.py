"""`sdpo plan`: memory and time of a step, estimated before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.backends.command_size import EvaluationSizes
    from sdpo_mlx.backends.step_time import Speed
    from sdpo_mlx.config import Config
    from sdpo_mlx.models.dimensions import ModelDims

GB = 2**30


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
    from sdpo_mlx.runs.targets import named_config

    flags = options.settings(task=task, data=data, max_tokens=max_tokens, group_size=group_size, backend=backend)
    cfg = named_config(options.one_target(target, model, run), config, sets or [], flags)
    found = planned(cfg, memory, prompt_tokens)
    render.output(found, as_lines(found), as_json)
    if not found["fits"]:
        raise typer.Exit(1)


def planned(cfg: Config, size: str | None, prompt_tokens: int | None, shape: ModelDims | None = None) -> dict[str, Any]:
    """Return the plan as a document, in bytes and seconds; `shape` replaces the dimensions of the model's name."""
    from sdpo_mlx.backends.memory_plan import bounded, choose, limit_of, memory, number_bytes, remedies, work_of
    from sdpo_mlx.backends.preflight import shares_prompts
    from sdpo_mlx.backends.step_time import times
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.core.hardware import bytes_of
    from sdpo_mlx.models.dimensions import ModelDims
    from sdpo_mlx.models.resolve import configuration
    from sdpo_mlx.rl.components import evaluation_sizes

    if cfg.model.backend == "torch":
        fix = "plan with --backend mlx, or start training: torch halves its micro-batches if memory runs out"
        raise ConfigError("the memory of the torch backend is not estimated", where="model.backend", fix=fix)
    limit = limit_of(cfg, bytes_of(size) if size else None)
    config = {} if shape else configuration(cfg.model.name)
    shape = shape or ModelDims.of(config, cfg.model.name)
    prompt, context = _lengths(cfg, prompt_tokens, shape.context)
    work = work_of(cfg, prompt, context, number_bytes(cfg.model), shares=shares_prompts(config))
    sizes = evaluation_sizes(cfg, config, shape)
    work = bounded(choose(shape, cfg, work, limit), sizes)
    machine, speed = _speed()
    held, spent = memory(shape, cfg, work), times(shape, work, machine)
    fits = held.highest <= limit
    ways = [] if fits else remedies(shape, cfg, work, limit)
    return {
        "model": cfg.model.name,
        "note": shape.note,
        "parameters": shape.parameters,
        "trainable": shape.adapter_parameters(cfg.model.adapter),
        "work": vars(work),
        "limit": limit,
        "device": _device(cfg, sizes),
        "always": held.always,
        "phases": {name: {"peak": held.peak(name), **items} for name, items in held.phases.items()},
        "peak": held.highest,
        "fits": fits,
        "dominant": held.dominant,
        "remedies": [{"change": change, "peak": peak, "fits": peak <= limit} for change, peak in ways],
        "seconds": {**vars(spent), "total": spent.total, "dominant": spent.dominant},
        "speed": speed,
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


def _lengths(cfg: Config, prompt_tokens: int | None, context_length: int) -> tuple[int, int]:
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.models.resolve import tokenizer_folder
    from sdpo_mlx.rl.components import FEEDBACK_TOKENS, lengths
    from sdpo_mlx.tasks.registry import open_task

    if prompt_tokens is not None:
        return prompt_tokens, prompt_tokens + cfg.rollout.max_tokens + FEEDBACK_TOKENS
    # Token counts of another tokenizer are close enough if the model's own is not downloaded.
    folder = tokenizer_folder(cfg.model.name)
    chat = load_chat(folder, thinking=cfg.model.thinking, template=cfg.model.chat_template)
    return lengths(chat, open_task(cfg, grades=False).task, cfg, context_length)


def as_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines of the text output."""
    work, seconds = found["work"], found["seconds"]
    rows = [[name, size(items["peak"]), _items(items)] for name, items in found["phases"].items()]
    how = "one graph" if work["keep"] else "block by block"
    phases = ", ".join(f"{name} {render.duration(seconds[name])}" for name in ("prefill", "decode", "teacher", "learn"))
    head = [
        f"{found['model']}: {found['parameters'] / 1e6:,.1f} M parameters, {found['trainable'] / 1e6:,.2f} M trainable",
        f"{work['problems']} problems x {work['group']} rollouts of {work['answer']} tokens; "
        f"prompts up to {work['prompt']}, teacher sequences up to {work['context']}",
        f"always    {size(sum(found['always'].values()))} ({_items(found['always'])})",
        "",
        *render.table(["phase", "peak", "parts"], rows),
        "",
        f"peak      {size(found['peak'])} of {size(found['limit'])}: {'fits' if found['fits'] else 'does not fit'}; "
        f"largest part: {found['dominant']}",
        f"chosen    micro-batches of {work['micro_batch']} tokens, {work['concurrency']} rollouts at once, {how}",
        f"device    {_device_line(found['device'])}",
        f"time      {render.duration(seconds['total'])} per step here with rollouts of full length: {phases}",
        f"          {_speed_line(found['speed'])}",
    ]
    ways = [
        f"  {way['change']}  ({size(way['peak'])}{'' if way['fits'] else ', does not fit'})"
        for way in found["remedies"]
    ]
    note = [f"note      {found['note']}"] if found["note"] else []
    return [*head, *note, *(["", "to reduce memory:", *ways] if ways else [])]


def _items(items: dict[str, float]) -> str:
    return ", ".join(f"{name} {size(held)}" for name, held in items.items() if name != "peak" and held)


def size(held: float) -> str:
    """Return bytes in MB or GB."""
    return f"{held / GB:.1f} GB" if held >= GB else f"{held / 2**20:.0f} MB"
