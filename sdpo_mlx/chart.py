"""Line charts as SVG, by themselves or inside a page: no script, no font, no colour alone to tell lines apart.

Equal input gives equal bytes. Every text is escaped; numbers that are none are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 46
# Okabe and Ito's colours that keep a contrast of 3 to 1 on white and on near-black; the dash tells them apart too.
STYLES = (("#0072b2", ""), ("#d55e00", "7 3"), ("#009e73", "2 3"), ("#b0568c", "9 3 2 3"), ("#8a7a00", "12 4"))
INK = "#767676"
TICKS = 5


@dataclass(frozen=True)
class Series:
    """One line, and where `lows` and `highs` are given the band around it; all of one length."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()


@dataclass(frozen=True)
class _Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low or 1.0) * (self.stop - self.start)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    log_x: bool = False,
) -> str:
    """A whole `<svg>` element with axes, lines, bands and a legend; without a point, a note that says so."""
    points = [_finite(each, log_x) for each in series]
    xs = [x for rows in points for x, *_ in rows]
    ys = [y for rows in points for _, *values in rows for y in values]
    words = ", ".join(each.name for each in series)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
        f"<title>{_text(title)}</title><desc>{_text(f'{y_label} against {x_label}: {words}')}</desc>"
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{_text(title)}</text>'
    )
    if not xs:
        return f'{head}<text x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle">no figures</text></svg>'
    across = _Scale(*_ends(xs, wide=not log_x), LEFT, WIDTH - RIGHT, log_x)
    down = _Scale(*(y_range or _ends(ys)), HEIGHT - BOTTOM, TOP)
    drawn = [_line(rows, *STYLES[n % len(STYLES)], across, down) for n, rows in enumerate(points)]
    return head + _axes(across, down, x_label, y_label) + "".join(drawn) + _legend(series) + "</svg>"


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(series: Series, log_x: bool) -> list[tuple[float, ...]]:
    """(x, y) or (x, y, low, high) of every point whose numbers are numbers."""
    band = bool(series.lows) and len(series.lows) == len(series.highs) == len(series.xs)
    columns = (series.xs, series.ys, series.lows, series.highs) if band else (series.xs, series.ys)
    rows = []
    for row in zip(*columns, strict=True):
        known = [None if value is None or not math.isfinite(value) else float(value) for value in row]
        x, y = known[:2]
        if x is None or y is None or (log_x and x <= 0):
            continue
        rows.append((x, y, *(y if value is None else value for value in known[2:])))
    return rows


def _ends(values: Sequence[float], *, wide: bool = True) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        return (low - 0.5, high + 0.5) if wide else (low / 2, high * 2)
    return low, high


def _axes(across: _Scale, down: _Scale, x_label: str, y_label: str) -> str:
    parts = []
    for value in ticks(down.low, down.high):
        y = _px(down.at(value))
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="{INK}" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{_number(value)}</text>')
    for value in _powers(across) if across.log else ticks(across.low, across.high):
        x = _px(across.at(value))
        parts.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>')
    base, middle = HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) // 2
    parts.append(f'<line x1="{LEFT}" y1="{base}" x2="{WIDTH - RIGHT}" y2="{base}" stroke="{INK}"/>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{_text(x_label)}</text>')
    turned = f'transform="rotate(-90 14 {middle})" text-anchor="middle"'
    parts.append(f'<text x="14" y="{middle}" {turned}>{_text(y_label)}</text>')
    return "".join(parts)


def _powers(scale: _Scale) -> list[float]:
    first, last = math.ceil(math.log2(scale.low) - 1e-9), math.floor(math.log2(scale.high) + 1e-9)
    step = max(1, (last - first) // 8 + 1)
    return [2.0**n for n in range(first, last + 1, step)] or [scale.low]


def _line(rows: Sequence[tuple[float, ...]], colour: str, dash: str, across: _Scale, down: _Scale) -> str:
    if not rows:
        return ""
    place = [(across.at(row[0]), [min(max(down.at(y), TOP), HEIGHT - BOTTOM) for y in row[1:]]) for row in rows]
    band = ""
    if len(rows[0]) > 2:
        edge = [*((x, ys[1]) for x, ys in place), *((x, ys[2]) for x, ys in reversed(place))]
        band = f'<polygon points="{_points(edge)}" fill="{colour}" fill-opacity="0.15"/>'
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = f'<polyline points="{_points([(x, ys[0]) for x, ys in place])}" fill="none" stroke="{colour}"'
    alone = len(rows) == 1
    dot = f'<circle cx="{_px(place[0][0])}" cy="{_px(place[0][1][0])}" r="3" fill="{colour}"/>' if alone else ""
    return f'{band}{path} stroke-width="2"{dashed}/>{dot}'


def _legend(series: Sequence[Series]) -> str:
    """Below the axis, a sample of each line before its name; one line alone needs none."""
    if len(series) < 2:
        return ""
    parts, x = [], float(LEFT)
    for n, each in enumerate(series):
        colour, dash = STYLES[n % len(STYLES)]
        name = each.name if len(each.name) <= 24 else f"{each.name[:23]}…"
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        y = HEIGHT - 16
        line = f'<line x1="{_px(x)}" y1="{y}" x2="{_px(x + 22)}" y2="{y}" stroke="{colour}" stroke-width="2"{dashed}/>'
        parts.append(f'{line}<text x="{_px(x + 27)}" y="{y + 4}">{_text(name)}</text>')
        x += 27 + 6.6 * len(name) + 16
    return "".join(parts)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_px(x)},{_px(y)}" for x, y in places)


def _px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _number(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}"
    return f"{value:,.10g}"


def _text(text: str) -> str:
    """XML text: markup escaped, and characters that XML forbids left out."""
    return escape(
        "".join(c for c in text if c in "\t\n" or (c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe"))
    )
