"""What leaves a run: its adapter for PEFT, a fused model, or a PEFT adapter in mlx-lm's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx import models
from sdpo_mlx.chat import load_chat
from sdpo_mlx.errors import ConfigError
from sdpo_mlx.peft_layout import CONFIG, WEIGHTS, from_peft, read_peft, to_peft
from sdpo_mlx.run_folder import RunFolder
from sdpo_mlx.storage import trouble, write_bytes, write_text
from sdpo_mlx.targets import run_config
from sdpo_mlx.tasks.registry import open_task

MOST_LOST = 0.05  # share of what the adapter changed that a fused model may lose before it is worth a warning
PROMPTS = 4


@dataclass(frozen=True)
class Exported:
    """Where it lies, what to type next, what it measured, and what to beware of."""

    folder: Path
    next_line: str
    figures: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def export_peft(run: Path, out: Path) -> Exported:
    """The run's adapter in PEFT's layout; raises ConfigError where it has no such form."""
    from safetensors.numpy import save

    arrays, config = RunFolder(run).load_adapter()
    base = models.resolve(run_config(run).model.name)
    tensors, settings = to_peft(arrays, config, base.target if base.source == "hub" else str(base.path))
    _made(out)
    write_bytes(out / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_text(out / CONFIG, json.dumps(settings, indent=2) + "\n")
    line = f"python -c \"from peft import AutoPeftModelForCausalLM as A; A.from_pretrained('{out}')\""
    return Exported(out, line, {"tensors": len(tensors)})


def export_mlx(adapter: Path, base: str, out: Path) -> Exported:
    """A PEFT adapter in mlx-lm's layout, for the base model that is named."""
    tensors, settings = read_peft(adapter)
    model = models.resolve(base)
    config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    depth = int(config.get("text_config", config)["num_hidden_layers"])
    arrays, layout = from_peft(tensors, settings, depth)
    _made(out)
    RunFolder(out).save_adapter(arrays, layout)
    return Exported(
        out, f"mlx_lm.generate --model {model.path} --adapter-path {out} --prompt ...", {"arrays": len(arrays)}
    )


def export_fused(run: Path, out: Path, *, quantised: bool = False) -> Exported:
    """The base with the run's adapter added in; says how much of the adapter was kept."""
    from sdpo_mlx.backends.mlx.fusing import fuse

    cfg = run_config(run)
    RunFolder(run).load_adapter()
    base = models.resolve(cfg.model.name)
    chat, task = load_chat(base.path, thinking=cfg.model.thinking), open_task(cfg).task
    problems = [*task.problems("held_out"), *task.problems("train")][:PROMPTS]
    prompts = [chat.render(problem.messages, tools=problem.tools) for problem in problems]
    _made(out)
    found = fuse(base.path, run, out, prompts, quantised=quantised)
    lost = found["lost"] / found["adapter"] if found["adapter"] > 0 else 0.0
    words = (f"fusing lost {lost:.0%} of what the adapter changed; keep the adapter apart",) if lost > MOST_LOST else ()
    return Exported(out, f"mlx_lm.generate --model {out} --prompt ...", {**found, "lost_share": lost}, words)


def _made(out: Path) -> None:
    """A new folder, so that nothing of an earlier export stays in it."""
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{out} is there already", where="--out", fix="name another folder") from error
    except OSError as error:
        raise trouble(error, out) from error
