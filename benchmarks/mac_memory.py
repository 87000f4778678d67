"""The largest model and rollouts that `sdpo plan` fits into a Mac of each size: `python benchmarks/mac_memory.py`.

Writes docs/figures/mac_memory.json, and with `--long` the longest rollouts of each model on each Mac to
docs/figures/long_rollouts.json; `python benchmarks/tables.py` makes the tables in the documentation of them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sdpo_mlx.backends.memory_plan import limit_of
from sdpo_mlx.config import Config
from sdpo_mlx.core.hardware import bytes_of

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
MEMORY = ("8GB", "16GB", "24GB", "32GB", "64GB")
MODELS = ("qwen:30b-a3b", "qwen:8b", "qwen", "qwen:tiny")  # best first
ROLLOUTS = (("8", "1024"), ("8", "512"), ("4", "512"))  # group size and longest answer, most first
LONG_MEMORY = (*MEMORY, "128GB")
LONG_MODELS = ("qwen:tiny", "qwen", "qwen:8b", "qwen:30b-a3b")
LENGTHS = (8192, 4096, 2048, 1024)
LONG = ("--task", "math", "--set", "model.thinking=true", "--group-size", "4")

MARGIN = 0.9  # of the plan's limit, since no plan was compared with a Mac


def plan(memory: str, model: str, *options: str, share: float = 1.0) -> dict[str, Any]:
    """Return the plan in the data type of a Mac, and with a share of its limit (`memory.limit`)."""
    limit = share * limit_of(Config(), bytes_of(memory), mac=True) / 2**30
    words = ["plan", "--set", "model.dtype=bfloat16", "--model", model, "--memory", memory, "--json"]
    words += ["--set", f"train.memory_gb={limit}", *options]
    code = "import sys; from sdpo_cli.main import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, check=False)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def best(memory: str) -> dict[str, Any]:
    """Return the first model, and its most rollouts, that fit `--task code`."""
    for model in MODELS:
        for group, tokens in ROLLOUTS:
            found = plan(memory, model, "--task", "code", "--group-size", group, "--max-tokens", tokens)
            if found["peak"] <= MARGIN * found["limit"]:
                sizes = {"peak": found["peak"], "limit": found["limit"]}
                return {"memory": memory, "model": model, "group_size": group, "max_tokens": tokens, **sizes}
    raise SystemExit(f"nothing fits {memory}")


def longest(memory: str, model: str) -> dict[str, Any]:
    """Return the longest rollouts of thinking on `--task math` that fit; no length if none does."""
    for tokens in LENGTHS:
        found = plan(memory, model, *LONG, "--max-tokens", str(tokens), share=MARGIN)
        if found["peak"] <= found["limit"]:
            return {"memory": memory, "model": model, "max_tokens": tokens, "peak": found["peak"]}
    return {"memory": memory, "model": model, "max_tokens": None, "peak": None}


def main() -> None:
    """Write one of the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--long", action="store_true", help="the longest rollouts")
    if parser.parse_args().long:
        name, rows = "long_rollouts", [longest(memory, model) for model in LONG_MODELS for memory in LONG_MEMORY]
    else:
        name, rows = "mac_memory", [best(memory) for memory in MEMORY]
    (FIGURES / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
