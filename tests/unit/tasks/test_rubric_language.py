"""Languages are told by their small words, and undecided texts are said to be so."""

import pytest

from sdpo_mlx.tasks.rubric.language import NAMES, language_of

SAMPLES = {
    "en": "The train was late, so we walked to the river and had our lunch there.",
    "de": "Der Zug kam zu spät, und wir sind dann zum Fluss gegangen und haben dort gegessen.",
    "fr": "Le train était en retard, alors nous avons marché jusqu'à la rivière et mangé sur place.",
    "es": "El tren llegó tarde, así que caminamos hasta el río y comimos allí con los amigos.",
    "it": "Il treno era in ritardo, così siamo andati al fiume e abbiamo mangiato con gli amici.",
    "pt": "O trem chegou atrasado, então fomos até o rio e almoçamos ali com os amigos da escola.",
    "nl": "De trein was te laat, dus liepen we naar de rivier en aten daar een broodje met kaas.",
    "sv": "Tåget var sent, så vi gick till floden och åt lunch där med en vän som inte hade bråttom.",
    "pl": "Pociąg się spóźnił, więc poszliśmy nad rzekę i tam nie było już nikogo oprócz nas.",
    "ru": "Поезд опоздал, и мы пошли к реке, но там уже не было никого, кто бы нас ждал.",
    "uk": "Потяг запізнився, і ми пішли до річки, але там вже не було нікого, хто б на нас чекав.",
    "el": "Το τρένο άργησε και περπατήσαμε ως το ποτάμι.",
    "zh": "火车晚点了，我们走到河边吃了午饭。",
    "ja": "電車が遅れたので、川まで歩いて昼ごはんを食べました。",
    "ko": "기차가 늦어서 우리는 강까지 걸어가 점심을 먹었다.",
    "ar": "تأخر القطار فمشينا إلى النهر وتناولنا الغداء هناك.",
    "he": "הרכבת איחרה ולכן הלכנו לנהר ואכלנו שם צהריים.",
    "hi": "ट्रेन देर से आई इसलिए हम नदी तक पैदल गए।",
    "th": "รถไฟมาสายเราจึงเดินไปที่แม่น้ำและกินข้าวกลางวันที่นั่น",
}


@pytest.mark.parametrize("code", NAMES)
def test_sample_of_each_language_is_told(code: str) -> None:
    assert language_of(SAMPLES[code]) == code


@pytest.mark.parametrize("text", ["", "42", "Paris", "qwrt zxcv", "Да, поезд.", "xx жж 中中 אא"])
def test_text_that_is_too_short_or_mixed_stays_undecided(text: str) -> None:
    assert language_of(text) is None


def test_language_with_more_small_words_wins_in_a_mixed_text() -> None:
    assert language_of(SAMPLES["de"] + " It is the end of it.") == "de"
