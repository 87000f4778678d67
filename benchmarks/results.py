"""`make results`: run the experiments, store every curve in docs/results.json, write docs/results.md from it.

Runs that the JSON already holds are not repeated. `--again`, which `make results` gives, measures all of them again; it
can be interrupted, since new runs are kept in build/results.json until all are there. `--only SECTION` runs a part,
`--page` only writes the page.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import EXPERIMENTS, Experiment
from reporting import machine, write_json
from results_page import write_page

DOCS = Path(__file__).resolve().parent.parent / "docs"
STORE = DOCS / "results.json"
AGAIN = DOCS.parent / "build" / "results.json"  # runs of an unfinished `--again`


def main() -> None:
    """Run missing experiments, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted({e.section for e in EXPERIMENTS}))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args()
    store = {"runs": []} | (json.loads(STORE.read_text()) if STORE.exists() else {})
    known = [_key(experiment, seed) for experiment in EXPERIMENTS for seed in range(experiment.seeds)]
    store["runs"] = [run for run in store["runs"] if any(_is(run, key) for key in known)]
    chosen = [e for e in EXPERIMENTS if options.only in (None, e.section)]
    if options.again:
        new = json.loads(AGAIN.read_text()) if AGAIN.exists() else {"runs": []}
        AGAIN.parent.mkdir(exist_ok=True)
        _run_missing(chosen, new, AGAIN)
        sections = {experiment.section for experiment in chosen}
        store["runs"] = [*(run for run in store["runs"] if run["section"] not in sections), *new["runs"]]
        write_json(STORE, store, indent=0)
        AGAIN.unlink()
    elif not options.page:
        _run_missing(chosen, store, STORE)
    write_page(store, DOCS)


def _run_missing(experiments: Sequence[Experiment], store: dict[str, Any], path: Path) -> None:
    for experiment in experiments:
        for seed in range(experiment.seeds):
            if not any(_is(run, _key(experiment, seed)) for run in store["runs"]):
                store["runs"].append(_measured(experiment, seed))
                write_json(path, store, indent=0)


def _measured(experiment: Experiment, seed: int) -> dict[str, Any]:
    from learning import measure

    begun = time.perf_counter()
    measured = measure(experiment.label, experiment.settings, seed, swapped=experiment.swapped)
    last, final = measured.curve[-1], measured.final["score"]
    print(
        f"{experiment.section} | {experiment.label} | seed {seed}: {measured.curve[0][2]:.2f} -> {last[2]:.2f},", end=""
    )
    print(f" best {final:.2f} at step {measured.best_step}, {time.perf_counter() - begun:.0f} s", flush=True)
    return {**measured.to_dict(), **_key(experiment, seed), "machine": machine()}


def _key(experiment: Experiment, seed: int) -> dict[str, Any]:
    """Return the fields that identify a stored run."""
    settings = [*experiment.settings]
    return {"section": experiment.section, "label": experiment.label, "seed": seed, "settings": settings}


def _is(run: dict[str, Any], key: dict[str, Any]) -> bool:
    return all(run[name] == value for name, value in key.items())


if __name__ == "__main__":
    main()
