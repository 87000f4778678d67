"""docs/results.md and its pictures, from docs/results.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from learning import generations_until

from sdpo_mlx.runs.report.svg import Series, line_chart

Store = Mapping[str, Any]
Runs = Sequence[Mapping[str, Any]]
TARGET = 0.85
DRAWN = ("SDPO, default contexts", "GRPO, best learning rate")

HEAD = """# Results

Made by `make results` from `docs/results.json`, which holds every curve. Each score is the share of successes among
256 answers to the 64 held-out problems (160 for `tiny:mid`), sampled at temperature 1; "best, fresh" evaluates the
best adapter once more on other seeds, so that choosing it does not flatter it. "Generations to 85 %" counts sampled
training answers until the first held-out evaluation at or above 0.85.
"""


def write_page(store: Store, docs: Path) -> None:
    """Write the page and the pictures that the store has runs for."""
    parts = [HEAD]
    for section, title, text in SECTIONS:
        runs = [run for run in store["runs"] if run["section"] == section]
        if runs:
            parts += [f"## {title}", text, _table(runs), _footer(section, runs)]
    if store.get("code"):
        parts += [
            CODE_HEAD,
            _code_table(store["code"]),
            _teacher_line(store["code"]),
            READING,
            CODE_FOOT.format(**store["code"]),
        ]
    (docs / "results.md").write_text("\n\n".join(parts) + "\n")
    main = [run for run in store["runs"] if run["section"] == "main"]
    if main:
        (docs / "curve.svg").write_text(_curves(main) + "\n", encoding="utf-8")


SECTIONS = (
    (
        "main",
        "The embedded model on its embedded task",
        "8 problems x 8 rollouts a step; the preset `tiny`, 5 seeds. The last two rows are controls: with the "
        "learning rate at 0 no byte of the adapter changes; contexts of other problems still name parts of the "
        "library, which is why they help a little.",
    ),
    ("versus", "Against GRPO with fewer rollouts and on harder problems", "3 seeds."),
    ("sweep", "GRPO's learning rate", "2 seeds each; the best one is used above."),
    (
        "ablation",
        "What matters inside SDPO",
        "3 seeds each, the preset but for what the row says.",
    ),
    ("beyond", "Hybrid, question weights, routing", "3 seeds each, the preset but for what the row says."),
    (
        "game",
        "Several turns",
        "`game:library`: the library hides other names in every problem, the reply to a first answer names them. 3 "
        "seeds, 64 held-out problems, 4 answers each. With one turn the names can only be guessed.",
    ),
    (
        "torch",
        "The same on PyTorch",
        "The embedded task with the preset, 5 seeds a backend. Both draw their answers by other random numbers.",
    ),
)
CODE_HEAD = """## Real weights: SmolLM2-135M on Python problems

`sdpo train --model smollm2 --task code:easy --objective KIND --steps 12`: the 65 training problems up to the level
easy, 2 a step with 8 rollouts each, one seed; scored on the 27 held-out problems of those levels, whose families are
in no training problem, at temperature 0.7. "Among sampled answers" is the success rate of the training rollouts in the
first and last third of the steps."""
TEACHER = """Is the self-teacher better than the student? The untouched model on the training problems: {shares}."""
READING = """How we read the runs of November 2026: flat curves. No objective moved the held-out score beyond its
interval after 192 sampled answers, neither here nor when there were 80 easier problems, and the sampled answers' own
rates go the same way under all three, since each step has the same two problems. The diagnosis says why SDPO has
little to teach here: a model of this size follows a solution that it is shown, but the environment's words about its
failures do not help it (those contexts stand on problems it had failed, which are harder than the average; still,
nothing points upwards), and with a success rate this low most contexts are feedback alone. All three teach the form:
answers without a code block become fewer, most so with GRPO, and fail in their programs instead. The paper sees
the same limit below about 2B parameters; the hybrid that it recommends there does not differ either at this budget.
`sdpo-torch` is SDPO once more with the same settings and the same seeds for problems, on PyTorch (its answers draw
other random numbers): both curves go up and down on the same steps, and each score lies in the other's interval."""
CODE_FOOT = "`python benchmarks/code_runs.py` · {machine} · {samples} answers a problem, intervals over problems."


def _curves(runs: Runs) -> str:
    """Return held-out success against rollouts: the mean of the seeds, and a band from the lowest to the highest."""
    lines = []
    for label in DRAWN:
        points = list(zip(*(run["curve"] for run in runs if run["label"] == label), strict=True))
        scores = [[point[2] for point in seeds] for seeds in points]
        name = f"{label} ({len(scores[0])} seeds)"
        xs = [seeds[0][1] for seeds in points]
        lines.append(Series(name, xs, [*map(mean, scores)], [*map(min, scores)], [*map(max, scores)]))
    title = "Embedded model: mean and range of the seeds"
    return line_chart(lines, title=title, x_label="rollouts", y_label="held-out success", y_range=(0.0, 1.0))


def _table(runs: Runs) -> str:
    lines = [
        "| run | seeds | start | last step (range) | best, fresh (range) | generations to 85 % |",
        "|---|---|---|---|---|---|",
    ]
    for label in dict.fromkeys(run["label"] for run in runs):
        lines.append(_row(label, [run for run in runs if run["label"] == label]))
    return "\n".join(lines)


def _row(label: str, runs: Runs) -> str:
    last = [run["curve"][-1][2] for run in runs]
    fresh = [run["final"]["score"] for run in runs]
    reached = [generations_until(run, TARGET) for run in runs]
    shown = ", ".join("never" if value is None else str(value) for value in reached)
    start = mean(run["curve"][0][2] for run in runs)
    same = "" if any(run["changed"] for run in runs) else "; no byte changed"
    return f"| {label} | {len(runs)} | {start:.2f} | {_spread(last)}{same} | {_spread(fresh)} | {shown} |"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _footer(section: str, runs: Runs) -> str:
    seconds = median(run["seconds"] for run in runs)
    return f"`python benchmarks/results.py --only {section}` · {runs[0]['machine']} · median run {seconds:.0f} s."


def _code_table(code: Mapping[str, Any]) -> str:
    lines = [
        "| | held-out (95 %) | against untouched (95 %) | among sampled answers | passes, wrong, error, invalid "
        "| tokens an answer | generations | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_code_row, code["rows"])])


def _teacher_line(code: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in code["teacher"].items())
    return TEACHER.format(shares=shares)


def _code_row(row: Mapping[str, Any]) -> str:
    kinds = ", ".join(str(row["kinds"].get(kind, 0)) for kind in ("pass", "wrong", "error", "invalid"))
    gain = trained = "–"
    if "train" in row:
        mid, low, high = (100 * value for value in row["difference"])
        gain = f"{mid:+.1f} points ({low:+.1f} to {high:+.1f})"
        third = max(1, len(row["train"]) // 3)
        trained = f"{100 * mean(row['train'][:third]):.0f} % to {100 * mean(row['train'][-third:]):.0f} %"
    score = f"{100 * row['score']:.1f} % ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
    budget = f"{row['generations']} | {row['minutes']:.0f}" if "minutes" in row else "– | –"
    return f"| {row['label']} | {score} | {gain} | {trained} | {kinds} | {row['length']:.0f} | {budget} |"
