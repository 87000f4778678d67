"""Measure discovery@k of SmolLM2 on programming problems that it does not solve by sampling.

The base model samples SCREENED rollouts for every fourth problem of `code:easy` with seed 0. Problems without a success
are the hard ones. They are searched again with other seeds, so that bad luck in the selection does not count. Stored
searches are not repeated. Writes docs/figures/discovery_code.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIGURE = ROOT / "docs" / "figures" / "discovery_code.json"
SCREENED, EVERY = 16, 4
ON_TORCH = ["--set", "model.backend=torch", "--set", "model.device=cpu"]


def main() -> None:
    """Select the problems, search, write the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=5, help="number of hard problems")
    parser.add_argument("--attempts", type=int, default=32)
    parser.add_argument("--methods", nargs="+", default=["sdpo", "best-of-k"], help="multi-turn takes hours on a CPU")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "hard-code")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tried = _write_rows(options.out / "tried.jsonl", _rows()[::EVERY])
    _solve(tried, options.out / "screen", ["--method", "best-of-k", "--attempts", str(SCREENED), "--seed", "0"])
    solved = {row["problem"] for row in _searches(options.out / "screen") if row["solved"]}
    hard = [row for row in map(json.loads, tried.read_text().splitlines()) if row["id"] not in solved]
    chosen = _write_rows(options.out / "hard.jsonl", hard[: options.problems])
    budget = ["--attempts", str(options.attempts), "--seeds", str(options.seeds), "--seed", "1"]
    found = {}
    for method in options.methods:
        _solve(chosen, options.out / "search", ["--method", method, *budget])
        content = json.loads((options.out / "search" / "discovery.json").read_text())
        found |= content["methods"]
    chosen_from = {"tried": len(_rows()[::EVERY]), "never solved": len(hard), "attempts of the choice": SCREENED}
    kept = [row for row in _searches(options.out / "search") if row["method"] in found]
    content |= {"task": "code:easy", "methods": found, "chosen from": chosen_from, "searched": kept}
    FIGURE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _rows() -> list[dict[str, object]]:
    text = resources.files("sdpo_mlx").joinpath("assets", "code", "problems.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if row["level"] in ("one_liner", "easy")]


def _write_rows(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps({**row, "split": "train"}) + "\n" for row in rows), encoding="utf-8")
    return file


def _solve(data: Path, out: Path, arguments: list[str]) -> None:
    solve = [sys.executable, "-m", "sdpo_cli.main", "solve", "--every-problem"]
    what = ["--model", "smollm2", "--task", "code", "--data", str(data), "--out", str(out)]
    subprocess.run([*solve, *what, *ON_TORCH, *arguments], check=True)


def _searches(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "searches.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
