"""The resolved configuration: option > `--set` > file > preset of the model, then of the task > default.

A preset belongs to the model or task of its name (`qwen.yaml` holds `model: {name: qwen}` and also applies to
`qwen:8b`). If the presets of model and task both set a key, the model's wins. A preset that names both, as
`tiny.yaml` does, belongs to the model; it is not applied for the task alone, since its learning rate would be wrong
for other models. Presets applied this way never choose the model or the task.

A backend that is left open becomes torch on a machine with an NVIDIA card that only torch can use.
"""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial, reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sdpo_mlx.config import keys, layers
from sdpo_mlx.config.layers import Entry, Layer
from sdpo_mlx.config.schema import Config
from sdpo_mlx.core.errors import SdpoError
from sdpo_mlx.core.gpu import prefers_torch

NAMES = ("model.name", "task.name")
CHOSEN = "auto: an NVIDIA card"  # the origin of a backend that this machine decided


@dataclass(frozen=True)
class Resolved:
    """A configuration and the origin of each value, by dotted key."""

    config: Config
    origins: dict[str, str]


def resolve(
    file: Path | None, sets: Sequence[str] = (), flags: Mapping[str, Any] | None = None, *, python: bool = False
) -> Resolved:
    """Merge the layers and validate the result.

    `file` is a YAML file or the name of a preset; `flags` maps dotted keys to values, None meaning not given; with
    `python` they are the arguments of a call. Origins are `flag --steps`, `argument`, `--set`, `configs/x.yaml:7`,
    `preset tiny` or `default`.
    Raises ConfigError with origin, key and fix, before anything is loaded or downloaded.
    """
    problems: list[str] = []
    sources = [partial(layers.flags, flags or {}, "argument" if python else ""), partial(layers.set_options, sets)]
    sources += [partial(layers.config_file, file)] if file is not None else []
    chosen = [_layer(source, problems) for source in sources]
    given = ChainMap(*map(dict, chosen))
    names = [str(given[key].value if key in given else value_at(Config(), key)) for key in NAMES]
    stack = chosen + _presets_of(*names)
    merged: dict[str, Entry] = dict(ChainMap(*map(dict, stack)))
    ranks = {key: min(i for i, layer in enumerate(stack) if key in layer) for key in merged}
    try:
        config = Config.model_validate(_nested(merged))
    except ValidationError as error:
        problems += [_problem(fault, merged, ranks) for fault in error.errors(include_url=False)]
    if problems:
        raise layers.FaultsError(list(dict.fromkeys(problems)), merged)
    origins = {key: merged[key].origin if key in merged else "default" for key in keys.LEAVES}
    if config.model.backend == "auto" and prefers_torch():
        config = config.model_copy(update={"model": config.model.model_copy(update={"backend": "torch"})})
        origins["model.backend"] = CHOSEN
    return Resolved(config, origins)


def _layer(read: Callable[[], Layer], problems: list[str]) -> Layer:
    """Return a layer; what is wrong in it is added to the problems, so that all are reported together."""
    try:
        return read()
    except layers.FaultsError as error:
        problems += error.problems
        return error.entries


def config_hash(config: Config) -> str:
    """Return the SHA-256 (hex) of the complete configuration; independent of the origins of its values."""
    return hashlib.sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def dump_yaml(config: Config) -> str:
    """Return the complete configuration as YAML, which `resolve` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Escapes invisible characters: the line break U+0085 would be read back as another one."""

    def represent_str(self, data: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def value_at(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def _presets_of(model: str, task: str) -> list[Layer]:
    model, task = (name.partition(":")[0] for name in (model, task))
    known = layers.preset_names()
    found: list[Layer] = []
    for key, name in zip(NAMES, (model, task), strict=True):
        layer = layers.preset(name) if name in known else {}
        belongs = key in layer and str(layer[key].value).partition(":")[0] == name
        # A preset that also names a model was tuned for the pair.
        if belongs and (key == "model.name" or (task != model and "model.name" not in layer)):
            found.append({other: entry for other, entry in layer.items() if other not in NAMES})
    return found


def _nested(merged: Layer) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, entry in merged.items():
        *path, last = key.split(".")
        section = tree
        for name in path:
            section = section.setdefault(name, {})
        section[last] = entry.value
    return tree


def _problem(fault: Mapping[str, Any], merged: Layer, ranks: Mapping[str, int]) -> str:
    """Format an error of pydantic as `where: key: fix`."""
    path = [str(part) for part in fault["loc"]]
    key = next((k for n in range(len(path), 0, -1) if (k := ".".join(path[:n])) in merged), "")
    if fault["type"] == "value_error":
        reason = fault["ctx"]["error"]
        text = reason.line().rstrip(".") if isinstance(reason, SdpoError) else str(reason)
        section = key or ".".join(path)
        # The origin of the section in its topmost layer, most likely what the user just wrote.
        inside = [name for name in merged if name == section or name.startswith(f"{section}.")]
        where = merged[min(inside, key=ranks.__getitem__)].where if inside else "configuration"
        return f"{where}: {section}: {text}"
    entry = merged[key]
    return f"{entry.where}: {key}: {_wrong(key, entry)}"


def _wrong(key: str, entry: Entry) -> str:
    value = entry.value
    members = keys.members(key)
    if members and isinstance(value, list):
        value = next((each for each in value if each not in members), value)
    text = value.strip() if isinstance(value, str) else ""
    number = layers.NUMBER.fullmatch(text)
    if number and keys.takes(key, "number"):
        if number[4] is not None:  # YAML 1.1 reads an exponent only after a dot and with a sign
            mantissa = text.lower().partition("e")[0]
            text = f"{mantissa if '.' in mantissa else mantissa + '.0'}e{number[3] or '+'}{number[4]}"
        return f"{layers.shown(value)} is a string in YAML, write {text}"
    if text.isdecimal() and keys.takes(key, "integer"):
        return f"{layers.shown(value)} is a string in YAML, write {text} without quotes"
    near = get_close_matches(text, keys.choices(key) or members, 1, 0.6) if text else []
    advice = f", did you mean {near[0]}?" if near else ""
    return f"{layers.shown(value)} is not allowed, must be {keys.allowed(key)}{advice}"
