"""The token heat map of a run: HTML that `report.js` fills from one JSON block of limited size."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from typing import Any

from sdpo_mlx.core.storage import plain
from sdpo_mlx.core.text import display
from sdpo_mlx.runs.report.collect import Row, RunData

DIVERGES = 1.0  # |log q - log p| from which student and teacher count as different
MAX_TEXT = 20_000  # characters
MAX_SHARE = 4  # one rollout takes at most a quarter of the block
SCALE = (("n6", "−1.6"), ("n4", "−0.4"), ("n2", "−0.1"), ("p2", "+0.1"), ("p4", "+0.4"), ("p6", "+1.6"))


def section(run: RunData, index: int, max_bytes: int) -> str:
    """Return the section of one run; its JSON block takes at most `max_bytes`."""
    head = f'<section class="tokens" id="tokens-{index}"><h2>Tokens of {escape(display(run.name))}</h2>'
    encoded, room, most = dict[int, str](), max_bytes, max_bytes // MAX_SHARE
    for at in _by_priority(run.rollouts):
        small = (text for text in _versions(run.rollouts[at]) if len(text) <= most)
        text = next((text for text in islice(small, 2) if len(text) < room), "")
        if text:
            encoded[at], room = text, room - len(text) - 1
    if not encoded:
        why = "No rollout fits on this page." if run.rollouts else "No rollouts were stored."
        return f"{head}<p>{why}</p></section>"
    rows = ",".join(encoded[at] for at in sorted(encoded))
    return (
        f"{head}{_legend(run)}"
        '<div class="choose"><label>problem <select class="problem"></select></label>'
        '<label>rollout <select class="answer"></select></label></div>'
        '<div class="pair"><div><h3>The rollout</h3><p class="verdict"></p>'
        '<ol class="parts" aria-label="where student and self-teacher first differ"></ol>'
        '<div class="map" role="group" aria-label="tokens of the rollout; arrow keys, Home and End move"></div>'
        '<div class="tip" role="status" aria-live="polite"></div></div>'
        f"<div>{_text_box('asked', 'Prompt')}{_text_box('feedback', 'Feedback from the environment')}"
        f"{_text_box('teacher', 'What the self-teacher saw')}</div></div>"
        '<h3>The same problem over time</h3><div class="time"></div>'
        f'<script type="application/json">[{rows}]</script></section>'
    )


def _legend(run: RunData) -> str:
    if not run.has_teacher:
        return (
            '<p class="lead">This run had no self-teacher (objective.kind: grpo), so tokens were not scored one by '
            "one and have no colours.</p>"
        )
    scale = " ".join(f'<span class="t {shade}">{value}</span>' for shade, value in SCALE)
    return (
        '<p class="lead">How likely did the self-teacher, which saw more, find each token of the student? '
        '<span class="t n6">Red and underlined</span>: less likely than the student did. '
        '<span class="t p6">Green</span>: more likely. '
        "Point at a token, or move with the arrow keys, for the most likely tokens of both; numbers mark where the two "
        f'first differ.</p><p class="scale">log q − log p (q: self-teacher, p: student): {scale}</p>'
    )


def _text_box(name: str, title: str) -> str:
    return f'<h3>{title}</h3><pre class="{name}" tabindex="0" role="region" aria-label="{title}"></pre>'


def _by_priority(rows: Sequence[Row]) -> list[int]:
    """Return indices: one row of each step before the second of any, with candidates first; both ends, then finer."""
    steps = sorted({row["step"] for row in rows})
    last = len(steps) - 1
    coarse = {step: 0 if n in (0, last) else -(n & -n) + last + 1 for n, step in enumerate(steps)}
    ranked, seen = [], Counter[int]()
    for at, row in sorted(enumerate(rows), key=lambda each: "candidates" not in each[1]):
        seen[row["step"]] += 1
        ranked.append((seen[row["step"]], coarse[row["step"]], at))
    return [at for *_, at in sorted(ranked)]


def _versions(row: Row) -> Iterator[str]:
    """Yield the row as JSON, smaller and smaller: whole, without its candidates, cut to fewer and fewer tokens."""
    shown = _shown(row)
    yield _encoded(shown)
    shown["top"] = None
    count = len(shown["pieces"])
    while count > 64:
        yield _encoded(shown)
        count //= 2
        shown["cut"] = shown["cut"] + len(shown["pieces"]) - count
        shown |= {"pieces": shown["pieces"][:count], "d": shown["d"] and shown["d"][:count]}
        shown["parts"] = [at for at in shown["parts"] if at < count]
    yield _encoded(shown)


def _encoded(shown: Any) -> str:
    # `<` is written as an escape, so that no text can end the block.
    return json.dumps(plain(shown), ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


def _shown(row: Row) -> dict[str, Any]:
    """Return a rollout as `report.js` reads it, without control and direction characters in any text."""
    divergence = row.get("divergence")
    pieces = row.get("pieces") or [str(row.get("answer", ""))]
    if not isinstance(divergence, list) or len(divergence) != len(pieces):
        divergence = None
    return {
        "step": row["step"],
        "problem": display(str(row.get("problem", "")), 200) + (" (held out)" if row.get("held_out") else ""),
        "held": bool(row.get("held_out")),
        "index": row.get("index", 0),
        "turn": row.get("turn", 1),
        "turns": row.get("turns", 1),
        "pieces": [_piece(piece) for piece in pieces],
        "cut": 0,
        "d": divergence,
        # The first three tokens where student and teacher differ.
        "parts": [i for i, d in enumerate(divergence or []) if isinstance(d, int | float) and abs(d) >= DIVERGES][:3],
        "top": _candidates(row.get("candidates"), len(pieces)),
        "reward": row.get("reward"),
        "success": bool(row.get("success")),
        "kind": display(str(row.get("kind", "")), 40),
        "finish": display(str(row.get("finish", "")), 20),
        "asked": _messages(row.get("prompt")),
        "feedback": display(str(row.get("feedback", "")), MAX_TEXT),
        "teacher": _messages(row.get("teacher")),
    }


def _messages(messages: Any) -> list[str]:
    return [
        f"[{display(str(each.get('role', '')), 20)}]\n{display(str(each.get('content', '')), MAX_TEXT)}"
        for each in messages or []
        if isinstance(each, dict)
    ]


def _piece(piece: Any) -> str:
    return display(str(piece), 2_000)


def _candidates(found: Any, tokens: int) -> Any:
    """Return the most likely tokens of student and teacher for each token, as [text, probability]."""
    if not isinstance(found, dict):
        return None
    student, teacher = found.get("student"), found.get("teacher")
    if not (isinstance(student, list) and isinstance(teacher, list) and len(student) == len(teacher) == tokens):
        return None
    return [[[[_piece(text), p] for text, p in side] for side in sides] for sides in zip(student, teacher, strict=True)]
