"""The page: everything in one file, nothing fetched, and foreign text in no place where it could be read as markup.

Text of models, data and graders stands in escaped text nodes or in a JSON block that the page's own script reads and
puts into text nodes. The policy allows that one script and that one style, by their hashes, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import Any

from sdpo_mlx.report.curves import AXES, charts
from sdpo_mlx.report.reading import Row, Story
from sdpo_mlx.report.tables import Table, tables
from sdpo_mlx.storage import plain
from sdpo_mlx.text import display

PARTED = 1.0  # |log q - log p| from which student and teacher are said to part
LONGEST = 20_000  # characters of one text


def page(stories: Sequence[Story]) -> str:
    """The whole document; equal stories give equal text."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    title = "sdpo report: " + ", ".join(story.name for story in stories)
    body = [_head(title, stories), _curves(stories)]
    for number, story in enumerate(stories):
        body += [_rollouts(story, number), *(_table(table) for table in tables(story))]
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


def _text(text: Any, limit: int = LONGEST) -> str:
    return escape(display(str(text), limit))


def _head(title: str, stories: Sequence[Story]) -> str:
    lines = []
    for story in stories:
        ends = {row.get("adapter"): row for row in story.evals if row.get("final")}
        gain = ""
        if "none" in ends and "best" in ends:
            before, after = (ends[name].get("score") for name in ("none", "best"))
            gain = f": held out {_percent(before)} before, {_percent(after)} with the best adapter"
        model, task = (story.config.get(section, {}).get("name", "?") for section in ("model", "task"))
        what = f"{_text(model)} on {_text(task)}, {len(story.steps)} steps"
        lines.append(f"<li><b>{_text(story.name)}</b> ({what}){gain}</li>")
    return f"<h1>{_text(title)}</h1><ul>{''.join(lines)}</ul>"


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "-"


def _curves(stories: Sequence[Story]) -> str:
    choices = "".join(
        f'<label><input type="radio" name="axis" value="{n}"{" checked" if n == 0 else ""}> {name}</label>'
        for n, name in enumerate(AXES.values())
    )
    groups = "".join(
        f'<div class="charts" data-axis="{n}"{"" if n == 0 else " hidden"}>'
        + "".join(f"<figure>{svg}</figure>" for svg in charts(stories, axis))
        + "</div>"
        for n, axis in enumerate(AXES)
    )
    return (
        f'<section><h2>Curves</h2><fieldset class="axis"><legend>against</legend>{choices}</fieldset>{groups}</section>'
    )


def _table(table: Table) -> str:
    caption, heads, rows = table
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell, 500)}</td>" for cell in row) + "</tr>" for row in rows)
    shown = " open" if len(rows) <= 12 else ""
    return (
        f'<details{shown}><summary>{_text(caption)} ({len(rows)})</summary><div class="wide"><table><caption>'
        f"{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details>"
    )


def _rollouts(story: Story, number: int) -> str:
    """The heat map's frame; `report.js` fills it from the JSON block."""
    shown = [_shown(row) for row in story.rollouts]
    if not shown:
        return f"<section><h2>Tokens of {_text(story.name)}</h2><p>No rollouts were kept.</p></section>"
    # `<` is written as an escape, so that no text can end the block.
    block = json.dumps(plain(shown), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    name = f"tokens-{number}"
    return (
        f'<section class="tokens" id="{name}"><h2>Tokens of {_text(story.name)}</h2>'
        '<p>Each token by log q − log p: <span class="t n6">red</span>, the self-teacher disagreed; '
        '<span class="t p6">green</span>, it agreed more than the student. Hover, or move with the arrow keys, '
        "for both candidates. Numbers mark where the two part first.</p>"
        f'<div class="choose"><label>problem <select class="problem"></select></label>'
        f'<label>answer <select class="answer"></select></label></div>'
        f'<div class="pair"><div><h3>The answer</h3><p class="verdict"></p>'
        f'<div class="map" role="group" aria-label="tokens of the answer"></div>'
        f'<ol class="parts" aria-label="where student and teacher part first"></ol>'
        f'<div class="tip" role="status" aria-live="polite"></div></div>'
        f'<div><h3>What the environment said</h3><pre class="feedback" tabindex="0"></pre>'
        f'<h3>What the self-teacher saw</h3><pre class="teacher" tabindex="0"></pre></div></div>'
        f'<h3>The same problem over time</h3><div class="time"></div>'
        f'<script type="application/json">{block}</script></section>'
    )


def _shown(row: Row) -> dict[str, Any]:
    """A rollout as the page's script takes it; control and direction characters are gone from every text."""
    divergence = row.get("divergence")
    pieces = row.get("pieces") or [str(row.get("answer", ""))]
    if not isinstance(divergence, list) or len(divergence) != len(pieces):
        divergence = None
    return {
        "step": row["step"],
        "problem": display(str(row.get("problem", "")), 200),
        "index": row.get("index", 0),
        "pieces": [_piece(piece) for piece in pieces],
        "d": divergence,
        "parts": _parts(divergence or []),
        "top": _candidates(row.get("candidates"), len(pieces)),
        "reward": row.get("reward"),
        "success": bool(row.get("success")),
        "kind": display(str(row.get("kind", "")), 40),
        "feedback": display(str(row.get("feedback", "")), LONGEST),
        "teacher": [_message(each) for each in row.get("teacher") or [] if isinstance(each, dict)],
    }


def _message(message: Row) -> str:
    return f"[{display(str(message.get('role', '')), 20)}]\n{display(str(message.get('content', '')), LONGEST)}"


def _piece(piece: Any) -> str:
    return display(str(piece), 2_000)


def _parts(divergence: Sequence[Any]) -> list[int]:
    """The first three places where student and teacher part."""
    return [i for i, d in enumerate(divergence) if isinstance(d, int | float) and abs(d) >= PARTED][:3]


def _candidates(found: Any, tokens: int) -> Any:
    """A token each: the student's and the teacher's likeliest, as [text, probability]."""
    if not isinstance(found, dict):
        return None
    student, teacher = found.get("student"), found.get("teacher")
    if not (isinstance(student, list) and isinstance(teacher, list) and len(student) == len(teacher) == tokens):
        return None
    return [[[[_piece(text), p] for text, p in side] for side in sides] for sides in zip(student, teacher, strict=True)]
