"""Which language a text is in, told by its script and its most frequent small words; no model, no randomness.

Limits: the languages below and no others (a text in another one of the same script may be taken for one of them);
at least three different small words of the language must occur where several languages share a script, so very
short texts stay undecided; a text of two languages is the one that has more small words in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

FEWEST_WORDS = 3
_SEEN = 20_000  # characters that are enough to tell

NAMES: Mapping[str, str] = {
    "en": "English",
    "de": "German",
    "fr": "French",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "sv": "Swedish",
    "pl": "Polish",
    "ru": "Russian",
    "uk": "Ukrainian",
    "el": "Greek",
    "zh": "Chinese",
    "ja": "Japanese",
    "ko": "Korean",
    "ar": "Arabic",
    "he": "Hebrew",
    "hi": "Hindi",
    "th": "Thai",
}
_BY_SCRIPT: Mapping[str, str] = {
    "GREEK": "el",
    "HANGUL": "ko",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "THAI": "th",
}
_WORDS: Mapping[str, str] = {
    "en": (
        "the of and to in is you that it he was for on are with as his they be at this have from or had by but not "
        "what were we when your can said there an which she do how their if will my than them then its our"
    ),
    "de": (
        "der die das und ist in den von zu mit sich des auf für nicht ein eine als auch es an werden aus er hat dass "
        "sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber ich wir"
    ),
    "fr": (
        "le la les de des du et est un une que qui dans en pour pas sur au avec ce il elle ne se par plus sont nous "
        "vous mais ou je son sa ses cette aux leur été être comme d l c j qu n"
    ),
    "es": (
        "el la los las de del y es un una que en por con para no se su al lo como más pero sus le ya o este sí porque "
        "esta entre cuando muy sin sobre también me hasta hay donde son yo"
    ),
    "it": (
        "il lo la i gli le di del della dei e è un una che in per con non si da al come più ma sono anche o nel alla "
        "questo questa ha se mi ci delle tra dal perché quando io l d dell nell all"
    ),
    "pt": (
        "o a os as de do da dos das e é um uma que em no na por com para não se seu sua ao como mais mas foi são eu "
        "também pelo pela até isso ela ele entre quando muito nos já"
    ),
    "nl": (
        "de het een en van is dat in te op met voor niet zijn aan er om ook als bij maar dan uit nog naar wordt door "
        "over ze hij ik je wij deze dit wat werd heeft hebben kan zo of"
    ),
    "sv": (
        "och att det i en jag som är på den för med av inte till ett om hade de men så han var från vi kan har när "
        "man eller nu där vid detta sig ut också"
    ),
    "pl": (
        "i w na z do to że się nie jest o jak po ale od za przez są co tak dla już oraz tylko czy by być ma który "
        "która które tego ten ta jego jej może"
    ),
    "ru": (
        "и в не на я что он с как это по но из у за то все она так его к мы вы они от о же бы для был была были или "
        "есть когда только ещё уже очень если"
    ),
    "uk": (
        "і в не на я що він з як це по але із у за то всі вона так його до ми ви вони від про же б для був була були "
        "або є коли тільки ще вже дуже якщо та й"
    ),
}
_CYRILLIC = frozenset(("ru", "uk"))
_TOKEN = re.compile(r"[^\W\d_]+")


def language_of(text: str) -> str | None:
    """The code of the text's language, None when it can't be told."""
    text = unicodedata.normalize("NFC", text[:_SEEN])
    scripts = Counter(_script(letter) for letter in text if letter.isalpha())
    if not scripts:
        return None
    total = sum(scripts.values())
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if 2 * (scripts["CJK"] + kana) > total:
        return "ja" if 10 * kana > scripts["CJK"] + kana else "zh"
    script, count = max(scripts.items(), key=lambda item: (item[1], item[0]))
    if 2 * count <= total:
        return None
    if script in ("LATIN", "CYRILLIC"):
        return _by_words(text, frozenset(_WORDS) - _CYRILLIC if script == "LATIN" else _CYRILLIC)
    return _BY_SCRIPT.get(script)


def _script(letter: str) -> str:
    """The first word of the character's Unicode name, which is its script."""
    return "LATIN" if letter.isascii() else unicodedata.name(letter, "").partition(" ")[0].partition("-")[0]


def _by_words(text: str, languages: frozenset[str]) -> str | None:
    """The language of which most small words occur, and enough different ones; None at a tie."""
    words = Counter(word.casefold() for word in _TOKEN.findall(text))
    found = {name: words.keys() & set(_WORDS[name].split()) for name in languages}
    scores = {name: (sum(words[word] for word in found[name]), len(found[name])) for name in languages}
    best, second = sorted(languages, key=lambda name: (scores[name], name), reverse=True)[:2]
    return None if scores[best] == scores[second] or len(found[best]) < FEWEST_WORDS else best
