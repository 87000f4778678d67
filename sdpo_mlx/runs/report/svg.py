"""Line charts as SVG, for files or inline in HTML: no script, no font, and not only colours to distinguish lines.

Equal input gives equal bytes. Text is escaped; missing and non-finite values are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 520, 300  # without the legend; narrow, so that text stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 46
LEGEND_ROW = 18
LETTER = 6.6  # about the width of a character
MAX_VALUES = 150  # places along the x-axis whose values can be read
MAX_MARKED = 12  # lines of at most so many points have a mark at each
# Okabe and Ito's colours that keep a contrast of 3 to 1 on white and on near-black, and a dash for each.
STYLES = (("#0072b2", ""), ("#d55e00", "7 3"), ("#009e73", "2 3"), ("#b0568c", "9 3 2 3"), ("#8a7a00", "12 4"))
INK = "#767676"
TICKS = 5

Point = tuple[float, ...]  # x, y, and with a band: low, high


@dataclass(frozen=True)
class Series:
    """One line; with `lows` and `highs` also a band around it. All sequences have one length.

    `colour` and `dash` index `STYLES`; by default each line takes the next style.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    lows: Sequence[float] = ()
    highs: Sequence[float] = ()
    colour: int | None = None
    dash: int | None = None

    def style(self, position: int) -> tuple[str, str]:
        """Return the colour of the line at this position, and its stroke attributes."""
        colour, dash = (position if index is None else index for index in (self.colour, self.dash))
        colour_code, dashes = STYLES[colour % len(STYLES)][0], STYLES[dash % len(STYLES)][1]
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        return colour_code, f'stroke="{colour_code}" stroke-width="2"{dashed}'

    def points(self) -> list[Point]:
        """Return the points whose numbers are finite; a missing end of the band is put on the line."""
        band = bool(self.lows) and len(self.lows) == len(self.highs) == len(self.xs)
        columns = (self.xs, self.ys, self.lows, self.highs) if band else (self.xs, self.ys)
        points = []
        for row in zip(*columns, strict=True):
            x, y, *ends = (None if value is None or not math.isfinite(value) else float(value) for value in row)
            if x is not None and y is not None:
                points.append((x, y, *(y if end is None else end for end in ends)))
        return points


@dataclass(frozen=True)
class _Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low or 1.0) * (self.stop - self.start)


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    values: bool = False,
) -> str:
    """Return an `<svg>` element with axes, lines, bands and a legend; without any point, with a note instead.

    With `values` each place along the x-axis is a `<rect class="at">` with the values there as its title.
    """
    points = [each.points() for each in series]
    xs = [x for line in points for x, *_ in line]
    ys = [y for line in points for _, *values in line for y in values]
    summary = "; ".join(_summary(each.name, line) for each, line in zip(series, points, strict=True))
    legend, height = _legend(series)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">'
        f"<title>{_text(title)}</title><desc>{_text(f'{y_label} against {x_label}. {summary}')}</desc>"
        f'<text x="{LEFT}" y="20" font-size="14" font-weight="600">{_text(title)}</text>'
    )
    if not xs:
        return f'{head}<text x="{WIDTH // 2}" y="{HEIGHT // 2}" text-anchor="middle">no data</text></svg>'
    across = _Scale(*_ends(xs), LEFT, WIDTH - RIGHT)
    down = _Scale(*(y_range or _ends(ys)), HEIGHT - BOTTOM, TOP)
    lines = [_line(line, series[n].style(n), across, down) for n, line in enumerate(points) if line]
    drawn = head + _axes(across, down, x_label, y_label) + "".join(lines) + legend
    return drawn + (_values(series, points, across, x_label) if values else "") + "</svg>"


def _values(series: Sequence[Series], points: Sequence[list[Point]], across: _Scale, x_label: str) -> str:
    """Return a transparent area for each x with its values in words."""
    lines = [{x: rest for x, *rest in line} for line in points]
    every = sorted({x for line in lines for x in line})
    xs = every[:: -(-len(every) // MAX_VALUES)]
    edges = [LEFT, *((across.at(a) + across.at(b)) / 2 for a, b in itertools.pairwise(xs)), WIDTH - RIGHT]
    areas = []
    for x, (left, right) in zip(xs, itertools.pairwise(edges), strict=True):
        parts = [
            f"{each.name if len(series) > 1 else ''} {_figure(*line[x])}".strip()
            for each, line in zip(series, lines, strict=True)
            if x in line
        ]
        title = _text(f"after {_number(x)} {x_label}: {', '.join(parts)}")
        place = f'x="{_px(left)}" y="{TOP}" width="{_px(right - left)}" height="{HEIGHT - BOTTOM - TOP}"'
        areas.append(f'<rect class="at" {place} fill="none" pointer-events="all"><title>{title}</title></rect>')
    return "".join(areas)


def _figure(y: float, low: float | None = None, high: float | None = None) -> str:
    known = low is not None and high is not None and low < high  # both are on the line if they are missing
    return f"{y:.3g} ({low:.3g} to {high:.3g})" if known else f"{y:.3g}"


def _summary(name: str, points: Sequence[Point]) -> str:
    """Return a line in words, for screen readers."""
    if not points:
        return f"{name}: no data"
    ends = [f"{y:.3g} at {_number(x)}" for x, y, *_ in (points[0], points[-1])]
    if len(points) == 1:
        return f"{name}: {ends[0]}"
    ys = [point[1] for point in points]
    return f"{name}: {', '.join(ends)}; lowest {min(ys):.3g}, highest {max(ys):.3g}, {len(points)} points"


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """Return about `count` round numbers from `low` to `high`: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low - 0.5, high + 0.5) if low == high else (low, high)


def _axes(across: _Scale, down: _Scale, x_label: str, y_label: str) -> str:
    right, base, middle = WIDTH - RIGHT, HEIGHT - BOTTOM, (TOP + HEIGHT - BOTTOM) // 2
    parts = []
    for value in ticks(down.low, down.high):
        y = _px(down.at(value))
        parts.append(f'<line x1="{LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="{INK}" stroke-opacity="0.25"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{_number(value)}</text>')
    for value in ticks(across.low, across.high):
        x = _px(across.at(value))
        parts.append(f'<text x="{x}" y="{base + 16}" text-anchor="middle">{_number(value)}</text>')
    rotated = f'transform="rotate(-90 14 {middle})" text-anchor="middle"'
    return "".join(
        [
            *parts,
            f'<line x1="{LEFT}" y1="{base}" x2="{right}" y2="{base}" stroke="{INK}"/>',
            f'<text x="{right}" y="{HEIGHT - 12}" text-anchor="end">{_text(x_label)}</text>',
            f'<text x="14" y="{middle}" {rotated}>{_text(y_label)}</text>',
        ]
    )


def _line(points: Sequence[Point], style: tuple[str, str], across: _Scale, down: _Scale) -> str:
    xs = [_px(across.at(x)) for x, *_ in points]
    columns = [
        [_px(min(max(down.at(y), TOP), HEIGHT - BOTTOM)) for y in column] for column in [*zip(*points, strict=True)][1:]
    ]
    line, *edges = ([f"{x},{y}" for x, y in zip(xs, column, strict=True)] for column in columns)
    colour, stroke = style
    edge = " ".join([*edges[0], *reversed(edges[1])]) if edges else ""
    band = f'<polygon points="{edge}" fill="{colour}" fill-opacity="0.15"/>' if edges else ""
    marked = zip(xs, columns[0], strict=True) if len(points) <= MAX_MARKED else ()
    dots = "".join(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in marked)
    return f'{band}<polyline points="{" ".join(line)}" fill="none" {stroke}/>{dots}'


def _legend(series: Sequence[Series]) -> tuple[str, int]:
    """Return the legend below the chart, in as many rows as it takes, and the total height; one line needs none."""
    if len(series) < 2:
        return "", HEIGHT
    most = int((WIDTH - LEFT - 43) / LETTER)
    parts, x, y = [], float(LEFT), HEIGHT + 4
    for n, each in enumerate(series):
        name = each.name
        if len(name) > most:  # cut in the middle: runs mostly differ at an end
            name = f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"
        width = 27 + LETTER * len(name) + 16
        if x > LEFT and x + width > WIDTH:
            x, y = float(LEFT), y + LEGEND_ROW
        parts.append(f'<line x1="{_px(x)}" y1="{y}" x2="{_px(x + 22)}" y2="{y}" {each.style(n)[1]}/>')
        parts.append(f'<text x="{_px(x + 27)}" y="{y + 4}">{_text(name)}</text>')
        x += width
    return "".join(parts), y + 14


def _px(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _number(value: float) -> str:
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.0e}"
    return f"{value:,.10g}"


def _text(text: str) -> str:
    """Return XML text: markup escaped, and characters that XML forbids left out."""
    return escape(
        "".join(c for c in text if c in "\t\n" or (c >= " " and not "\ud800" <= c <= "\udfff" and c < "\ufffe"))
    )
