"""`sdpo plan`: what a step will hold and how long it will take, before any weight is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.backends.step_time import Machine
    from sdpo_mlx.config import Config

GB = 2**30


def command(  # noqa: PLR0913 - typer reads the options off the signature
    *,
    model: options.Model = None,
    task: options.TaskName = None,
    data: options.Data = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for a machine with SIZE, as 16GB; default: this one.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Tokens of the longest prompt; default: measured.")
    ] = None,
    max_tokens: options.MaxTokens = None,
    group_size: options.GroupSize = None,
    config: options.ConfigFile = None,
    sets: options.Sets = None,
    as_json: options.AsJson = False,
) -> None:
    """Show memory and time of a step before it starts, and what would make it fit; ends with 1 where it does not.

    Example: sdpo plan --model tiny --task tiny --memory 16GB
    """
    from sdpo_mlx.config.resolve import resolve

    flags = {
        "model.name": model,
        "task.name": task,
        "task.data": data,
        "rollout.max_tokens": max_tokens,
        "rollout.group_size": group_size,
    }
    found = planned(resolve(config, sets or [], flags).config, memory, prompt_tokens)
    if as_json:
        render.document(found)
    else:
        render.result(lines(found))
    if not found["fits"]:
        raise typer.Exit(1)


def planned(cfg: Config, size: str | None, prompt_tokens: int | None) -> dict[str, Any]:
    """The plan as a document: bytes and seconds."""
    from sdpo_mlx.backends.memory_plan import choose, limit_of, memory, number_bytes, remedies, work_of
    from sdpo_mlx.backends.step_time import times
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.core.hardware import bytes_of
    from sdpo_mlx.models.dimensions import ModelDims
    from sdpo_mlx.models.resolve import configuration

    if cfg.model.backend == "torch":
        fix = "leave --backend out, or start: torch halves its micro-batches where memory runs out"
        raise ConfigError("what torch holds is not planned", where="model.backend", fix=fix)
    limit = limit_of(cfg, bytes_of(size) if size else None)
    shape = ModelDims.of(configuration(cfg.model.name), cfg.model.name)
    prompt, context = _lengths(cfg, prompt_tokens, shape.context)
    work = choose(shape, cfg, work_of(cfg, prompt, context, number_bytes(cfg.model)), limit)
    held, spent = memory(shape, cfg, work), times(shape, work, here())
    fits = held.highest <= limit
    ways = [] if fits else remedies(shape, cfg, work, limit)
    return {
        "model": cfg.model.name,
        "parameters": shape.parameters,
        "trainable": shape.adapter_parameters(cfg.model.adapter),
        "work": vars(work),
        "limit": limit,
        "always": held.always,
        "phases": {name: {"peak": held.peak(name), **items} for name, items in held.phases.items()},
        "peak": held.highest,
        "fits": fits,
        "dominant": held.dominant,
        "remedies": [{"change": change, "peak": peak, "fits": peak <= limit} for change, peak in ways],
        "seconds": {**vars(spent), "total": spent.total, "dominant": spent.dominant},
    }


def here() -> Machine:
    """This machine's rates, measured in two seconds."""
    from sdpo_mlx.backends.mlx.device import block_gigaflops, gigabytes
    from sdpo_mlx.backends.step_time import Machine

    return Machine(1e9 * block_gigaflops(), 1e9 * gigabytes())


def _lengths(cfg: Config, prompt_tokens: int | None, context_length: int) -> tuple[int, int]:
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.models.resolve import tokenizer_folder
    from sdpo_mlx.rl.components import FEEDBACK_TOKENS, lengths
    from sdpo_mlx.tasks.registry import open_task

    if prompt_tokens is not None:
        return prompt_tokens, prompt_tokens + cfg.rollout.max_tokens + FEEDBACK_TOKENS
    # Another tokenizer's count is close enough where the model's own is not here.
    chat = load_chat(tokenizer_folder(cfg.model.name), thinking=cfg.model.thinking)
    return lengths(chat, open_task(cfg).task, cfg, context_length)


def lines(found: dict[str, Any]) -> list[str]:
    """The plan for a person."""
    work, seconds = found["work"], found["seconds"]
    rows = [[name, size(items["peak"]), _items(items)] for name, items in found["phases"].items()]
    how = "one graph" if work["keep"] else "block by block"
    phases = ", ".join(f"{name} {render.duration(seconds[name])}" for name in ("prefill", "decode", "teacher", "learn"))
    head = [
        f"{found['model']}: {found['parameters'] / 1e6:,.1f} M parameters, {found['trainable'] / 1e6:,.2f} M trained",
        f"{work['problems']} problems x {work['group']} answers of {work['answer']} tokens; "
        f"prompts to {work['prompt']}, the teacher's to {work['context']}",
        f"always    {size(sum(found['always'].values()))} ({_items(found['always'])})",
        "",
        *render.table(["phase", "peak", "of it"], rows),
        "",
        f"peak      {size(found['peak'])} of {size(found['limit'])}: {'fits' if found['fits'] else 'does not fit'}; "
        f"most is {found['dominant']}",
        f"chosen    micro-batches of {work['micro_batch']} tokens, {work['concurrency']} answers at once, {how}",
        f"time      {render.duration(seconds['total'])} a step here with answers of full length: {phases}",
    ]
    if found["remedies"]:
        head += ["", "what would help:"]
    for each in found["remedies"]:
        head.append(f"  {each['change']}  ({size(each['peak'])}{'' if each['fits'] else ', not enough'})")
    return head


def _items(items: dict[str, float]) -> str:
    return ", ".join(f"{name} {size(held)}" for name, held in items.items() if name != "peak" and held)


def size(held: float) -> str:
    """Bytes for a person."""
    return f"{held / GB:.1f} GB" if held >= GB else f"{held / 2**20:.0f} MB"
