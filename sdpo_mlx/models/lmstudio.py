"""What LM Studio keeps on this machine: `<publisher>/<name>/` with GGUF files or a model for MLX."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError

PREFIX = "lmstudio:"


@dataclass(frozen=True)
class Kept:
    """One model: `path` is a folder for MLX, or a GGUF file."""

    name: str
    path: Path


def roots() -> list[Path]:
    """Where LM Studio keeps models: the home that its pointer names, today's folder, and the older one."""
    home = Path.home()
    found = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    try:
        with (home / ".lmstudio-home-pointer").open(encoding="utf-8") as file:
            pointed = Path(file.read(4_096).strip())
    except (OSError, ValueError):
        return found
    return list(dict.fromkeys([pointed / "models", *found])) if pointed.is_absolute() else found


def kept() -> Iterator[Kept]:
    """Every model, by name; of a folder with several GGUF files each has the file's name behind it."""
    seen = set()
    for root in roots():
        for folder in _folders(root):
            for each in _models(root, folder):
                if each.name not in seen:
                    seen.add(each.name)
                    yield each


def find(typed: str) -> Kept:
    """The model of a name as `sdpo models list` shows it; raises ConfigError where there is none, or several."""
    here = list(kept())
    exact = [each for each in here if each.name == typed]
    found = exact or [each for each in here if each.name.startswith(f"{typed.rstrip('/')}/")]
    if len(found) == 1:
        return found[0]
    if found:
        fix = f"name one of: {', '.join(each.name for each in found[:5])}"
        raise ConfigError(f"LM Studio has {len(found)} models under this name", where=typed, fix=fix)
    fix = "`sdpo models list` shows what is here; `lms get` downloads"
    raise ConfigError("LM Studio has no such model here", where=typed, fix=fix)


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def _models(root: Path, folder: Path) -> list[Kept]:
    name = PREFIX + folder.relative_to(root).as_posix()
    if (folder / "config.json").is_file():
        return [Kept(name, folder)]
    # mmproj: the eyes of a model that sees, beside its text model.
    files = sorted(file for file in folder.glob("*.gguf") if not file.name.startswith(("mmproj", ".")))
    return [Kept(name if len(files) == 1 else f"{name}/{file.name}", file) for file in files]
