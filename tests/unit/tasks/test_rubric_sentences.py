"""Sentences are counted as a careful reader counts them, in many scripts; text checks see one spelling of a letter."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_mlx.tasks.rubric.checks import check_from_row
from sdpo_mlx.tasks.rubric.sentences import count_sentences

CASES: list[tuple[str, int]] = [
    # other scripts
    ("我来了。你好吗？", 2),
    ("雨です。傘を持って。", 2),
    ("今日は晴れ！明日は？わからない。", 3),
    ("雨です．傘を持って．", 2),
    ("「行こう。」と言った。", 1),
    ("价格是3.5元。很便宜！", 2),
    ("यह एक वाक्य है। यह दूसरा है।", 2),
    ("هل أنت بخير؟ نعم.", 2),
    ("Τι κάνεις; Καλά.", 2),
    ("Это кот. Он спит.", 2),
    ("Բարև։ Ինչպե՞ս ես։", 2),
    ("안녕하세요. 반갑습니다!", 2),
    ("สวัสดี", 1),
    # abbreviations
    ("Use fruit, e.g. apples, daily.", 1),
    ("Use fruit, e.g. Golden Delicious, daily.", 1),
    ("Use it, i.e., now.", 1),
    ("Dr. Smith met Mrs. Jones. They talked.", 2),
    ("Prof. Dr. Müller kommt.", 1),
    ("We saw St. Petersburg and Mt. Everest.", 1),
    ("He lives on Main St. He likes it.", 2),
    ("J. R. R. Tolkien wrote it.", 1),
    ("George W. Bush spoke. He left.", 2),
    ("Choose plan B. Then call us.", 2),
    ("The U.S. Army came. It left.", 2),
    ("I live in the U.S. The food is good.", 2),
    ("See Fig. 3 and No. 5 on p. 12.", 1),
    ("No. I will not.", 2),
    ("It was on Jan. 5 at 5 p.m. on a Monday.", 1),
    ("It begins at 5 p.m. Then we eat.", 2),
    ("Apples, pears, etc. are fine.", 1),
    ("Apples, pears, etc. They are fine.", 2),
    ("Smith et al. (2020) say so.", 1),
    ("Obst, z.B. Äpfel, ist gesund.", 1),
    ("Obst, z. B. Äpfel, ist gesund.", 1),
    ("Das kostet ca. 5 Euro. Gut.", 2),
    ("Am 3. Mai kam er. Dann ging er.", 2),
    ("M. Dupont est là. Il parle.", 2),
    ("Germany vs. France was good.", 1),
    # numbers, names, addresses
    ("It costs 3.5 euros. That is a lot.", 2),
    ("Version 1.2.3 is out. Get it!", 2),
    ("He won in 2019. 5 people cheered.", 2),
    ("I use Node.js and file.txt daily.", 1),
    ("Go to https://x.org/?q=1&r=a.b. Then stop.", 2),
    ("Write to a.b@x.org. Thanks!", 2),
    ("I use Node.js. Python is fine too.", 2),
    ("She has a Ph.D. Her sister has none.", 2),
    ("The answer is 42.", 1),
    ("I like it. iPhones are good.", 2),
    # lists
    ("1. Eat well.\n2. Sleep well.", 2),
    ("1) Eat well.\n2) Sleep well.", 2),
    ("1. Eat well\n2. Sleep well", 2),
    ("1. Eat well. 2. Sleep well.", 2),
    ("Do this: 1. Eat well. 2. Sleep well.", 3),
    ("9. Eat well.\n10. Sleep well.", 2),
    ("- Eat well.\n- Sleep well. Always.", 3),
    ("a. Eat well.\nb. Sleep well.", 2),
    ("Do this:\n\n1. Eat.\n2. Sleep.\n", 3),
    ("# Health\n\nEat well. Sleep well.", 2),
    # ellipses, quotes, several marks
    ("Wait... what?", 1),
    ("Wait... What?", 2),
    ("Wait… What?", 2),
    ("I think… maybe.", 1),
    ("Really?! Yes!!!", 2),
    ('"Stop!" he said.', 1),
    ('He said, "Stop." Then he left.', 2),
    ("“Go.” “Why?”", 2),
    ("He (really?) came.", 1),
    ("It works (see above). Good.", 2),
    ("It works. (See above.)", 2),
    ("**Yes.** *No.*", 2),
    # lines and what is no sentence
    ("A long sentence\nthat goes on.\nAnother one.", 2),
    ("One paragraph\n\nand another", 2),
    ("an old pond\na frog jumps in\nthe sound of water", 1),
    ("Hello! 😀", 1),
    ("One", 1),
    ("", 0),
    ("...", 0),
    ("One. Two!", 2),
]


@pytest.mark.parametrize(("text", "count"), CASES)
def test_sentences_are_counted_as_a_reader_counts_them(text: str, count: int) -> None:
    assert count_sentences(text) == count
    assert failure(text, "sentences", count) == "" if text else True
    assert "sentence" in failure(text, "sentences", count + 1)


def failure(answer: str, kind: str, value: object, **more: object) -> str:
    return check_from_row({"kind": kind, "value": value, **more}, "f:1").failure(answer)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "A", " ", "\n", ".", "!", "。", "…", "1", '"', "(", ")", "Dr", "e.g.", ",", "é"]),
        max_size=60,
    )
)
def test_count_is_bounded_by_the_marks_and_never_fails(pieces: list[str]) -> None:
    text = "".join(pieces)
    count = count_sentences(text)
    assert (count > 0) == any(letter.isalnum() for letter in text)
    assert count <= 1 + sum(text.count(mark) for mark in ".!。…\n")
    assert count_sentences(unicodedata.normalize("NFD", text)) == count


@pytest.mark.parametrize(
    "text", [". " * 50_000, "." * 100_000, "1. " * 33_000, "a@" * 50_000, "#" * 100_000, "((" * 50_000]
)
def test_hostile_texts_are_counted_in_linear_time(text: str) -> None:
    assert count_sentences(text) >= 0


SPELLINGS = ["NFC", "NFD"]


@pytest.mark.parametrize("theirs", SPELLINGS)
@pytest.mark.parametrize("ours", SPELLINGS)
@pytest.mark.parametrize("word", ["café", "Ångström", "한국어", "Việt", "ά"])
def test_every_text_check_compares_letters_and_not_their_spelling(word: str, ours: str, theirs: str) -> None:
    value, answer = (unicodedata.normalize(form, word) for form in (ours, theirs))
    for kind in ("contains", "starts_with", "ends_with", "equals", "regex"):
        assert failure(answer, kind, value) == "", kind
    for kind in ("not_contains", "not_regex"):
        assert failure(answer, kind, value), kind
    assert failure(answer, "max_chars", len(unicodedata.normalize("NFC", word))) == ""
    assert failure(f'{{"{answer}": 1}}', "json_keys", [value]) == ""
    assert failure(f'["{answer}"]', "json_schema", {"items": {"enum": [value]}}) == ""
    assert failure(f'{{"{answer}": 1}}', "json_schema", {"required": [value]}) == ""


def test_letter_without_its_accent_is_another_letter() -> None:
    assert failure(unicodedata.normalize("NFD", "café"), "contains", "cafe")
    assert failure("cafe", "contains", unicodedata.normalize("NFD", "café"))


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        ("straße", "STRASSE"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("İstanbul", unicodedata.normalize("NFD", "İSTANBUL").lower()),
        (unicodedata.normalize("NFD", "ÉCOLE"), "école"),
        ("ﬁne", "FINE"),
        ("ᾳ", "ΑΙ"),
    ],
)
def test_case_is_folded_as_unicode_defines_it(value: str, answer: str) -> None:
    for kind in ("contains", "starts_with", "ends_with", "equals"):
        assert failure(answer, kind, value, ignore_case=True) == "", kind
    assert failure(answer, "not_contains", value, ignore_case=True)
