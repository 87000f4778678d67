"""One source of settings as a flat layer: dotted key -> value and origin.

There are four kinds of source: a YAML file, a preset, `--set a.b=c`, an option. Every error names file and line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from sdpo_mlx.config import aliases, keys
from sdpo_mlx.core.errors import ConfigError

# PyYAML reads YAML 1.1, in which 1e-5 is a string: an exponent needs a dot before it and a sign after it.
NUMBER = re.compile(r"([-+]?)(\d+\.?\d*|\.\d+)(?:[eE]([-+]?)(\d+))?")


@dataclass(frozen=True)
class Entry:
    """One value: `origin` for `sdpo config show`, `where` for error messages."""

    value: Any
    origin: str
    where: str


Layer = Mapping[str, Entry]


def shown(value: object) -> str:
    """Format a value for an error: one line, no control characters, at most 60 characters."""
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, str):
        text = f"'{value}'" if value.isprintable() and "'" not in value else repr(value)
    else:
        text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def name_shown(name: str) -> str:
    """Format a key for an error, quoted only if necessary."""
    return name if re.fullmatch(r"[\w.-]{1,60}", name, re.ASCII) else shown(name)


MOST_LISTED = 20


class FaultsError(ConfigError):
    """Everything that is wrong in a layer, or in all; `entries` are the layer's valid ones."""

    def __init__(self, problems: Sequence[str], entries: Layer) -> None:
        self.problems, self.entries = problems, entries
        rest = f"; and {len(problems) - MOST_LISTED} more" if len(problems) > MOST_LISTED else ""
        super().__init__("; ".join(problems[:MOST_LISTED]) + rest)


# ---- presets


def preset_names() -> list[str]:
    """Return the names of the presets: `code`, `paper/livecodebench`, `tiny`, ..."""
    root = files("sdpo_configs")
    found = [item.name[:-5] for item in root.iterdir() if item.name.endswith(".yaml")]
    papers = [f"paper/{item.name[:-5]}" for item in (root / "paper").iterdir() if item.name.endswith(".yaml")]
    return sorted(found + papers)


def preset(name: str) -> Layer:
    """Return the layer of a preset."""
    text = files("sdpo_configs").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    return _YamlFile(f"preset {name}", f"preset {name}").layer(text)


# ---- files


def config_file(path: Path) -> Layer:
    """Return the layer of a file, of a run folder, or of the preset of that name if there is no such file."""
    if (path / "config.yaml").is_file():
        path = path / "config.yaml"
    if not path.is_file():
        name = path.as_posix()
        known = preset_names()
        for candidate in (name, name.removesuffix(".yaml"), name.removesuffix(".yaml").removeprefix("configs/")):
            if candidate in known:
                return preset(candidate)
        near = get_close_matches(name, known, 1, 0.6)
        advice = f"did you mean {near[0]}?" if near else f"name a YAML file, or one of {', '.join(known)}"
        raise ConfigError(f"{shown(name)}: no such file or preset", fix=advice)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text", fix="save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return _YamlFile(str(path), None).layer(text)


class _YamlFile:
    def __init__(self, label: str, origin: str | None) -> None:
        self.label, self.origin = label, origin  # origin None: file and line; for a preset its name is enough
        self.entries: dict[str, Entry] = {}
        self.problems: list[str] = []

    def layer(self, text: str) -> Layer:
        loader = None
        try:
            loader = yaml.SafeLoader(text)
            root = loader.get_single_node()
            if root is not None:
                self._section("", root, loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = f":{mark.line + 1}" if mark else ""
            what = f"{self.label}{line}: is not valid YAML: {' '.join(f'{error.problem}'.split())}"
            raise ConfigError(what, fix="check indentation and quotes") from None
        except (yaml.YAMLError, RecursionError) as error:
            why = "nested too deep" if isinstance(error, RecursionError) else "control characters"
            raise ConfigError(f"{self.label}: is not readable as YAML: {why}") from None
        finally:
            if loader is not None:
                loader.dispose()
        if self.problems:
            raise FaultsError(self.problems, self.entries)
        return self.entries

    def _section(self, section: str, node: yaml.Node, loader: yaml.SafeLoader) -> None:
        where = self._where(node)
        if not isinstance(node, yaml.MappingNode):
            if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
                return  # a section whose keys are all commented out
            names = keys.children(section)
            head = f"{section}: is a section" if section else "the file must hold sections"
            example = f"`{section or names[0]}:` and, indented below it, `{names[0] if section else 'name'}: ...`"
            self.problems.append(f"{where}: {head}, write {example}")
            return
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            name = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "[...]"
            key = f"{section}.{name}" if section else name
            where = self._where(key_node)
            if name in seen:
                self.problems.append(f"{where}: {name_shown(key)}: is already set in line {seen[name]}, keep one")
            elif key in keys.SECTIONS:
                self._section(key, value, loader)
            elif key in keys.LEAVES and name in keys.children(section):
                if (entry := self._leaf(key, value, where, loader)) is not None:
                    self.entries[key] = entry
            elif not section and name in keys.LEAVES:
                head, _, last = name.rpartition(".")
                fix = f"write `{last}:` indented below `{head}:`"
                self.problems.append(f"{where}: {name}: keys are nested in a file, {fix}")
            else:
                self.problems.append(f"{where}: {name_shown(key)}: {aliases.suggestion(section, name)}")
            seen.setdefault(name, key_node.start_mark.line + 1)

    def _leaf(self, key: str, node: yaml.Node, where: str, loader: yaml.SafeLoader) -> Entry | None:
        origin = self.origin or where
        if isinstance(node, yaml.ScalarNode) and node.value in keys.choices(key):
            return Entry(node.value, origin, where)  # `off` is a string here, not YAML 1.1's false
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        if not all(isinstance(part, yaml.ScalarNode) for part in parts):
            self.problems.append(f"{where}: {key}: must be {keys.allowed(key)}")
            return None
        try:
            value = loader.construct_object(node, deep=True)
        except (ValueError, OverflowError):  # 2020-99-99, or 5,000 digits
            value = str(node.value)
        value = value.isoformat() if isinstance(value, date) else value
        return Entry(value, origin, where)

    def _where(self, node: yaml.Node) -> str:
        return f"{self.label}:{node.start_mark.line + 1}"


# ---- the command line


def set_options(sets: Sequence[str]) -> Layer:
    """Return the layer of `--set section.key=value`; the last of two wins."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for text in sets:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"--set {shown(text)}: is not an assignment, write --set train.steps=20")
        elif wrong := _wrong_key(key, "--set"):
            problems.append(wrong)
        else:
            entries[key] = Entry(_from_text(key, raw.strip()), "--set", "--set")
    if problems:
        raise FaultsError(problems, entries)
    return entries


def flags(values: Mapping[str, Any], origin: str = "") -> Layer:
    """Return the layer of the options, by dotted key; None means not given. `origin`: what messages call them all."""
    entries: dict[str, Entry] = {}
    problems: list[str] = []
    for key, value in values.items():
        if value is None:
            continue
        head, _, last = key.rpartition(".")
        name = head.rpartition(".")[2] if last in ("kind", "name") else last
        where = origin or f"flag --{name.replace('_', '-')}"
        if wrong := _wrong_key(key, where):
            problems.append(wrong)
        else:
            entries[key] = Entry(_from_text(key, value) if isinstance(value, str) else value, where, where)
    if problems:
        raise FaultsError(problems, entries)
    return entries


def _wrong_key(key: str, where: str) -> str:
    """Return what is wrong with a key; blank if it is one."""
    if key in keys.LEAVES:
        return ""
    if key in keys.SECTIONS:
        return f"{where}: {key}: is a section, set one of its keys: {', '.join(keys.children(key))}"
    # Suggest a name of the deepest section that is spelled correctly.
    section = key.rpartition(".")[0]
    while section and section not in keys.SECTIONS:
        section = section.rpartition(".")[0]
    name = key[len(section) + 1 :] if section else key
    near = get_close_matches(key, keys.LEAVES, 1, 0.85)
    advice = f"did you mean {near[0]}?" if near else aliases.suggestion(section, name)
    return f"{where}: {name_shown(key)}: {advice}"


def _from_text(key: str, raw: str) -> Any:
    """Parse a value of the command line by the type of its key."""
    if raw in ("null", "~") and keys.takes(key, "null"):
        return None
    if raw in keys.choices(key) or (keys.takes(key, "string") and not keys.takes(key, "array")):
        return raw
    try:
        if NUMBER.fullmatch(raw):
            if raw.lstrip("+-").isdecimal():
                return int(raw)
            number = float(raw)
            return int(number) if keys.takes(key, "integer") and number.is_integer() else number
        value = yaml.safe_load(raw)
        return _listed(key, value) if isinstance(value, str) and keys.takes(key, "array") else value
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return raw


def _listed(key: str, value: str) -> list[str]:
    """Return a list that was given without brackets: one text, or several names."""
    return [value] if keys.takes_texts(key) else re.split(r"[\s,]+", value)
