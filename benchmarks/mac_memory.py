"""The largest model and rollouts that `sdpo plan` fits into a Mac of each size: `python benchmarks/mac_memory.py`.

Writes docs/figures/mac_memory.json; `python benchmarks/tables.py` makes the table in docs/recipes.md of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sdpo_mlx.backends.memory_plan import limit_of
from sdpo_mlx.config import Config
from sdpo_mlx.core.hardware import bytes_of

OUT = Path(__file__).parents[1] / "docs" / "figures" / "mac_memory.json"
MEMORY = ("8GB", "16GB", "24GB", "32GB", "64GB")
MODELS = ("qwen:30b-a3b", "qwen:8b", "qwen", "qwen:tiny")  # best first
ROLLOUTS = (("8", "1024"), ("8", "512"), ("4", "512"))  # group size and longest answer, most first

MARGIN = 0.9  # of the plan's limit, since no plan was compared with a Mac


def plan(memory: str, model: str, group: str, tokens: str) -> dict[str, Any]:
    """Return the plan of `--task code` in the data type of a Mac, and with its limit (`memory.limit`)."""
    limit = limit_of(Config(), bytes_of(memory), mac=True) / 2**30
    words = ["plan", "--task", "code", "--set", "model.dtype=bfloat16", "--model", model, "--memory", memory, "--json"]
    words += ["--group-size", group, "--max-tokens", tokens, "--set", f"train.memory_gb={limit}"]
    code = "import sys; from sdpo_cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def best(memory: str) -> dict[str, Any]:
    """Return the first model, and its most rollouts, that fit."""
    for model in MODELS:
        for group, tokens in ROLLOUTS:
            found = plan(memory, model, group, tokens)
            if found["peak"] <= MARGIN * found["limit"]:
                sizes = {"peak": found["peak"], "limit": found["limit"]}
                return {"memory": memory, "model": model, "group_size": group, "max_tokens": tokens, **sizes}
    raise SystemExit(f"nothing fits {memory}")


if __name__ == "__main__":
    OUT.write_text(json.dumps([best(memory) for memory in MEMORY], indent=1) + "\n", encoding="utf-8")
