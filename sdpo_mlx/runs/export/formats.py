"""What leaves a run: its adapter for PEFT or GGUF, a fused model, a GGUF; and a PEFT adapter in mlx-lm's layout."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, SdpoError
from sdpo_mlx.core.progress import StartTask, no_tasks, track
from sdpo_mlx.core.storage import trouble, write_bytes, write_text
from sdpo_mlx.models import resolve
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.models.gguf.modelfile import modelfile
from sdpo_mlx.models.gguf.writer import Kind, write_gguf, write_gguf_lora
from sdpo_mlx.runs.export import next_steps
from sdpo_mlx.runs.export.next_steps import Steps
from sdpo_mlx.runs.export.peft import CONFIG, WEIGHTS, from_peft, read_peft, to_peft
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.targets import run_config
from sdpo_mlx.tasks.registry import open_task
from sdpo_mlx.types import IntArray

MOST_LOST = 0.05  # share of what the adapter changed that a fused model may lose before it is worth a warning
PROMPTS = 4
MLX_BASE = (
    "the base is quantised in MLX's own layout, which PEFT and vllm do not read: in their commands and in "
    "adapter_config.json name the model that it was made from"
)
PLAIN_QUESTION = "Explain in two sentences how a rainbow comes about, and name its colours in order."


@dataclass(frozen=True)
class Exported:
    """Where it lies, what to type next in which tool, what it measured, and what to beware of."""

    folder: Path
    next_steps: Steps
    figures: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


def export(
    target: Path,
    to: str,
    out: Path,
    *,
    base: str = "",
    quantised: bool = False,
    kind: Kind = "F16",
    start_task: StartTask = no_tasks,
) -> Exported:
    """Export a run to `peft`, `fused`, `gguf` or `gguf-lora`, or a PEFT adapter on `base` to `mlx`."""
    if to == "mlx":
        return export_mlx(target, base, out)
    if to == "fused":
        return export_fused(target, out, quantised=quantised, doing=start_task)
    if to == "gguf":
        return export_gguf(target, out, kind, start_task)
    if to == "gguf-lora":
        return export_gguf_lora(target, out)
    if to == "peft":
        return export_peft(target, out)
    raise ConfigError(f"unknown export format {to!r}", fix="Use peft, fused, gguf, gguf-lora or mlx")


def export_peft(run: Path, out: Path) -> Exported:
    """The run's adapter in PEFT's layout; raises ConfigError where it has no such form."""
    from safetensors.numpy import save

    arrays, config = RunFolder(run).load_adapter()
    base = resolve.resolve(run_config(run).model.name)
    tensors, settings = to_peft(arrays, config, base.target if base.source == "hub" else str(base.path))
    with _made(out):
        write_bytes(out / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_text(out / CONFIG, json.dumps(settings, indent=2) + "\n")
    steps = next_steps.for_peft(run, out, settings["base_model_name_or_path"], settings)
    return Exported(out, steps, {"tensors": len(tensors)}, (MLX_BASE,) if _quantised(base.path) else ())


def export_mlx(adapter: Path, base: str, out: Path) -> Exported:
    """A PEFT adapter in mlx-lm's layout, for the base model that is named."""
    tensors, settings = read_peft(adapter)
    model = resolve.resolve(base)
    config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    depth = int(config.get("text_config", config)["num_hidden_layers"])
    arrays, layout = from_peft(tensors, settings, depth)
    with _made(out):
        RunFolder(out).save_adapter(arrays, layout)
    return Exported(out, next_steps.for_mlx(str(model.path), out), {"arrays": len(arrays)})


def export_fused(run: Path, out: Path, *, quantised: bool = False, doing: StartTask = no_tasks) -> Exported:
    """The base with the run's adapter added in; says how much of the adapter was kept."""
    from sdpo_mlx.backends.mlx.fuse import fuse

    cfg = run_config(run)
    RunFolder(run).load_adapter()
    base = resolve.resolve(cfg.model.name, doing)
    with _made(out):
        found = fuse(base.path, run, out, _prompts(cfg, base), quantised=quantised, doing=doing)
    lost = found["lost"] / found["adapter"] if found["adapter"] > 0 else 0.0
    words = (f"fusing lost {lost:.0%} of what the adapter changed; keep the adapter apart",) if lost > MOST_LOST else ()
    steps = next_steps.for_fused(run, out, quantised=quantised)
    return Exported(out, steps, {**found, "lost_share": lost}, words)


def export_gguf(run: Path, out: Path, kind: Kind = "F16", doing: StartTask = no_tasks) -> Exported:
    """The fused model as one GGUF file with a Modelfile beside it; measured before the rounding to `kind`."""
    with _made(out):
        file = out / f"{run.resolve().name}-{kind}.gguf"
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
            fused = export_fused(run, Path(work, "fused"), doing=doing)
            write_gguf(fused.folder, _weights(fused.folder, doing), file, kind)
            chat = load_chat(fused.folder, thinking=run_config(run).model.thinking)
            write_text(out / "Modelfile", modelfile(chat, fused.folder, file.name))
    return Exported(out, next_steps.for_gguf(run, file), {**fused.figures, "gguf": kind}, fused.warnings)


def export_gguf_lora(run: Path, out: Path) -> Exported:
    """The run's LoRA as a GGUF adapter, for a GGUF of the same base."""
    arrays, config = RunFolder(run).load_adapter()
    base = resolve.resolve(run_config(run).model.name)
    with _made(out):
        file = out / f"{run.resolve().name}-lora.gguf"
        write_gguf_lora(base.path, arrays, config, file)
        # Which GGUF of the base lies where is for whoever has it to say.
        write_text(out / "Modelfile", f"# put the base's own GGUF, or its name in Ollama, here\nFROM ./BASE.gguf\n"
                                      f"ADAPTER ./{file.name}\n")  # fmt: skip
    return Exported(out, next_steps.for_gguf_lora(run, file), {"tensors": len(arrays)})


def _weights(folder: Path, doing: StartTask) -> Iterator[tuple[str, Any]]:
    """The weights one after the other; when the last one is taken, the file itself is written."""
    from sdpo_mlx.backends.mlx.fuse import count_weights, float_weights

    yield from track(float_weights(folder), doing("converting tensors"), count_weights(folder))
    doing("writing the file")


def _quantised(base: Path) -> bool:
    return "quantization" in json.loads((base / "config.json").read_text(encoding="utf-8"))


def _prompts(cfg: Config, base: resolve.ResolvedModel) -> list[IntArray]:
    """Some of the run's own problems as prompts; a plain question where its task cannot be opened here."""
    chat = load_chat(base.path, thinking=cfg.model.thinking)
    try:
        task = open_task(cfg).task
    except SdpoError:
        return [chat.render(({"role": "user", "content": PLAIN_QUESTION},))]
    problems = [*task.problems("held_out"), *task.problems("train")][:PROMPTS]
    return [chat.render(problem.messages, tools=problem.tools) for problem in problems]


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """A new folder, so that nothing of an earlier export stays in it; gone again where the export fails."""
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{out} is there already", where="--out", fix="name another folder") from error
    except OSError as error:
        raise trouble(error, out) from error
    try:
        yield
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, OSError):
            raise trouble(error, out) from error
        raise
