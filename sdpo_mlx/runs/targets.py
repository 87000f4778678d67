"""TARGET arguments (`sdpo eval TARGET`): a run folder, a model, or a model with an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sdpo_mlx.backends.base import Arrays
from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import CHOSEN, resolve
from sdpo_mlx.core.errors import ConfigError, StorageError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.models.adapter_folder import check_layout, is_peft
from sdpo_mlx.models.template_source import is_file_name
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.tracking.base import flat

if TYPE_CHECKING:  # `sdpo plan` of a model that is nowhere ends before a step's parts are needed
    from sdpo_mlx.rl.components import Components

# Names in mlx-lm's adapter_config.json, and our keys.
_FROM_MLX_LM: Mapping[str, str] = {"fine_tune_type": "kind", "num_layers": "layers"}
_FROM_PARAMETERS = ("rank", "scale", "dropout", "keys")


def is_run(path: Path) -> bool:
    """Return whether a folder is a run folder."""
    return (path / "config.yaml").is_file() and (path / "events.jsonl").is_file()


def run_or_none(target: str | None) -> str | None:
    """Return a target that is a run folder, None for a model or no target."""
    return target if target is not None and is_run(Path(target)) else None


def run_config(run: Path, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a run with overrides; raises ConfigError if there is no run."""
    file = run / "config.yaml"
    if not file.is_file():
        refuse_other_folder(run)
    found = resolve(file, sets, flags)
    if found.origins["model.backend"] != CHOSEN:
        return found.config
    # `auto` in a run is the mlx that made it: on torch an alias stands for another base.
    return found.config.model_copy(update={"model": found.config.model.model_copy(update={"backend": "auto"})})


def run_settings(run: Path, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> Config:
    """Return the settings of a run with overrides; on another task only those of its model, the rest by that task.

    Data, lengths and the learning rate of a run were chosen for its own task. Raises ConfigError if there is no run.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    assigned = dict(text.partition("=")[::2] for text in sets)
    task = given.get("task.name", assigned.get("task.name"))
    own = run_config(run)
    if task in (None, own.task.name):
        return run_config(run, sets, flags)
    model = {f"model.{name}": value for name, value in flat(own.model.model_dump())}
    kept = {name: value for name, value in model.items() if name not in assigned}
    return resolve(None, sets, {**kept, **given}).config


def refuse_other_folder(folder: Path) -> NoReturn:
    """Raise ConfigError for a folder that is no run; one in PEFT's layout is named as such."""
    if is_peft(folder):
        check_layout(folder)
    fix = "name the --out folder of an earlier sdpo train; `sdpo runs` lists them"
    raise ConfigError("there is no run here", where=str(folder), fix=fix)


def named_config(
    target: str | None, file: Path | None, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Return the settings of a run, or of a model with those of a file; None: the model that the settings name.

    Raises ConfigError for both a run and a file: a run has its own settings.
    """
    if target is None:
        return resolve(file, sets, flags).config
    if is_run(Path(target)):
        if file is not None:
            raise ConfigError("a run has its own model and settings", where=target, fix="remove -c")
        return run_settings(Path(target), sets, flags)
    refuse_missing_run(target)
    return resolve(file, sets, {**(flags or {}), "model.name": target}).config


def starting_config(
    target: str | None,
    adapter: Path | None,
    file: Path | None,
    sets: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Config:
    """Return the settings of a training: of a model, or from a run or another adapter on.

    A run brings its settings (`run_settings`), an adapter only its shape. Raises ConfigError or StorageError without an
    adapter.
    """
    if adapter is not None and target is None and file is None:
        if not is_run(adapter):
            raise ConfigError("an adapter needs its base model", where=f"--adapter {adapter}", fix="add --model NAME")
        target, adapter = str(adapter), None
    run = run_or_none(target)
    if run is not None and adapter is not None:
        raise ConfigError("a run already has an adapter", where=run, fix="leave --adapter out, or name the base model")
    start = Path(run) if run is not None else adapter
    if start is None:
        return named_config(target, file, sets, flags)
    RunFolder(start).load_adapter()  # an adapter that is missing or damaged is an error before a model loads
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    shape = {} if run is not None else adapter_settings(start)
    return named_config(target, file, sets, {**shape, **given, "model.adapter.start": str(start.resolve())})


def refuse_missing_run(target: str) -> None:
    """Raise ConfigError for the path of a run that does not exist: a hub repository `runs/NAME` is not meant."""
    path = Path(target)
    folder = path.parent
    if path.exists() or folder == Path() or not (folder == Path("runs") or any(folder.glob("*/events.jsonl"))):
        return
    near = get_close_matches(path.name, [each.parent.name for each in folder.glob("*/events.jsonl")], 1, 0.5)
    fix = f"Did you mean {folder / near[0]}?" if near else "`sdpo runs` lists runs"
    raise ConfigError("there is no such folder", where=target, fix=fix)


def with_kept_template(cfg: Config, run: Path) -> Config:
    """Return the settings with the chat template that a run recorded, if the file that they name is gone."""
    name = cfg.model.chat_template
    if not is_file_name(name) or Path(name).exists() or not is_run(run):
        return cfg
    kept = run_config(run).model.chat_template
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"chat_template": kept})})


def kept_dtype(run: Path) -> str:
    """Return the type of the weights that a run on a CPU with torch began with, `auto` if there is none.

    What `model.dtype: auto` means there depends on the processor, and a run keeps its type on another one.
    """
    policy: object = None
    with suppress(StorageError):  # a damaged manifest stops no run: a resume writes it again
        policy = RunFolder(run).read_manifest().get("policy")
    found = policy if isinstance(policy, dict) else {}
    on_cpu = found.get("backend") == "torch" and str(found.get("device")).startswith("cpu")
    known = on_cpu and found.get("dtype") in ("float32", "bfloat16", "float16")
    return str(found["dtype"]) if known else "auto"


def target_config(
    target: str, adapter: Path | None = None, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Return the settings for a TARGET; those of a separate adapter come from its `adapter_config.json`."""
    given = dict(flags or {})
    if is_run(Path(target)):
        if adapter is not None:
            fix = "leave --adapter out, or name the base model instead of the run"
            raise ConfigError("a run already has an adapter", where=target, fix=fix)
        return run_settings(Path(target), sets, given)
    refuse_missing_run(target)
    if adapter is not None:
        check_layout(adapter, target)
    shape = adapter_settings(adapter) if adapter is not None else {}
    return resolve(None, sets, {**shape, **given, "model.name": target}).config


def open_target(target: str, cfg: Config, adapter: Path | None = None, start_task: StartTask = no_tasks) -> Components:
    """Build the components with the run's best adapter, or the given one, in the student."""
    from sdpo_mlx.rl.components import build_components

    arrays = load_adapter(target, adapter)
    dtype = kept_dtype(Path(target)) if is_run(Path(target)) else "auto"
    components = build_components(cfg, learns=False, dtype=dtype, start_task=start_task)
    if arrays is not None:
        components.policy.load_student(arrays)
    return components


def adapter_home(target: str, adapter: Path | None = None) -> Path | None:
    """Return the folder with the adapter of a TARGET, None for a model alone."""
    return Path(target) if is_run(Path(target)) else adapter


def load_adapter(target: str, adapter: Path | None = None) -> Arrays | None:
    """Return the adapter of a TARGET, None for a model alone; call it before a model loads, which takes long."""
    home = adapter_home(target, adapter)
    return RunFolder(home).load_adapter()[0] if home is not None else None


def adapter_settings(folder: Path) -> dict[str, Any]:
    """Return the settings `model.adapter.*` of an `adapter_config.json` in mlx-lm's layout."""
    path = folder / "adapter_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        named = {ours: found[theirs] for theirs, ours in _FROM_MLX_LM.items() if theirs in found}
        parameters = found.get("lora_parameters", {})
        named |= {name: parameters[name] for name in _FROM_PARAMETERS if parameters.get(name) is not None}
    except FileNotFoundError as error:
        fix = "name a folder with adapters.safetensors and adapter_config.json"
        raise ConfigError("no adapter here", where=str(folder), fix=fix) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise StorageError("the adapter's configuration cannot be read", where=str(path)) from error
    return {f"model.adapter.{name}": value for name, value in named.items()}
