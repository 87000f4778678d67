"""Export a run: its adapter for PEFT or GGUF, a fused model, a GGUF model; and import a PEFT adapter."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sdpo_mlx.backends.architectures import causal_class, is_known, model_type
from sdpo_mlx.backends.preflight import checked_model
from sdpo_mlx.backends.weight_names import by_mlx_names, by_transformers_names
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, SdpoError
from sdpo_mlx.core.progress import StartTask, no_tasks, track
from sdpo_mlx.core.storage import trouble, write_bytes, write_text
from sdpo_mlx.models import adapter_folder
from sdpo_mlx.models.adapter_folder import CONFIG, PEFT_WEIGHTS
from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.models.gguf.modelfile import modelfile
from sdpo_mlx.models.gguf.writer import Kind, can_be_gguf, check_gguf, gguf_architecture, write_gguf, write_gguf_lora
from sdpo_mlx.models.peft_layout import from_peft, read_peft, to_peft
from sdpo_mlx.models.resolve import ResolvedModel, original
from sdpo_mlx.runs.export import next_steps
from sdpo_mlx.runs.export.next_steps import Steps
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.targets import run_config
from sdpo_mlx.tasks.registry import open_task

MAX_LOST = 0.05  # share of the adapter's effect that a fused model may lose without a warning
PROMPTS = 4  # on which that is measured
FUSED: Mapping[str, str] = MappingProxyType(
    {"plain": "in the type of its base", "dequantized": "dequantized", "re-quantized": "quantized again"}
)
MLX_BASE = "the base is quantized in MLX's layout, which PEFT and vllm cannot read: "
PLAIN_QUESTION = "Explain in two sentences how a rainbow comes about, and name its colours in order."


@dataclass(frozen=True)
class Exported:
    """The result of an export: its folder, what that is, the next command for each tool, measurements, warnings."""

    folder: Path
    content: str
    next_steps: Steps
    figures: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportOptions:
    """What some formats need: the base of a PEFT adapter; whether a fused model is quantized again; a GGUF's type.

    A run's LoRA is multiplied by `scale`: the difference from the base shrinks, and with it what was learned.
    """

    base: str = ""
    quantized: bool = False
    kind: Kind = "F16"
    scale: float = 1.0


DEFAULTS = ExportOptions()


def export(
    target: Path, to: str, out: Path, options: ExportOptions = DEFAULTS, start_task: StartTask = no_tasks
) -> Exported:
    """Export a run to `peft`, `fused`, `gguf` or `gguf-lora`, or a PEFT adapter on `options.base` to `mlx`.

    Raises ConfigError if the adapter has no such form, or is to be scaled and no LoRA.
    """
    scale = options.scale
    exporters: Mapping[str, Callable[[], Exported]] = {
        "peft": lambda: export_peft(target, out, scale),
        "fused": lambda: export_fused(target, out, scale, quantized=options.quantized, doing=start_task),
        "gguf": lambda: export_gguf(target, out, options.kind, scale, start_task),
        "gguf-lora": lambda: export_gguf_lora(target, out, scale),
        "mlx": lambda: export_mlx(target, options.base, out),
    }
    if to not in exporters:
        raise ConfigError(f"unknown export format {to!r}", fix="Use peft, fused, gguf, gguf-lora or mlx")
    made = exporters[to]()
    if scale == 1.0:
        return made
    return replace(made, content=f"{made.content}; the LoRA times {scale:g}", figures={**made.figures, "scale": scale})


def exports_of(config: Mapping[str, Any]) -> list[str]:
    """Return the formats that a LoRA on a model with this configuration can be exported to, experts not adapted.

    Its tokenizer may rule out gguf: see `_formats`.
    """
    if is_known(config, "mlx") is False:  # which fuses the weights
        return ["peft"]
    try:
        gguf_architecture(config)
    except (ConfigError, KeyError):  # a configuration of unknown origin
        return ["peft", "fused"]
    return ["peft", "fused", "gguf", "gguf-lora"]


def export_peft(run: Path, out: Path, scale: float = 1.0) -> Exported:
    """Write the run's adapter in PEFT's layout; raises ConfigError if PEFT cannot represent it."""
    from safetensors.numpy import save

    arrays, config = _scaled(run, scale)
    base = _base(run_config(run))
    content, named = _config(base), original(base)
    tensors, settings = to_peft(by_transformers_names(arrays, content), config, named or next_steps.base_name(base))
    with _new_folder(out):
        write_bytes(out / PEFT_WEIGHTS, save(tensors, metadata={"format": "pt"}))
        write_text(out / CONFIG, json.dumps(settings, indent=2) + "\n")
        if (template := run_config(run).model.chat_template) != "auto":
            _put_template(load_chat(base.path, template=template), out)
    warnings = list(adapter_folder.warnings(arrays))
    if "quantization" in content:
        advice = "in their commands and in adapter_config.json use the model that it was converted from"
        warnings.append(MLX_BASE + (f"they load {named}, which it was converted from" if named else advice))
    auto_class = "AutoModelForCausalLM" if causal_class(content) else "AutoModelForImageTextToText"
    steps = next_steps.for_peft(run, out, settings, model=base, auto_class=auto_class, formats=_formats(base))
    kind = f"an adapter in PEFT's layout, {len(tensors)} tensors"
    return Exported(out, kind, steps, {"tensors": len(tensors)}, tuple(warnings))


def export_mlx(adapter: Path, base: str, out: Path) -> Exported:
    """Write a PEFT adapter in mlx-lm's layout, for the base model of this name."""
    tensors, settings = read_peft(adapter)
    model = checked_model(base)
    config = _config(model)
    depth = int(config.get("text_config", config)["num_hidden_layers"])
    arrays, layout = from_peft(tensors, settings, depth)
    with _new_folder(out):
        RunFolder(out).save_adapter(by_mlx_names(arrays, config), layout)
    kind = f"an adapter in mlx-lm's layout, {len(arrays)} arrays"
    return Exported(out, kind, next_steps.for_mlx(str(model.path), out), {"arrays": len(arrays)})


def export_fused(
    run: Path, out: Path, scale: float = 1.0, *, quantized: bool = False, doing: StartTask = no_tasks
) -> Exported:
    """Write the base with the adapter added to its weights, and measure how much of the adapter's effect is lost."""
    from sdpo_mlx.backends.mlx.fuse import fuse

    cfg = run_config(run)
    arrays, layout = _scaled(run, scale)
    base = _base(cfg, doing)
    if is_known(content := _config(base), "mlx") is False:
        what = f"mlx-lm, which fuses the weights, does not know the architecture {model_type(content)!r}"
        raise ConfigError(what, where="--to", fix="use --to peft")
    if quantized and not {"quantization", "quantization_config"} & content.keys():
        fix = f"leave it out; `mlx_lm.convert --hf-path {out} -q` quantizes the fused model"
        raise ConfigError("the base is not quantized, so it has no form to return to", where="--quantized", fix=fix)
    named = by_mlx_names(arrays, content)  # older runs on torch have transformers' names
    kept = scale == 1.0 and named.keys() == arrays.keys()
    with _new_folder(out), nullcontext(run) if kept else _adapter_folder(named, layout) as adapter:
        chat = load_chat(base.path, thinking=cfg.model.thinking, template=cfg.model.chat_template)
        try:
            task = open_task(cfg).task
        except SdpoError:  # the task cannot be opened on this machine
            prompts = [chat.render(({"role": "user", "content": PLAIN_QUESTION},))]
        else:
            problems = [*task.problems("held_out"), *task.problems("train")][:PROMPTS]
            prompts = [chat.render(problem.messages, tools=problem.tools) for problem in problems]
        found = fuse(base.path, adapter, out, prompts, quantized=quantized, doing=doing)
        _put_template(chat, out)
    lost = found["lost"] / found["adapter"] if found["adapter"] > 0 else 0.0
    warnings = list(adapter_folder.warnings(arrays))
    if lost > MAX_LOST:
        warnings.append(f"fusing lost {lost:.0%} of the adapter's effect; keep the adapter separate")
    steps = next_steps.for_fused(run, out, quantized=quantized, formats=_formats(base))
    kind = f"a whole model, {FUSED[found['kind']]}; rounding lost {100 * lost:.1f} % of the adapter's effect"
    return Exported(out, kind, steps, {**found, "lost_share": lost}, tuple(warnings))


def export_gguf(run: Path, out: Path, kind: Kind = "F16", scale: float = 1.0, doing: StartTask = no_tasks) -> Exported:
    """Write the fused model as one GGUF file with a Modelfile; measured before the rounding to `kind`."""
    from sdpo_mlx.backends.mlx.fuse import count_weights, float_weights

    def weights(folder: Path) -> Iterator[tuple[str, Any]]:
        yield from track(float_weights(folder), doing("converting tensors"), count_weights(folder))
        doing("writing the file")  # after its last tensor, the GGUF writer writes the file

    check_gguf(_base(run_config(run), doing).path)  # refused before the model is fused
    with _new_folder(out):
        file = out / f"{run.resolve().name}-{kind}.gguf"
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
            fused = export_fused(run, Path(work, "fused"), scale, doing=doing)
            write_gguf(fused.folder, weights(fused.folder), file, kind, run.resolve().name)
            model = run_config(run).model
            chat = load_chat(fused.folder, thinking=model.thinking, template=model.chat_template)
            write_text(out / "Modelfile", modelfile(chat, fused.folder, file.name))
    content = f"a whole model in {kind}, {file.name}, with a Modelfile"
    return Exported(out, content, next_steps.for_gguf(run, file), {**fused.figures, "gguf": kind}, fused.warnings)


def export_gguf_lora(run: Path, out: Path, scale: float = 1.0) -> Exported:
    """Write the run's LoRA as a GGUF adapter, for a GGUF of the same base."""
    arrays, config = _scaled(run, scale)
    base = _base(run_config(run))
    with _new_folder(out):
        file = out / f"{run.resolve().name}-lora.gguf"
        write_gguf_lora(base.path, arrays, config, file, run.resolve().name)
        note = "# replace by the path of the base model's GGUF, or its name in Ollama"
        write_text(out / "Modelfile", f"{note}\nFROM ./BASE.gguf\nADAPTER ./{file.name}\n")
    warnings = adapter_folder.warnings(arrays)
    content = f"a LoRA in GGUF, {file.name}, for a GGUF of the same base"
    return Exported(out, content, next_steps.for_gguf_lora(run, file), {"tensors": len(arrays)}, warnings)


def _formats(base: ResolvedModel) -> list[str]:
    """Return the formats that a LoRA on this base can be exported to, by its architecture and its tokenizer."""
    found = exports_of(_config(base))
    return found if can_be_gguf(base.path) else [name for name in found if name != "gguf"]


def _base(cfg: Config, doing: StartTask = no_tasks) -> ResolvedModel:
    """Return the base of a run: an alias stands for another repository on torch than on mlx."""
    return checked_model(cfg.model.name, doing, backend=cfg.model.backend)


def _config(model: ResolvedModel) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    return found


def _scaled(run: Path, scale: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a run's adapter and its configuration, a LoRA multiplied by `scale`."""
    arrays, config = RunFolder(run).load_adapter()
    if scale == 1.0:
        return arrays, config
    if not 0.0 <= scale < math.inf:
        raise ConfigError(f"an adapter cannot be multiplied by {scale}", where="--scale", fix="use 0.8, for example")
    if config.get("fine_tune_type") != "lora":
        what = f"an adapter of kind {config.get('fine_tune_type')} cannot be scaled"
        raise ConfigError(what, where="--scale", fix="leave it out; only a LoRA is a product with a factor")
    parameters = config["lora_parameters"]
    return arrays, {**config, "lora_parameters": {**parameters, "scale": parameters["scale"] * scale}}


@contextmanager
def _adapter_folder(arrays: dict[str, Any], layout: dict[str, Any]) -> Iterator[Path]:
    """A temporary folder with this adapter."""
    with tempfile.TemporaryDirectory() as work:
        RunFolder(Path(work)).save_adapter(arrays, layout)
        yield Path(work)


def _put_template(chat: Chat, folder: Path) -> None:
    """Write the chat template into an exported model if it is not the one that the base has."""
    if chat.source.own:
        return
    write_text(folder / "chat_template.jinja", chat.source.texts[0])
    settings = folder / "tokenizer_config.json"
    if settings.is_file():
        found = json.loads(settings.read_text(encoding="utf-8"))
        if found.pop("chat_template", None) is not None:
            write_text(settings, json.dumps(found, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def _new_folder(out: Path) -> Iterator[None]:
    """Make a new folder, without files of an earlier export; remove it if the export fails."""
    try:
        out.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"{out} exists already", where="--out", fix="choose another folder") from error
    except OSError as error:
        raise trouble(error, out) from error
    try:
        yield
    except BaseException as error:
        shutil.rmtree(out, ignore_errors=True)
        if isinstance(error, OSError):
            raise trouble(error, out) from error
        raise
