"""Charts: valid, inert, the same bytes again, and the points where they belong."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.runs.report.svg import BOTTOM, HEIGHT, LEFT, LETTER, RIGHT, STYLES, TOP, WIDTH, Series, line_chart, ticks

SVG = "{http://www.w3.org/2000/svg}"
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-1e6, 1e6)


def parsed(series: list[Series], **options: object) -> ET.Element:
    words = {"title": "t", "x_label": "x", "y_label": "y", **options}
    return ET.fromstring(line_chart(series, **words))  # type: ignore[arg-type]


@given(st.lists(st.tuples(numbers, numbers), max_size=8), st.text(max_size=30))
def test_any_numbers_and_names_give_a_valid_picture(rows: list[tuple[float, float]], name: str) -> None:
    series = [Series(name, [x for x, _ in rows], [y for _, y in rows])] * 2
    first = line_chart(series, title=name, x_label=name, y_label=name)
    assert first == line_chart(series, title=name, x_label=name, y_label=name)
    root = ET.fromstring(first)
    assert {child.tag.removeprefix(SVG) for child in root.iter()} <= {
        *("svg", "title", "desc", "text", "line", "polyline", "polygon", "circle"),
    }
    assert "nan" not in first.replace(name, "") or "inf" not in first.replace(name, "")


def test_the_ends_of_a_line_stand_at_the_corners() -> None:
    root = parsed([Series("a", [0, 1], [0, 1])])
    points = [tuple(map(float, p.split(","))) for p in next(root.iter(f"{SVG}polyline")).attrib["points"].split()]
    assert points == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]


def test_numbers_that_are_none_leave_a_line_without_them() -> None:
    root = parsed([Series("a", [1, 2, 3, 4], [1.0, math.nan, None, 2.0])])  # type: ignore[list-item]
    assert len(next(root.iter(f"{SVG}polyline")).attrib["points"].split()) == 2


def test_a_band_encloses_its_line() -> None:
    root = parsed([Series("a", [1, 2], [0.5, 0.6], [0.4, 0.5], [0.6, 0.9])], y_range=(0, 1))
    band = [float(p.split(",")[1]) for p in next(root.iter(f"{SVG}polygon")).attrib["points"].split()]
    line = [float(p.split(",")[1]) for p in next(root.iter(f"{SVG}polyline")).attrib["points"].split()]
    assert all(low > y > high for low, y, high in zip(band[:2], line, reversed(band[2:]), strict=True))


def test_markup_in_a_name_stays_text() -> None:
    root = parsed([Series("</text><script>x</script>", [1], [1]), Series("b", [1], [1])])
    assert not list(root.iter(f"{SVG}script"))
    assert any("<script>" in (text.text or "") for text in root.iter(f"{SVG}text"))


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert len(found) <= 12
    slack = 1e-6 * width + 1e-9 * abs(low)
    assert all(low - slack <= tick <= low + width + slack for tick in found)


@given(st.lists(st.text("ab-", min_size=1, max_size=120), min_size=2, max_size=8))
def test_a_legend_stays_inside_the_picture_whatever_the_names(names: list[str]) -> None:
    root = parsed([Series(name, [0, 1], [0, 1]) for name in names])
    height = float(root.attrib["viewBox"].split()[3])
    texts = list(root.iter(f"{SVG}text"))[-len(names) :]
    places = [(float(text.attrib["x"]), float(text.attrib["y"]), len(text.text or "")) for text in texts]
    assert all(x + LETTER * length <= WIDTH and HEIGHT - BOTTOM < y < height for x, y, length in places)
    assert len(set(places)) == len(places)
    assert all(y > HEIGHT for _, y, _ in places)  # below the axis's own words


def test_names_that_differ_at_their_end_still_do_when_cut() -> None:
    texts = [text.text for text in parsed([Series("run-" * 40 + end, [1], [1]) for end in "12"]).iter(f"{SVG}text")]
    assert len({text for text in texts if text and "…" in text}) == 2


def test_few_points_have_marks_and_many_have_none() -> None:
    few, many = (parsed([Series("a", range(count), range(count))]) for count in (3, 40))
    assert (len(list(few.iter(f"{SVG}circle"))), len(list(many.iter(f"{SVG}circle")))) == (3, 0)


def test_a_picture_is_told_in_words() -> None:
    said = next(parsed([Series("a", [1, 2, 3], [0.5, 0.25, 1.0])]).iter(f"{SVG}desc")).text
    assert said == "y against x. a: 0.5 at 1, 1 at 3; lowest 0.25, highest 1, 3 points"


def test_colour_and_dash_can_be_given_apart() -> None:
    root = parsed([Series("a", [1, 2], [1, 2], colour=1, dash=0), Series("b", [1, 2], [1, 2], colour=1, dash=1)])
    lines = [(line.attrib["stroke"], line.attrib.get("stroke-dasharray")) for line in root.iter(f"{SVG}polyline")]
    assert lines == [(STYLES[1][0], None), (STYLES[1][0], STYLES[1][1])]
