"""Line charts as SVG, by themselves or inside a page: no script, no font, no colour alone to tell lines apart.

Equal input gives equal bytes. Every text is escaped; numbers that are none are left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 300  # without the legend; narrow, so that a telephone's screen leaves the text readable
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 46
ROW = 18  # of the legend, which stands below
LETTER = 6.6  # about the width of a character
MARKED = 12  # points up to which each has its mark
# Okabe and Ito's colours that keep a contrast of 3 to 1 on white and on near-black; the dash tells them apart too.
STYLES = (("#0072b2", ""), ("#d55e00", "7 3"), ("#009e73", "2 3"), ("#b0568c", "9 3 2 3"), ("#8a7a00", "12 4"))
INK = "#767676"
TICKS = 5


@dataclass(frozen=True)
class Series:
    """One line, and where `lows` and `highs` are given the band around it; all of one length.

    `colour` and `dash` count through `STYLES`; without them each line takes the next style.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    colour: int | None = None
    dash: int | None = None

    def style(self, at: int) -> tuple[str, str]:
        """Colour and dash of the line that stands at this place."""
        colour, dash = (at if own is None else own for own in (self.colour, self.dash))
        return STYLES[colour % len(STYLES)][0], STYLES[dash % len(STYLES)][1]


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
    words = "; ".join(_told(each.name, rows) for each, rows in zip(series, points, strict=True))
    legend, height = _legend(series)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
        f"<title>{_text(title)}</title><desc>{_text(f'{y_label} against {x_label}. {words}')}</desc>"
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{_text(title)}</text>'
    )
    if not xs:
        return f'{head}<text x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle">no figures</text></svg>'
    across = _Scale(*_ends(xs, wide=not log_x), LEFT, WIDTH - RIGHT, log_x)
    down = _Scale(*(y_range or _ends(ys)), HEIGHT - BOTTOM, TOP)
    drawn = [_line(rows, series[n].style(n), across, down) for n, rows in enumerate(points)]
    return head + _axes(across, down, x_label, y_label) + "".join(drawn) + legend + "</svg>"


def _told(name: str, rows: Sequence[tuple[float, ...]]) -> str:
    """A line in words, for who cannot see it."""
    if not rows:
        return f"{name}: no figures"
    first, last = rows[0], rows[-1]
    words = f"{name}: {first[1]:.3g} at {_number(first[0])}"
    if len(rows) == 1:
        return words
    ys = [row[1] for row in rows]
    ends = f"{last[1]:.3g} at {_number(last[0])}"
    return f"{words}, {ends}; lowest {min(ys):.3g}, highest {max(ys):.3g}, {len(rows)} points"


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


def _line(rows: Sequence[tuple[float, ...]], style: tuple[str, str], across: _Scale, down: _Scale) -> str:
    if not rows:
        return ""
    colour, dash = style
    place = [(across.at(row[0]), [min(max(down.at(y), TOP), HEIGHT - BOTTOM) for y in row[1:]]) for row in rows]
    band = ""
    if len(rows[0]) > 2:
        edge = [*((x, ys[1]) for x, ys in place), *((x, ys[2]) for x, ys in reversed(place))]
        band = f'<polygon points="{_points(edge)}" fill="{colour}" fill-opacity="0.15"/>'
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    path = f'<polyline points="{_points([(x, ys[0]) for x, ys in place])}" fill="none" stroke="{colour}"'
    marked = place if len(place) <= MARKED else []
    dots = "".join(f'<circle cx="{_px(x)}" cy="{_px(ys[0])}" r="3" fill="{colour}"/>' for x, ys in marked)
    return f'{band}{path} stroke-width="2"{dashed}/>{dots}'


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """Below everything, in as many rows as it takes, and the height of the whole; one line alone needs none."""
    if len(series) < 2:
        return "", HEIGHT
    parts, x, y = [], float(LEFT), HEIGHT + 4
    for n, each in enumerate(series):
        colour, dash = each.style(n)
        name = _short(each.name)
        wide = 27 + LETTER * len(name) + 16
        if x > LEFT and x + wide > WIDTH:
            x, y = float(LEFT), y + ROW
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        line = f'<line x1="{_px(x)}" y1="{y}" x2="{_px(x + 22)}" y2="{y}" stroke="{colour}" stroke-width="2"{dashed}/>'
        parts.append(f'{line}<text x="{_px(x + 27)}" y="{y + 4}">{_text(name)}</text>')
        x += wide
    return "".join(parts), y + 14


def _short(name: str) -> str:
    """What a row has room for; the middle goes, as runs mostly differ at an end."""
    most = int((WIDTH - LEFT - 43) / LETTER)
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


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
