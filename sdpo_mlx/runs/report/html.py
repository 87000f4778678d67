"""The report page: one file that fetches nothing, and untrusted text only where it cannot be read as markup.

Text of models, data and graders is in escaped text nodes or in a JSON block that the page's own script puts into text
nodes. The content security policy allows that one script and that one style, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib import resources
from itertools import chain
from typing import Any

from sdpo_mlx.core.text import display
from sdpo_mlx.rl.metrics import TRUNCATED_MOST, mean
from sdpo_mlx.runs.events import number
from sdpo_mlx.runs.pace import RECENT_STEPS
from sdpo_mlx.runs.report import tokens
from sdpo_mlx.runs.report.charts import AXES, charts
from sdpo_mlx.runs.report.collect import RunData, percent
from sdpo_mlx.runs.report.tables import Table, tables

MAX_BYTES = 4_800_000  # of the page; rollouts are left out if they do not fit
MAX_CELL = 500  # characters


def page(runs: Sequence[RunData]) -> str:
    """Return the whole document; equal runs give equal text."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    title = "sdpo report: " + ", ".join(run.name for run in runs)
    if len(runs) > 1:
        links = [("curves", "Curves"), *((f"tokens-{n}", run.name) for n, run in enumerate(runs))]
    else:
        links = [("curves", "Curves"), ("tokens-0", "Tokens"), ("tables-0", "Tables")]
    nav = "".join(f'<a href="#{anchor}">{_text(name)}</a>' for anchor, name in links)
    summaries = "".join(f"<li>{_summary(run)}</li>" for run in runs)
    head = f'<h1>{_text(title)}</h1><ul class="runs">{summaries}</ul><nav aria-label="parts of this page">{nav}</nav>'
    curves = _curves(runs)
    table_sections = [
        f'<section id="tables-{n}"><h2>Tables of {_text(run.name)}</h2>{"".join(map(_table, tables(run)))}</section>'
        for n, run in enumerate(runs)
    ]
    left = MAX_BYTES - sum(len(part.encode()) for part in (style, script, head, curves, *table_sections))
    token_sections = [tokens.section(run, n, left // len(runs)) for n, run in enumerate(runs)]
    body = [head, curves, *chain(*zip(token_sections, table_sections, strict=True))]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_text(title)}</title><style>{style}</style></head><body><main>",
            *body,
            f"</main><script>{script}</script></body></html>\n",
        ]
    )


def _asset(name: str) -> str:
    return resources.files("sdpo_mlx").joinpath("assets", "report", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _text(text: Any, limit: int = MAX_CELL) -> str:
    return escape(display(str(text), limit))


def _summary(run: RunData) -> str:
    """Return the result of a run in a few lines."""
    count = len(run.steps)
    model, task = (_text(run.setting(section, "name") or "?") for section in ("model", "task"))
    lines = [f"<b>{_text(run.name)}</b>: {model} on {task}, {count} step{'s' if count != 1 else ''}"]
    lines.append(_gain(run))
    lines.append(_truncated(run))
    names = ("divergence", "perplexity_before", "perplexity_after")
    divergence, before, after = (number(run.finished.get(f"forgetting/{name}")) for name in names)
    if divergence is not None and before is not None and after is not None:
        lines.append(
            f"Forgetting: KL to base {divergence:.3g} nats per token on general prompts (0: unchanged); perplexity of "
            f"a general text {before:,.4g} before, {after:,.4g} after"
        )
    if run.manifest.get("sandbox") == "unconfined":
        lines.append("<strong>Programs of the model ran unconfined and could have forged their grading.</strong>")
    if not run.coached and not run.finished:
        lines.append("Not finished: this page shows the run so far.")
    return "<br>".join(line for line in lines if line)


def _gain(run: RunData) -> str:
    finals = {row.get("adapter"): row for row in run.evals if row.get("final")}
    if "none" not in finals or "best" not in finals:
        return ""
    before, after = (
        f"{percent(row.get('score'))}{_span(row.get('low'), row.get('high'), '.1f', '')}"
        for row in (finals["none"], finals["best"])
    )
    mean, end = number(run.finished.get("difference")), run.finished
    ends = _span(end.get("difference/low"), end.get("difference/high"), "+.1f", ", paired by problem")
    gain = "" if mean is None else f"; gain {100 * mean:+.1f} points{ends}"
    return f"Held-out {run.score_name} (95 % intervals): {before} before, {after} with the best adapter{gain}"


def _truncated(run: RunData) -> str:
    """Return the share of truncated rollouts in the last steps, with what to do if it is large."""
    shares = [value for row in run.steps if (value := number(row.get("length/truncated"))) is not None]
    share = mean(shares[-RECENT_STEPS:])
    if not share > 0:
        return ""
    advice = f"; raise rollout.max_tokens ({_text(run.setting('rollout', 'max_tokens'))})"
    return f"Truncated: {percent(share)} of the rollouts of the last steps{advice if share > TRUNCATED_MOST else ''}"


def _span(first: Any, last: Any, form: str, note: str) -> str:
    low, high = number(first), number(last)
    return "" if low is None or high is None else f" ({100 * low:{form}} to {100 * high:{form}}{note})"


def _curves(runs: Sequence[RunData]) -> str:
    drawn = {axis: charts(runs, axis) for axis in AXES}
    if not any(drawn.values()):
        return '<section id="curves"><h2>Curves</h2><p>No step has metrics yet.</p></section>'
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{n}"{" checked" if n == 0 else ""}> {name}</label>'
        for n, name in enumerate(AXES.values())
    )
    groups = "".join(
        f'<div class="charts" data-axis="{n}"{"" if n == 0 else " hidden"}>'
        + "".join(
            f'<figure tabindex="0">{svg}<figcaption aria-live="polite"></figcaption></figure>' for svg in drawn[axis]
        )
        + "</div>"
        for n, axis in enumerate(AXES)
    )
    axis = f'<fieldset class="axis"><legend>against</legend>{choices}</fieldset>'
    return f'<section id="curves"><h2>Curves</h2>{axis}{groups}</section>'


def _table(table: Table) -> str:
    caption, heads, rows = table
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    # A number stays beside its percent sign.
    cells = ((_text(cell).replace(" %", "\u00a0%") for cell in row) for row in rows)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in cells)
    shown = " open" if len(rows) <= 12 else ""
    return (
        f'<details{shown}><summary>{_text(caption)} ({len(rows)})</summary><div class="wide"><table><caption>'
        f"{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )
