"""Languages of thoughts and answers, told by their words and not by their script."""

from __future__ import annotations

import pytest

from counterpoint.train.scoring.languages import language_of, language_shares

THOUGHTS = {
    "en": "The user asks for the sum of two numbers. First we add them, 17 + 25 = 42, and then we give the answer.",
    "fr": "L'utilisateur demande la somme de deux nombres. D'abord on additionne, 17 + 25 = 42, puis on répond.",
    "de": "Der Nutzer fragt nach der Summe zweier Zahlen. Zuerst addieren wir, 17 + 25 = 42, dann antworten wir.",
    "es": "El usuario pide la suma de dos números. Primero sumamos, 17 + 25 = 42, y luego damos la respuesta.",
    "it": "L'utente chiede la somma di due numeri. Prima sommiamo, 17 + 25 = 42, e poi diamo la risposta.",
    "pt": "O usuário pede a soma de dois números. Primeiro somamos, 17 + 25 = 42, e depois damos a resposta.",
    "nl": "De gebruiker vraagt om de som van twee getallen. Eerst tellen we op, 17 + 25 = 42, en dan antwoorden we.",
    "sv": "Användaren frågar efter summan av två tal. Först lägger vi ihop dem, 17 + 25 = 42, och sedan svarar vi.",
    "pl": "Użytkownik pyta o sumę dwóch liczb. Najpierw dodajemy, 17 + 25 = 42, a potem podajemy odpowiedź.",
    "tr": "Kullanıcı iki sayının toplamını soruyor. Önce topluyoruz, 17 + 25 = 42, sonra cevabı veriyoruz.",
    "ru": "Пользователь спрашивает сумму двух чисел. Сначала сложим их, 17 + 25 = 42, и потом дадим ответ.",
    "uk": "Користувач питає суму двох чисел. Спочатку додамо їх, 17 + 25 = 42, а потім дамо відповідь.",
    "zh": "用户问两个数字的和。首先我们把它们相加，17 + 25 = 42，然后给出答案。",
    "ja": "ユーザーは二つの数の合計を尋ねています。まず足し算をして、17 + 25 = 42、それから答えます。",
    "ko": "사용자가 두 숫자의 합을 묻고 있습니다. 먼저 더하면 17 + 25 = 42이고, 그다음에 답합니다.",
    "ar": "يسأل المستخدم عن مجموع عددين. أولا نجمع العددين، 17 + 25 = 42، ثم نعطي الجواب.",
    "hi": "उपयोगकर्ता दो संख्याओं का योग पूछ रहा है। पहले हम उन्हें जोड़ते हैं, 17 + 25 = 42, फिर उत्तर देते हैं।",
}


@pytest.mark.parametrize("code", THOUGHTS)
def test_thoughts_of_two_sentences(code: str) -> None:
    assert language_of(THOUGHTS[code]) == code


@pytest.mark.parametrize(
    "text", ["", "42", "x = 3", "$12\\pi$", "```python\nfor item in things:\n    print(item)\n```", "OK."]
)
def test_what_is_in_no_language(text: str) -> None:
    assert language_of(text) is None
    assert language_shares(text) == {}


def test_code_and_formulas_do_not_count() -> None:
    code = "```python\nwhile the_answer_is_not(found): continue_looking_for(the_answer)\n```\n" * 5
    assert language_of(f"{code} {THOUGHTS['fr']} $\\text{{the answer to the question}} = 42$") == "fr"


def test_a_text_in_two_languages_is_shared_out() -> None:
    shares = language_shares(f"{THOUGHTS['en']}\n{THOUGHTS['ru']}")
    assert set(shares) == {"en", "ru"}
    assert 0.4 < shares["en"] < 0.6
    assert sum(shares.values()) == pytest.approx(1)
    assert language_of(f"{THOUGHTS['en']} {THOUGHTS['en']} {THOUGHTS['ru']}") == "en"
