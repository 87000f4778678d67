"""Cleaning, shortening, thinking removed, and templates filled once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdpo_mlx.core.text import check_template, clean, display, fill_template, shorten_middle, strip_thinking

ANY_TEXT = st.text(st.characters(codec=None), max_size=200)
FORBIDDEN = [chr(i) for i in [*range(9), *range(11, 32), *range(127, 160)]] + list("\u202e\u2066\u061c\u200f\ud800")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("\x1b[31mred\x1b[0m \x1b[2Jx", "red x"),
        ("\x1b]0;title\x07text \x1b]8;;http://x\x1b\\link", "text link"),
        ("\x9b31mred \x9d0;title\x9cend", "red end"),
        ("\x1bcreset \x1b(Bset", "reset set"),
        ("nul\x00 bell\x07 open\x1b", "nul bell open"),
        ("a\u202eb\u2066c\u200f", "abc"),
        ("half \ud83d pair", "half \ufffd pair"),
        ("{braces} \\n 100% שלום 👩\u200d🚀", "{braces} \\n 100% שלום 👩\u200d🚀"),
    ],
)
def test_clean_keeps_text_and_drops_controls(raw, cleaned):
    assert clean(raw) == cleaned
    assert display(raw) == cleaned


@given(ANY_TEXT, st.integers(0, 100))
def test_clean_is_encodable_short_and_without_controls_for_any_text(text, limit):
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    cleaned.encode("utf-8")
    assert not set(cleaned) & set(FORBIDDEN)


@given(ANY_TEXT)
def test_clean_changes_nothing_the_second_time(text):
    assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize("flood", ["\x9d", "\x1b]", "\x1b[", "\x1b[0", "\x1bP1"])
def test_clean_survives_a_flood_of_unclosed_sequences(flood):
    assert "\x1b" not in clean(flood * 200_000, 100)


@given(st.text(max_size=500), st.integers(0, 600))
def test_shorten_middle_keeps_head_and_tail_and_states_the_cut(text, limit):
    short = shorten_middle(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert short == text
    elif "characters cut" in short and "characters cut" not in text:
        head, _, tail = short.partition("\n[... ")
        cut, _, tail = tail.partition(" characters cut ...]\n")
        assert text.startswith(head)
        assert text.endswith(tail)
        assert len(head) + len(tail) + int(cut) == len(text)


def test_shorten_middle_keeps_both_ends_of_a_long_text():
    short = shorten_middle("HEAD" + "x" * 10_000 + "TAIL", 100)
    assert short.startswith("HEAD")
    assert short.endswith("TAIL")
    assert "characters cut" in short


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>a</think>b", "b"),
        ("<think>\n\n</think>\n\nb <think>c</think>d", "b d"),
        ("b<think>never closed", "b"),
        ("<think>only", ""),
        ("opened by the prompt</think>\n\nb", "b"),
        ("<think>a<think>b</think>c</think>d", "d"),
        ("plain", "plain"),
    ],
)
def test_strip_thinking_leaves_the_answer(text, answer):
    assert strip_thinking(text) == answer


def test_strip_thinking_takes_other_marks():
    assert strip_thinking("[T]a[/T]b", "[T]", "[/T]") == "b"


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{problem} {demo}", "unknown slot {demo}"),
        ("{demonstration}", "no {problem}"),
        ("{problem} {attempt}", "neither"),
    ],
)
def test_check_template_refuses_what_cannot_teach(template, complaint):
    with pytest.raises(ValueError, match=complaint.replace("{", r"\{")):
        check_template(template)


def test_check_template_takes_literal_braces():
    check_template('{problem} {"a": {}} {0} {feedback}')


def test_fill_template_never_reads_what_it_filled_in():
    values = {"problem": "{feedback} {x} \\1 %s", "feedback": "{problem}", "demonstration": None, "attempt": None}
    assert fill_template("{problem}|{feedback}", values) == "{feedback} {x} \\1 %s|{problem}"


def test_fill_template_leaves_out_paragraphs_whose_slots_are_all_absent():
    template = "{problem}\n\nSolution:\n{demonstration}\n\nSaid {feedback} of {attempt}.\n\nGo."
    values = {"problem": "P", "demonstration": None, "attempt": None, "feedback": "F"}
    assert fill_template(template, values) == "P\n\nSaid F of .\n\nGo."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("a `</think>` b", "a `</think>` b"),
        ("<think>I close with `</think>` now</think>b", "b"),
        ("<think>a\n```\nx = '''\n</think>\nb'''", "b'''"),
        ('```\nx = "</think>"\n```', '```\nx = "</think>"\n```'),
        ("```\n# </think>\n```\n</think>\nb", "b"),
        ("it's a</think>b isn't", "b isn't"),
        ("a</think>b</think>c", "c"),
        ("a<think>b</think>c</think>d<think>", "d"),
    ],
)
def test_strip_thinking_takes_quoted_marks_for_text(text, answer):
    assert strip_thinking(text) == answer
