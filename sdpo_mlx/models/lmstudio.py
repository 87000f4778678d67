"""Models of LM Studio: `<publisher>/<name>/` with GGUF files, or with a model for MLX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.source import Located, Source

PREFIX = "lmstudio:"


def roots() -> list[Path]:
    """Return the folders where LM Studio keeps models: the configured one, the current default, and the older one."""
    home = Path.home()
    found = [home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"]
    try:
        with (home / ".lmstudio-home-pointer").open(encoding="utf-8") as file:
            configured = Path(file.read(4_096).strip())
    except (OSError, ValueError):
        return found
    return list(dict.fromkeys([configured / "models", *found])) if configured.is_absolute() else found


def local() -> Iterator[Located]:
    """Yield every model, by name; of a folder with several GGUF files each has its file name appended."""
    seen = set()
    for root in roots():
        try:
            folders = sorted(path for path in root.glob("*/*") if path.is_dir() and not path.name.startswith("."))
        except OSError:
            continue
        for folder in folders:
            name = PREFIX + folder.relative_to(root).as_posix()
            # mmproj: the vision part of a model, beside its text model.
            ggufs = sorted(file for file in folder.glob("*.gguf") if not file.name.startswith(("mmproj", ".")))
            paths = [folder] if (folder / "config.json").is_file() else ggufs
            for path in paths:
                full = name if len(paths) == 1 else f"{name}/{path.name}"
                if full not in seen:
                    seen.add(full)
                    yield Located(full, "lmstudio", str(path), path)


def find(name: str) -> Located:
    """Return the model of a name as `sdpo models list` prints it; raises ConfigError if there is none, or several."""
    here = list(local())
    exact = [each for each in here if each.name == name]
    found = exact or [each for each in here if each.name.startswith(f"{name.rstrip('/')}/")]
    if len(found) == 1:
        return found[0]
    if found:
        fix = f"name one of: {', '.join(each.name for each in found[:5])}"
        raise ConfigError(f"LM Studio has {len(found)} models under this name", where=name, fix=fix)
    fix = "`sdpo models list` shows what is here; `lms get` downloads"
    raise ConfigError("LM Studio has no such model here", where=name, fix=fix)


SOURCE = Source("lmstudio", lambda name: name if name.startswith(PREFIX) else None, lambda name, _: find(name), local)
