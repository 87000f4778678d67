"""Suggestions for arguments, options and commands of mlx-lm, TRL or Unsloth."""

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


def bare(argument: str, flags: Collection[str]) -> str:
    """Return the error for an argument without an option, naming the option that takes it; blank if none does."""
    path = Path(argument)
    if argument.endswith((".yaml", ".yml")):
        kinds = ["-c"]
    elif path.suffix == ".py":
        kinds = ["--task"]
    elif (path / "config.json").is_file():
        kinds = ["--model"]
    elif path.exists():
        kinds = ["--data"]
    else:
        kinds = ["--model", "--task"]
    found = [f"{kind} {argument}" for kind in kinds if kind in flags]
    return f"Unexpected argument {argument!r}. Did you mean {' or '.join(found)}?" if found else ""


def instead(option: str, flags: Collection[str]) -> str:
    """Return a suggestion for an unknown option of a command with these flags and `--set`; blank if there is none."""
    from sdpo_mlx.config.keys import LEAVES, SECTIONS, brought_along

    if option == "--adapter-path" and "--adapter" in flags:  # it is read here; `sdpo train` writes it
        return "Use --adapter"
    found = brought_along(option.lstrip("-").replace("-", "_"))
    if found in SECTIONS:
        return f"Use a setting of {found}, such as --{next(key for key in LEAVES if key.startswith(f'{found}.'))}"
    if found not in LEAVES:
        return f"{found[:1].upper()}{found[1:]}"
    own = f"--{found.rpartition('.')[2].replace('_', '-')}"
    return f"Use {own if own in flags else f'--{found}'}"
