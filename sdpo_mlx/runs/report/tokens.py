"""The heat map of a run: a frame that `report.js` fills from one JSON block, never larger than it may be."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from typing import Any

from sdpo_mlx.core.storage import plain
from sdpo_mlx.core.text import display
from sdpo_mlx.runs.report.collect import Row, RunData

PARTED = 1.0  # |log q - log p| from which student and teacher are said to part
LONGEST = 20_000  # characters of one text
SHARE = 4  # of the room, one answer takes at most a quarter
SCALE = (("n6", "−1.6"), ("n4", "−0.4"), ("n2", "−0.1"), ("p2", "+0.1"), ("p4", "+0.4"), ("p6", "+1.6"))


def section(story: RunData, number: int, room: int) -> str:
    """Frame and block; the block takes at most `room` bytes."""
    head = f'<section class="tokens" id="tokens-{number}"><h2>Tokens of {escape(display(story.name))}</h2>'
    rows = _fitting(story.rollouts, room)
    if not rows:
        why = "None has room here." if story.rollouts else "No answers were kept."
        return f"{head}<p>{why}</p></section>"
    return (
        f"{head}{_words(story)}"
        '<div class="choose"><label>problem <select class="problem"></select></label>'
        '<label>answer <select class="answer"></select></label></div>'
        '<div class="pair"><div><h3>The answer</h3><p class="verdict"></p>'
        '<ol class="parts" aria-label="where student and self-teacher part first"></ol>'
        '<div class="map" role="group" aria-label="tokens of the answer; arrow keys, Home and End move"></div>'
        '<div class="tip" role="status" aria-live="polite"></div></div>'
        f"<div>{_text_box('asked', 'What was asked')}{_text_box('feedback', 'What the environment said')}"
        f"{_text_box('teacher', 'What the self-teacher saw')}</div></div>"
        '<h3>The same problem over time</h3><div class="time"></div>'
        f'<script type="application/json">[{",".join(rows)}]</script></section>'
    )


def _words(story: RunData) -> str:
    if not story.taught:
        return (
            '<p class="lead">This run had no self-teacher (objective.kind: grpo), so no token was judged on its own: '
            "the answers stand here without colours.</p>"
        )
    scale = " ".join(f'<span class="t {shade}">{value}</span>' for shade, value in SCALE)
    return (
        '<p class="lead">What did the self-teacher, which saw more, make of each token that the student wrote? '
        '<span class="t n6">Red and underlined</span>: it would rather not have written it. '
        '<span class="t p6">Green</span>: it was surer of it than the student. '
        "Point at a token, or move with the arrow keys, for what both held likeliest; numbers mark where the two part "
        f'first.</p><p class="scale">log q − log p (q: self-teacher, p: student): {scale}</p>'
    )


def _text_box(name: str, title: str) -> str:
    return f'<h3>{title}</h3><pre class="{name}" tabindex="0" role="region" aria-label="{title}"></pre>'


def _fitting(rows: Sequence[Row], room: int) -> list[str]:
    """As many as fit, encoded, in their order; where not all do, no part of the run is told before the others."""
    kept, most = dict[int, str](), room // SHARE
    for at in _by_worth(rows):
        small = (text for text in _versions(rows[at]) if len(text) <= most)
        text = next((text for text in islice(small, 2) if len(text) < room), "")
        if text:
            kept[at], room = text, room - len(text) - 1
    return [kept[at] for at in sorted(kept)]


def _by_worth(rows: Sequence[Row]) -> list[int]:
    """One answer of each step before the second of any, those with candidates first; both ends, then ever finer."""
    steps = sorted({row["step"] for row in rows})
    last = len(steps) - 1
    coarse = {step: 0 if n in (0, last) else -(n & -n) + last + 1 for n, step in enumerate(steps)}
    ranked, seen = [], dict[Any, int]()
    for at, row in sorted(enumerate(rows), key=lambda each: "candidates" not in each[1]):
        seen[row["step"]] = seen.get(row["step"], 0) + 1
        ranked.append((seen[row["step"]], coarse[row["step"]], at))
    return [at for *_, at in sorted(ranked)]


def _versions(row: Row) -> Iterator[str]:
    """The row as JSON, smaller and smaller: whole, without its candidates, cut to fewer and fewer tokens."""
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
    """A rollout as the page's script takes it; control and direction characters are gone from every text."""
    divergence = row.get("divergence")
    pieces = row.get("pieces") or [str(row.get("answer", ""))]
    if not isinstance(divergence, list) or len(divergence) != len(pieces):
        divergence = None
    return {
        "step": row["step"],
        "problem": display(str(row.get("problem", "")), 200),
        "index": row.get("index", 0),
        "turn": row.get("turn", 1),
        "turns": row.get("turns", 1),
        "pieces": [_piece(piece) for piece in pieces],
        "cut": 0,
        "d": divergence,
        "parts": _parts(divergence or []),
        "top": _candidates(row.get("candidates"), len(pieces)),
        "reward": row.get("reward"),
        "success": bool(row.get("success")),
        "kind": display(str(row.get("kind", "")), 40),
        "finish": display(str(row.get("finish", "")), 20),
        "asked": _messages(row.get("prompt"))[-1:],
        "feedback": display(str(row.get("feedback", "")), LONGEST),
        "teacher": _messages(row.get("teacher")),
    }


def _messages(messages: Any) -> list[str]:
    return [_message(each) for each in messages or [] if isinstance(each, dict)]


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
