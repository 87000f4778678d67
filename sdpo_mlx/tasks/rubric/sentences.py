"""Count the sentences of a text by Unicode's rules (UAX #29, sentence boundaries) and what they leave to applications.

By the rules, named as there: every script's full stop, question and exclamation mark ends a sentence (SB11), also
without a blank behind it (`我来了。你好吗？`); a full stop does not before a digit (SB6: `3.5`), between letters (SB7),
or before a lower-case letter (SB8: `e.g. apples`); no mark does before a comma or dash (SB8a).

Beyond them:
- a line break is a blank; an empty line and a list item begin a sentence; list numbers and headings are none;
- abbreviations before a capital or a number, and initials, as in the suppressions of CLDR, of which `_TITLES`,
  `_LINKING` and `_NUMBERED` are the usual ones of a few languages;
- quoted speech that goes on in lower case (`"Stop!" he said.`) is one sentence; an ellipsis is a full stop;
- what holds no letter and no digit, such as an emoji, is no sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

_LIST_ITEM = regex.compile(r"[ \t]*(?:[-*+•‣–—]|(\d{1,3}\.)|\(?\d{1,3}\)|\(?[a-z][.)]|[ivx]{1,5}[.)])[ \t]+(?=\S)")
_HEADING = regex.compile(r"[ \t]*#{1,6}[ \t]+(.*)")
_ADDRESS = regex.compile(
    r"\b(?:[a-z][a-z+]{1,9}://|www\.)[^\s<>\"]*[^\s<>\".,!?…)\]'。！？]|\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}",
    regex.IGNORECASE,
)
# Greek's question mark is a semicolon in NFC. Marks of Markdown's emphasis close like quotation marks.
_MARK = r"(?:\p{SB=STerm}|\p{SB=ATerm}|…|(?<=\p{Script=Greek})[;\u037e])"
_END = regex.compile(
    rf"(?P<mark>(?:{_MARK}[\p{{SB=Extend}}\p{{SB=Format}}]*)+)(?P<close>[\p{{SB=Close}}*_~`]*)(?P<blank>\s*)"
)
_FULL_STOPS = regex.compile(r"[\p{SB=ATerm}\p{SB=Extend}\p{SB=Format}…]+")
_CONTINUES = regex.compile(r"\p{SB=SContinue}")  # SB8a
_LOWER = regex.compile(  # SB8
    r"[^\p{SB=OLetter}\p{SB=Upper}\p{SB=Lower}\p{SB=STerm}\p{SB=ATerm}\d]*\p{SB=Lower}(?!\p{Lu})"
)
_DIGIT = regex.compile(r"\d")
_LETTER, _CAPITAL = regex.compile(r"[\p{SB=Upper}\p{SB=Lower}]"), regex.compile(r"\p{SB=Upper}")
_WORD = regex.compile(r"[\p{SB=Close}*_~`]*([\p{L}\p{M}]+)(\.?)")
_LAST_WORD = regex.compile(r"(?:[\p{L}\p{M}]+\.)*[\p{L}\p{M}]+$|\d+$")
_SAID_JAPANESE = regex.compile(r"(?:と|って)")  # after a quotation, as in 「行こう。」と言った。
_NUMBER_AT_END = regex.compile(r"(?<!\d)(\d{1,3})\.$")
_NUMBER_ALONE = regex.compile(r"[^\p{L}\d]*(\d{1,3})[^\p{L}\d]*")
_INITIALS = regex.compile(r"(?:\p{L}{1,2}\.)+\p{L}")  # U.S, Ph.D, p.m
_NAMES = 40  # characters before a full stop in which its word is looked for


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words(  # before a name, which begins with a capital
    "Mr Mrs Ms Mx Dr Prof St Mt Ft Rev Hon Gen Col Maj Capt Cmdr Lt Sgt Gov Sen Rep Pres Messrs Hr Fr Frl Mme Mlle Mgr "
    "Sr Sra Srta Dra Dott Sig Dhr Mevr"
)
# Inside a sentence, whatever follows.
_LINKING = _words("eg ie cf vs viz al approx zb dh bzw ca evtl ggf inkl vgl sog bspw pex ej bijv т е")
_NUMBERED = _words(  # before a number
    "no nos nr fig figs eq eqs ch chap sec vol p pp art par col ed bd abb tab kap abs ziff núm n "
    "jan feb mar apr jun jul aug sep sept oct okt nov dec dez"
)
# After German's ordinal numbers, as in am 3. Mai.
_MONTHS = _words("Januar Februar März April Mai Juni Juli August September Oktober November Dezember Jahrhundert")
_STARTERS = _words(  # after an abbreviation these begin a sentence rather than go on with a name
    "the this that these those it its he she they we you i his her their our my your there then but and so if when "
    "while after before in on at for from as a an what who where why how yes however now also "
    "der die das ein eine es er sie wir ich dann aber und le la les il elle nous vous je el los las un una"
)


def count_sentences(text: str) -> int:
    """Return the number of sentences; a rest without a mark at its end counts as one too."""
    return sum(_count(block) for block in _blocks(text))


def _blocks(text: str) -> Iterator[str]:
    """Yield the paragraphs and list items, each on one line and without its bullet; headings are left out."""
    block: list[str] = []
    for line in _ADDRESS.sub("address", text).splitlines():
        heading, item = _HEADING.fullmatch(line), _LIST_ITEM.match(line)
        if heading or item or not line.strip():
            yield " ".join(block)
            block = []
        if heading and _END.search(heading[1]):
            yield heading[1]
        elif not heading:
            block.append(line[item.end() if item and not item[1] else 0 :].strip())
    yield " ".join(block)


def _count(block: str) -> int:
    """Return the sentences of one paragraph; the numbers of a list belong to what follows them."""
    count, last = 0, 0
    parts = [part for part in _split(block) if part.strip()]
    for at, part in enumerate(parts):
        number = _NUMBER_ALONE.fullmatch(part)
        follows = number is not None and (at == 0 or int(number[1]) == last + 1) and at + 1 < len(parts)
        count += not follows and any(letter.isalnum() for letter in part)
        if tail := _NUMBER_AT_END.search(part.rstrip()[-5:]):
            last = int(tail[1])
    return count


def _split(block: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(block):
        if _ends(block, end):
            yield block[start : end.end()]
            start = end.end()
    yield block[start:]


def _ends(block: str, end: regex.Match[str]) -> bool:
    """Return whether a sentence ends at these marks."""
    after, closed, blank = end.end(), bool(end["close"]), bool(end["blank"])
    if after == len(block):
        return True
    if _CONTINUES.match(block, after):
        return False
    if not _FULL_STOPS.fullmatch(end["mark"]):
        return not (closed and (_LOWER.match(block, after) or (not blank and _SAID_JAPANESE.match(block, after))))
    if not (closed or blank):
        return not _inside_word(block, end)
    if _DIGIT.match(block, after):
        return not _abbreviates(block, end, number=True)
    return not (_LOWER.match(block, after) or _abbreviates(block, end, number=False))


def _inside_word(block: str, end: regex.Match[str]) -> bool:
    """Return whether the full stop stands inside a number, a name or an address (SB6, SB7, SB8)."""
    before, after = block[end.start() - 1 : end.start()], block[end.end()]
    if after.isdigit() or _LOWER.match(after):
        return True
    return bool(_LETTER.match(before) and _CAPITAL.match(after))


def _abbreviates(block: str, end: regex.Match[str], *, number: bool) -> bool:
    """Return whether a full stop before a number or a capital belongs to an abbreviation, an initial or an ordinal."""
    found = _LAST_WORD.search(block, max(0, end.start() - _NAMES), end.start())
    if found is None or end["mark"] != "." or end["close"]:
        return False
    word, plain = found[0], found[0].replace(".", "").casefold()
    if plain in _LINKING:
        return True
    if number:
        return plain in _NUMBERED or (len(word) == 1 and word.isalpha())
    following = _WORD.match(block, end.end())
    return following is not None and _goes_on(word, following)


def _goes_on(word: str, following: regex.Match[str]) -> bool:
    """Return whether a name or a date goes on with the word after `word` and a full stop."""
    if word.isdecimal():
        return following[1] in _MONTHS
    if len(word) == 1 and len(following[1]) == 1 and following[2]:  # the next initial, or `z. B.`
        return True
    short = word in _TITLES or _INITIALS.fullmatch(word) or (len(word) == 1 and word.isupper())
    return bool(short) and following[1].casefold() not in _STARTERS
