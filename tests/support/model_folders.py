"""Model folders as the hub's cache, LM Studio and Ollama keep them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sdpo_mlx.models import inventory

COMMIT, OLDER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "quantization": {"bits": 4, "group_size": 64},
}
CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\nlicense: not this one\n"
GB = 2**30


def mlx_folder(path: Path, card: str = CARD, **changes: Any) -> Path:
    """A model's folder as far as a listing looks."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (path / "model.safetensors").write_bytes(b"w" * 100)
    (path / "README.md").write_text(card)
    return path


def on_hub(home: Path, name: str, commit: str = COMMIT, current: bool = True) -> Path:
    """A repository in the hub's cache; weights are links to blobs, as there."""
    root = home / ".cache" / "huggingface" / "hub" / f"models--{name.replace('/', '--')}"
    folder = mlx_folder(root / "snapshots" / commit)
    (root / "blobs").mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(root / "blobs" / commit)
    (folder / "model.safetensors").symlink_to(root / "blobs" / commit)
    if current:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / "main").write_text(commit)
    return folder


def listed() -> dict[str, inventory.LocalModel]:
    return {each.name: each for each in inventory.items()}
