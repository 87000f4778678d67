"""Write docs/results.md and its chart from docs/results.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from learning import generations_until

from sdpo_mlx.runs.report.svg import Series, line_chart

Store = Mapping[str, Any]
Runs = Sequence[Mapping[str, Any]]
TARGET = 0.85
DRAWN = ("SDPO, default contexts", "GRPO, best learning rate")

HEAD = """# Results

`make results` measures all but "Tried and left out" again and writes this page from `docs/results.json`. Each
score is the share of successes among 256 rollouts on the 64 held-out problems (160 for `tiny:mid`), sampled at
temperature 1. "Best, fresh" evaluates the best adapter again with other seeds, because the score that chose it is
optimistic. "Rollouts to 85 %" counts training rollouts until the first held-out evaluation at or above 0.85.
"""


def write_page(store: Store, docs: Path) -> None:
    """Write the page and the chart for the sections that `store` has runs of."""
    parts = [HEAD]
    for section, title, text in SECTIONS:
        runs = [run for run in store["runs"] if run["section"] == section]
        if runs:
            parts += [f"## {title}", text, _table(runs), _footer(section, runs)]
    tried = docs / "tried.json"
    if tried.exists():
        parts += [TRIED_HEAD, _tried_table(json.loads(tried.read_text())["runs"])]
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
        "8 problems x 8 rollouts per step, the preset `tiny`, 5 seeds. The last two rows are controls. With learning "
        "rate 0 no byte of the adapter changes. Contexts of other problems still name parts of the library, so they "
        "help a little.",
    ),
    ("versus", "Against GRPO with fewer rollouts and on harder problems", "3 seeds."),
    ("sweep", "GRPO's learning rate", "2 seeds each; the best one is used above."),
    (
        "ablation",
        "What matters inside SDPO",
        "3 seeds each; the preset, except for the first column.",
    ),
    ("beyond", "Hybrid, question weights, routing", "3 seeds each; the preset, except for the first column."),
    (
        "auto",
        "Objective `auto`",
        "SDPO as far as the self-teacher's credit agrees with the rewards, the rest GRPO. The first row has the "
        "contexts of the control in the first table: where they mislead the self-teacher, `auto` learns from the "
        "rewards. With default contexts every pair agrees, so that each step is one of `sdpo`.",
    ),
    (
        "long",
        "Long runs",
        "300 steps of 2 problems x 8 rollouts, a held-out evaluation every 25. By default the teacher moves by 0.01 a "
        "step, the learning rate falls to 0 in the last fifth of the steps, and if the score falls significantly, the "
        "run returns to its best step with half the learning rate, at most twice (`train.on_decline`). With the "
        "paper's teacher rate, 0.05, student and teacher drift together; with a warning instead of a rollback such a "
        'run ends at 0 (see "Tried and left out").',
    ),
    (
        "game",
        "Several turns",
        "`game:library`: the library hides other names in every problem, and the reply to a first answer names them. "
        "3 seeds, 64 held-out problems, 4 rollouts each. With one turn the model can only guess the names.",
    ),
    (
        "torch",
        "The same on PyTorch",
        "The embedded task with the preset, 5 seeds a backend. The backends sample with different random numbers.",
    ),
)
TRIED_HEAD = """## Tried and left out

Changes that the literature proposes or that these runs suggested, on the embedded task. Their code is not kept; the
curves are in `docs/tried.json`. "Gain" is the mean paired difference of the best adapter's fresh score from the
default's with the same seeds, "gain, last" that of the last evaluation, in points with Student's 95 % interval;
"lowest, late" is the lowest score in the second half of the run. "Divergence" is that of the last student from the base
on general prompts, in nats per token. One seed shows nothing but a collapse; three show only large gains.

`teacher_confidence` weighs a token by exp(-entropy of the self-teacher) (SRPO, arXiv 2604.02288, which divides by the
mean); `base_kl` is the weight of KL(student || base) in the loss (2606.04036); `credit teacher` gives each token its
share of the advantage by the self-teacher's evidence ratio, clipped to 0.8 and 1.2 (RLSD, 2604.03128). None gained more
than its interval. Falls near the end of runs with feedback alone are dips: with 24 steps the same seed is back at 96 %
three steps later. In long runs a lone failure among successes has a gradient up to 200 times the usual one (a norm of 2
after 0.01), and AdamW takes a large step. On the one seed tried, learning also the groups whose rollouts all succeeded
brings the fall forward, so they are skipped by default (`teacher.all_correct`); another beta2 of AdamW, a lower or
adaptive limit of the gradient norm, AMSGrad and `auto` delay it at most. What decides is the teacher: one that follows
the student at a rate of 0.05 drifts with it, as arXiv 2607.01763 reports, and no schedule alone prevents that (cosine:
one of three seeds at 33 %). Frozen, in a trust region or at a rate of 0.01, and with a learning rate that falls at the
end, all three seeds end within two points of their best evaluation; the default has the rate 0.01 and `train.schedule:
wsd`. A learning rate scaled by the share of rollouts that are learned, so that a lone failure takes a small step, kept
the one seed tried at 86 % or more from step 75 to 300 without any rollback, but would slow the start where few rollouts
have a context. Returning to the best step helps (see "Long runs"). `contrast` subtracts from the self-teacher's logits,
times its number, those that it has with another problem's context and adds the student's own, so that what any context
does cancels (RLCSD, 2606.11709, here with the whole vocabulary): no gain at 0.5, and worse at 1. Reflection (RESD,
2605.12741) needs a model that can write one: SmolLM2 was asked what is wrong and what a right answer needs, and its
self-teacher read that instead of the feedback. On team names (`short_tasks.py:teams`, 16 problems x 2) it then solved
41 % in template `facts` (81 % with the feedback itself; the student 0 %) and 44 % in the paper's (53 %). **Second
attempts** of the self-teacher in groups without a success, of which the right ones were learned (as the
rationalizations of STaR, 2203.14465, but with the context's distribution): same task, one seed, no more rollouts,
17.7 % held-out (10 to 27) beside the group's own rollouts and 12.5 % (5 to 20) in place of them; 4.2 to 14.6 % without,
three seeds. **More updates a step:** one for each problem (`train.updates_per_batch: 4`) on the harder functions of
SmolLM2 16.3 % (7 to 28), one in all 26.0 % (11 to 44), one seed. **Weight decay** does not lower the divergence of long
runs; what lowers it is [a weaker adapter](settings.md#it-forgets-other-things)."""
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's two-sided 95 % quantile by number of seeds
CODE_HEAD = """## Real weights: SmolLM2-135M on Python problems

`sdpo train --model smollm2 --task code:easy --objective KIND --steps 12`: the 65 training problems up to level easy,
2 per step with 8 rollouts each, one seed. Scores are on the 27 held-out problems of those levels at temperature 0.7;
no training problem is of their families. "Training rollouts" is the success rate of the training rollouts in the
first and last third of the steps."""
TEACHER = """Is the self-teacher better than the student? The base model on the training problems: {shares}."""
READING = """How we read these runs (November 2026): flat curves. After 192 rollouts no objective moved the held-out
score beyond its interval, neither here nor with 80 easier problems. The success rates of the training rollouts move
together under all three, because each step uses the same two problems.

Why SDPO teaches little here: a model of this size can use a demonstration, but the feedback on its failures does not
help it. (Contexts with feedback belong to problems that it failed, which are harder than the average; still, nothing
points upwards.) With such a low success rate most contexts hold feedback only. All three objectives teach the format:
rollouts without a code block become fewer, most with GRPO, and fail in their programs instead. The paper sees the
same limit below about 2B parameters. The hybrid that it recommends there does not differ at this budget.

`sdpo-torch` is SDPO with the same settings and the same seeds for problems, on PyTorch (its rollouts use other random
numbers). Both curves rise and fall at the same steps, and each score lies in the other's interval."""
CODE_FOOT = "`python benchmarks/code_runs.py` · {machine} · {samples} rollouts per problem, intervals over problems."


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
        "| run | seeds | start | last step (range) | best, fresh (range) | rollouts to 85 % |",
        "|---|---|---|---|---|---|",
    ]
    for label in dict.fromkeys(run["label"] for run in runs):
        lines.append(_row(label, [run for run in runs if run["label"] == label]))
    return "\n".join(lines)


def _row(label: str, runs: Runs) -> str:
    last = [run["curve"][-1][2] for run in runs]
    fresh = [run["final"]["score"] for run in runs]
    reached = [generations_until(run, TARGET) for run in runs]
    rollouts = ", ".join("never" if value is None else str(value) for value in reached)
    start = mean(run["curve"][0][2] for run in runs)
    unchanged = "" if any(run["changed"] for run in runs) else "; no byte changed"
    return f"| {label} | {len(runs)} | {start:.2f} | {_spread(last)}{unchanged} | {_spread(fresh)} | {rollouts} |"


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _footer(section: str, runs: Runs) -> str:
    seconds = median(run["seconds"] for run in runs)
    return f"`python benchmarks/results.py --only {section}` · {runs[0]['machine']} · median run {seconds:.0f} s."


def _tried_table(runs: Runs) -> str:
    head = "| run | candidate | seeds | last step | lowest, late | best, fresh | gain | gain, last | divergence |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for situation in dict.fromkeys(run["situation"] for run in runs):
        here = [run for run in runs if run["situation"] == situation]
        default = {run["seed"]: run for run in here if run["label"] == "default"}
        for label in dict.fromkeys(run["label"] for run in here):
            own = [run for run in here if run["label"] == label]
            pairs = [(run, default[run["seed"]]) for run in own if label != "default" and run["seed"] in default]
            last, best = [run["curve"][-1][2] for run in own], [run["final"]["score"] for run in own]
            late = [min(point[2] for point in run["curve"][len(run["curve"]) // 2 :]) for run in own]
            gains = (
                _gain([a["final"]["score"] - b["final"]["score"] for a, b in pairs]),
                _gain([a["curve"][-1][2] - b["curve"][-1][2] for a, b in pairs]),
            )
            moved = [run["divergence"][-1] for run in own if run["divergence"]]
            cells = (_spread(last), _spread(late), _spread(best), *gains, _spread(moved) if moved else "–")
            lines.append(f"| {' | '.join((situation, label, str(len(own)), *cells))} |")
    return "\n".join(lines)


def _gain(differences: Sequence[float]) -> str:
    if not differences:
        return "–"
    if len(differences) < 2:
        return f"{100 * differences[0]:+.1f}"
    half = T_95[len(differences)] * stdev(differences) / math.sqrt(len(differences))
    mid, low, high = (100 * value for value in (mean(differences), mean(differences) - half, mean(differences) + half))
    return f"{mid:+.1f} ({low:+.1f} to {high:+.1f})"


def _code_table(code: Mapping[str, Any]) -> str:
    lines = [
        "| | held-out (95 %) | against base (95 %) | training rollouts | passes, wrong, error, invalid "
        "| tokens per rollout | rollouts | minutes |",
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
