"""The page: everything in one file, nothing fetched, and foreign text in no place where it could be read as markup.

Text of models, data and graders stands in escaped text nodes or in a JSON block that the page's own script reads and
puts into text nodes. The policy allows that one script and that one style, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any, TypeGuard

from sdpo_mlx.core.text import display
from sdpo_mlx.runs.report import tokens
from sdpo_mlx.runs.report.charts import AXES, charts
from sdpo_mlx.runs.report.collect import RunData
from sdpo_mlx.runs.report.tables import Table, tables

LARGEST = 4_800_000  # bytes of the whole; answers are left out where they do not fit
CELL = 500  # characters


def page(stories: Sequence[RunData]) -> str:
    """The whole document; equal stories give equal text."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    title = "sdpo report: " + ", ".join(story.name for story in stories)
    head, curves = _head(title, stories), _curves(stories)
    told = [_tables(story, number) for number, story in enumerate(stories)]
    left = LARGEST - sum(len(part.encode()) for part in (style, script, head, curves, *told))
    maps = [tokens.section(story, n, left // len(stories)) for n, story in enumerate(stories)]
    # One run is understood by its tokens, several by how they differ.
    body = [head, maps[0], curves, told[0]] if len(stories) == 1 else [head, curves, *_each_beside(maps, told)]
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


def _each_beside(maps: Sequence[str], told: Sequence[str]) -> list[str]:
    return [part for pair in zip(maps, told, strict=True) for part in pair]


def _asset(name: str) -> str:
    return resources.files("sdpo_mlx").joinpath("assets", "report", name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _text(text: Any, limit: int = CELL) -> str:
    return escape(display(str(text), limit))


def _head(title: str, stories: Sequence[RunData]) -> str:
    runs = "".join(f"<li>{_summary(story)}</li>" for story in stories)
    several = len(stories) > 1
    links = (
        [("curves", "Curves")] if several else [("tokens-0", "Tokens"), ("curves", "Curves"), ("tables-0", "Tables")]
    )
    links += [(f"tokens-{n}", story.name) for n, story in enumerate(stories) if several]
    nav = "".join(f'<a href="#{place}">{_text(name)}</a>' for place, name in links)
    return f'<h1>{_text(title)}</h1><ul class="runs">{runs}</ul><nav aria-label="parts of this page">{nav}</nav>'


def _summary(story: RunData) -> str:
    """What became of a run, in a few lines."""
    count = len(story.steps)
    what = f"{_text(story.named('model'))} on {_text(story.named('task'))}, {count} step{'s' if count != 1 else ''}"
    lines = [f"<b>{_text(story.name)}</b>: {what}", _gain(story), _forgot(story)]
    if story.manifest.get("sandbox") == "unconfined":
        lines.append("<strong>Programs of the model ran unconfined and could have forged their grading.</strong>")
    if story.open_end and not _finished(story):
        lines.append("Not finished: what stands here is what there was so far.")
    return "<br>".join(line for line in lines if line)


def _gain(story: RunData) -> str:
    ends = {row.get("adapter"): row for row in story.evals if row.get("final")}
    if "none" not in ends or "best" not in ends:
        return ""
    before, after = (_scored(ends[name]) for name in ("none", "best"))
    done = _finished(story)
    mean, low, high = (done.get(name) for name in ("difference", "difference/low", "difference/high"))
    gain = f"; gain {100 * mean:+.1f} points" if _number(mean) else ""
    span = f" ({100 * low:+.1f} to {100 * high:+.1f}, paired by problem)" if _number(low) and _number(high) else ""
    return f"Held out (95 % intervals): {before} before, {after} with the best adapter{gain}{span if gain else ''}"


def _scored(row: Mapping[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    span = f" ({100 * low:.1f} to {100 * high:.1f})" if _number(low) and _number(high) else ""
    return f"{_percent(row.get('score'))}{span}"


def _forgot(story: RunData) -> str:
    done = _finished(story)
    names = ("divergence", "perplexity_before", "perplexity_after")
    moved, before, after = (done.get(f"forgetting/{name}") for name in names)
    if not (_number(moved) and _number(before) and _number(after)):
        return ""
    return (
        f"Forgetting: on ordinary prompts {moved:.3g} nats a token away from the base (0: as before); perplexity of an "
        f"ordinary text {before:,.4g} before, {after:,.4g} after (higher: it knows the language less)"
    )


def _finished(story: RunData) -> Mapping[str, Any]:
    return next((row for row in reversed(story.notes) if row.get("type") == "run_finished"), {})


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if _number(share) else "-"


def _curves(stories: Sequence[RunData]) -> str:
    drawn = {axis: charts(stories, axis) for axis in AXES}
    if not any(drawn.values()):
        return '<section id="curves"><h2>Curves</h2><p>No step left figures to draw.</p></section>'
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{n}"{" checked" if n == 0 else ""}> {name}</label>'
        for n, name in enumerate(AXES.values())
    )
    groups = "".join(
        f'<div class="charts" data-axis="{n}"{"" if n == 0 else " hidden"}>'
        + "".join(f"<figure>{svg}</figure>" for svg in drawn[axis])
        + "</div>"
        for n, axis in enumerate(AXES)
    )
    axis = f'<fieldset class="axis"><legend>against</legend>{choices}</fieldset>'
    return f'<section id="curves"><h2>Curves</h2>{axis}{groups}</section>'


def _tables(story: RunData, number: int) -> str:
    made = "".join(map(_table, tables(story)))
    return f'<section id="tables-{number}"><h2>Tables of {_text(story.name)}</h2>{made}</section>'


def _table(table: Table) -> str:
    caption, heads, rows = table
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    shown = " open" if len(rows) <= 12 else ""
    return (
        f'<details{shown}><summary>{_text(caption)} ({len(rows)})</summary><div class="wide"><table><caption>'
        f"{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )
