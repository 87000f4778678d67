"""`sdpo models check`: what a model's configuration alone shows, before its weights are downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.commands.plan import planned, size
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sdpo_mlx.config import Config


def command(
    name: options.ModelName,
    backend: options.Backend = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to check for, for example 16GB; default: this machine.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check from its configuration alone whether a model can be trained here, and how.

    Of a hub repository only config.json and tokenizer_config.json are downloaded. Exit code 2 if it is refused.

    Example: sdpo models check tiny
    """
    from sdpo_mlx.config.resolve import resolve

    cfg = resolve(None, [], {"model.name": name, "model.backend": backend}).config
    found = checked(cfg, memory)
    render.output(found, as_lines(found), as_json)
    if found["refused"]:
        raise typer.Exit(2)


def checked(cfg: Config, memory: str | None) -> dict[str, Any]:
    """Return what the configuration of `cfg.model` shows, as a document; bytes and seconds, None if unknown."""
    from sdpo_mlx.backends.architectures import model_type
    from sdpo_mlx.backends.fit import PROMPT
    from sdpo_mlx.backends.preflight import REFUSED, expected_learning, quantization_method, readable_dimensions
    from sdpo_mlx.models import resolve
    from sdpo_mlx.runs.export.formats import exports_of

    name, backend = cfg.model.name, "torch" if cfg.model.backend == "torch" else "mlx"
    source, target = resolve.meaning(name, backend)
    config, origin = _configuration(name, backend)
    learning, reason = expected_learning(config, backend)
    refused = _refusals(cfg, config, files=origin == "model")
    dims = readable_dimensions(config, name)
    plan = planned(cfg, memory, PROMPT, config) if dims and learning != REFUSED else None
    if plan and not plan["fits"] and backend == "mlx":  # for torch it is an estimate
        ways = " or ".join(each["change"] for each in plan["remedies"] if each["fits"])
        what = f"a step needs {size(plan['peak'])}, but the limit is {size(plan['limit'])}"
        refused.append({"what": what, "fix": f"try {ways}" if ways else "use a smaller model"})
    own = config.get("quantization")
    return {
        "name": name,
        "target": target,
        "source": source,
        "configuration": origin,
        "backend": backend,
        "architecture": model_type(config),
        "vision": any(key in config for key in ("vision_config", "audio_config")),
        "quantization": _stored(own) if own else quantization_method(config),
        "parameters": dims.parameters if dims else None,
        "learning": learning,
        "reason": reason,
        "exports": [] if refused else exports_of(config),
        "memory": plan["peak"] if plan else None,
        "limit": plan["limit"] if plan else None,
        "seconds": plan["seconds"]["total"] if plan and plan["seconds"] else None,
        "refused": refused,
    }


def _configuration(name: str, backend: str) -> tuple[Mapping[str, Any], str]:
    """The configuration, and where it is from: the model itself, or what is shipped if the hub does not answer."""
    from sdpo_mlx.models import aliases, resolve
    from sdpo_mlx.models.hub import HubUnreachableError

    try:
        return resolve.own_configuration(name, backend), "model"
    except HubUnreachableError:
        shipped = resolve.planned_configuration(name, backend) if name in aliases.TABLE else {}
        if not shipped:
            raise
        return shipped, "shipped"


def _refusals(cfg: Config, config: Mapping[str, Any], *, files: bool) -> list[dict[str, str]]:
    """What the checks before a download refuse, memory excepted: that is in the plan."""
    from sdpo_mlx.backends.preflight import check_configuration, check_files
    from sdpo_mlx.core.errors import ConfigError

    found = []
    checks = [lambda: check_configuration(config, cfg.model.name, cfg.model.backend)]
    for check in [*checks, lambda: check_files(cfg.model.name, cfg.model.backend)] if files else checks:
        try:
            check()
        except ConfigError as error:
            found.append({"what": error.what, "fix": error.fix})
    return found


def _stored(quantization: Mapping[str, Any]) -> str:
    """How mlx quantized the weights, for example `4-bit affine, mixed`."""
    mixed = any(isinstance(each, dict) for each in quantization.values())
    kind = f"{quantization.get('bits')}-bit {quantization.get('mode', 'affine')}"
    return f"{kind}, mixed" if mixed else kind


def _learning(found: Mapping[str, Any]) -> str:
    return found["reason"] if found["learning"] == "unknown" else str(found["learning"])


def as_lines(found: dict[str, Any]) -> list[str]:
    """Return the lines of the text output."""
    arrow = f" -> {found['target']}" if found["target"] != found["name"] and found["source"] == "hub" else ""
    shipped = " (shipped: the hub did not answer)" if found["configuration"] == "shipped" else ""
    part = ", vision-language: the language part is trained, the rest is kept" if found["vision"] else ""
    rows = [
        ("model", f"{found['name']}{arrow}"),
        ("configuration", f"{found['architecture'] or 'without model_type'}{part}{shipped}"),
        ("weights", found["quantization"] or "not quantized"),
        ("parameters", f"{found['parameters'] / 1e6:,.1f} M" if found["parameters"] else "unknown"),
        ("learning", f"{_learning(found)} ({found['backend']})"),
        ("exports", ", ".join(found["exports"]) or "none, since the model is refused"),
    ]
    if found["memory"] is not None:
        fits = "fits" if found["memory"] <= found["limit"] else "does not fit"
        how = ", not measured on a card" if found["backend"] == "torch" else ""
        rows.append(("memory", f"{size(found['memory'])} of {size(found['limit'])} for a step: {fits}{how}"))
        if found["seconds"] is not None:
            rows.append(("time", f"{render.duration(found['seconds'])} per step here with rollouts of full length"))
    rows += [("refused", f"{each['what']}; {each['fix']}") for each in found["refused"]]
    if not found["refused"]:
        backend = " --backend torch" if found["backend"] == "torch" else ""
        rows.append(("next", f"sdpo train --model {found['name']} --task code{backend}"))
    return render.columns(rows)
