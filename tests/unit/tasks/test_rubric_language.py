"""The language check recognises short everyday sentences, and unclear texts stay undecided."""

from __future__ import annotations

import pytest

from sdpo_mlx.tasks.rubric.checks import LANGUAGES, check_from_row, language_of

SENTENCES = {
    "en": (
        "Where is the station?",
        "I would like a coffee.",
        "It is raining again.",
        "The cat sleeps.",
        "Please close the door.",
        "Autumn is lovely.",
    ),
    "de": (
        "Wo ist der Bahnhof?",
        "Ich hätte gern einen Kaffee.",
        "Morgen fahren wir nach Hause.",
        "Die Katze schläft.",
        "Bitte mach die Tür zu.",
        "Der Herbst ist schön.",
        "Ich mag bunte Blätter.",
    ),
    "fr": (
        "Où est la gare ?",
        "Je voudrais un café.",
        "Il fait froid aujourd'hui.",
        "Le chat dort.",
        "Fermez la porte, s'il vous plaît.",
        "Le soleil brille.",
    ),
    "es": (
        "¿Dónde está la estación?",
        "Quisiera un café.",
        "Hoy hace mucho calor.",
        "El gato duerme.",
        "Cierra la puerta, por favor.",
        "Me gusta el otoño.",
    ),
    "it": (
        "Dov'è la stazione?",
        "Vorrei un caffè.",
        "Domani andiamo al mare.",
        "Il gatto dorme.",
        "Chiudi la porta, per favore.",
        "Mi piace l'autunno.",
    ),
    "pt": (
        "Onde fica a estação?",
        "Eu queria um café.",
        "Amanhã vamos à praia.",
        "O gato está dormindo.",
        "Feche a porta, por favor.",
        "Gosto do outono.",
    ),
    "nl": (
        "Waar is het station?",
        "Ik wil graag koffie.",
        "Morgen gaan we naar huis.",
        "De kat slaapt.",
        "Doe de deur dicht, alsjeblieft.",
        "De herfst is mooi.",
    ),
    "sv": (
        "Var ligger stationen?",
        "Jag vill ha en kopp kaffe.",
        "I morgon åker vi hem.",
        "Katten sover.",
        "Stäng dörren, tack.",
        "Hösten är vacker.",
    ),
    "pl": (
        "Gdzie jest dworzec?",
        "Poproszę kawę.",
        "Jutro jedziemy do domu.",
        "Kot śpi.",
        "Proszę zamknąć drzwi.",
        "Jesień jest piękna.",
    ),
    "ru": (
        "Где находится вокзал?",
        "Завтра мы едем домой.",
        "Кошка спит.",
        "Закройте дверь, пожалуйста.",
        "Осень красивая.",
    ),
    "uk": (
        "Де знаходиться вокзал?",
        "Я хочу каву.",
        "Завтра ми їдемо додому.",
        "Кіт спить.",
        "Зачиніть двері, будь ласка.",
        "Осінь гарна.",
    ),
    "el": (
        "Πού είναι ο σταθμός;",
        "Θα ήθελα έναν καφέ.",
        "Αύριο πάμε σπίτι.",
    ),
    "zh": (
        "车站在哪里？",
        "我想喝咖啡。",
        "明天我们回家。",
    ),
    "ja": (
        "駅はどこですか。",
        "コーヒーをください。",
        "明日は家に帰ります。",
    ),
    "ko": (
        "역이 어디에 있어요?",
        "커피 한 잔 주세요.",
        "내일 우리는 집에 가요.",
    ),
    "ar": (
        "أين المحطة؟",
        "أريد قهوة من فضلك.",
        "غدا سنعود إلى البيت.",
    ),
    "he": (
        "איפה התחנה?",
        "אני רוצה קפה.",
        "מחר נחזור הביתה.",
    ),
    "hi": (
        "स्टेशन कहाँ है?",
        "मुझे एक कॉफ़ी चाहिए।",
        "कल हम घर जाएँगे।",
    ),
    "th": (
        "สถานีอยู่ที่ไหน",
        "ฉันอยากดื่มกาแฟ",
        "พรุ่งนี้เราจะกลับบ้าน",
    ),
}
LONG = {
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


@pytest.mark.parametrize("code", LANGUAGES)
def test_short_sentences_of_each_language_are_recognised(code: str) -> None:
    texts = [*SENTENCES[code], LONG[code]]
    assert {text: found for text in texts if (found := language_of(text)) != code} == {}


@pytest.mark.parametrize("text", ["", "42", "Paris", "qwrt zxcv", "x = 1", '{"a": 1}'])
def test_text_without_a_language_stays_undecided(text: str) -> None:
    assert language_of(text) is None


def test_language_with_more_text_wins_in_a_mixed_text() -> None:
    assert language_of(LONG["de"] + " It is the end of it.") == "de"


def test_a_short_right_answer_passes_and_a_wrong_one_is_named() -> None:
    check = check_from_row({"kind": "language", "value": "de"}, "rows.jsonl:1, check 1")
    assert check.failure("Ich mag bunte Blätter.") == ""
    assert check.failure("I like red leaves.") == "The answer must be in German, and it reads as English."
    assert check.failure("42") == "The answer must be in German, and its language cannot be told."
