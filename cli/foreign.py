"""What to write here instead of an option or a verb that people bring along from mlx-lm, TRL or Unsloth."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "lora": "sdpo train",
        "finetune": "sdpo train",
        "sft": "sdpo train",
        "grpo": "sdpo train --objective grpo",
        "generate": "sdpo chat",
        "run": "sdpo chat",
        "evaluate": "sdpo eval",
        "test": "sdpo eval",
        "fuse": "sdpo export RUN --to fused",
        "merge": "sdpo export RUN --to fused",
        "convert": "sdpo export",
        "upload": "sdpo push",
        "download": "sdpo models fetch",
        "pull": "sdpo models fetch",
        "list": "sdpo models list",
    }
)


def bare(word: str, flags: Collection[str]) -> str:
    """The sentence for a word that no option stands before: which option takes such a thing."""
    path = Path(word)
    if word.endswith((".yaml", ".yml")):
        kinds = ["-c"]
    elif path.suffix == ".py":
        kinds = ["--task"]
    elif (path / "config.json").is_file():
        kinds = ["--model"]
    elif path.exists():
        kinds = ["--data"]
    else:
        kinds = ["--model", "--task"]
    found = [f"{kind} {word}" for kind in kinds if kind in flags]
    return f"{word!r} stands alone. Write {' or '.join(found)}" if found else ""


def instead(option: str, flags: Collection[str]) -> str:
    """The sentence for an unknown option of a verb with these flags and `--set`; empty where nobody knows it."""
    from sdpo_mlx.config.keys import LEAVES, SECTIONS, brought_along

    found = brought_along(option.lstrip("-").replace("-", "_"))
    if found in SECTIONS:
        return f"Set what is below {found}, as --{next(key for key in LEAVES if key.startswith(f'{found}.'))}"
    if found not in LEAVES:
        return f"{found[:1].upper()}{found[1:]}"
    own = f"--{found.rpartition('.')[2].replace('_', '-')}"
    return f"Write {own if own in flags else f'--{found}'}"
