"""A number, an option's letter, or a short text, read out of a final as a person reads it (`reading.py` says where)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction

from counterpoint.train.scoring.reading import (
    boxes,
    is_denied,
    marked,
    sentences,
    settled,
    unmarked,
    without_brackets,
    written,
)

LETTERS = "ABCDEFGHIJ"
_LISTED = re.compile(r"(?m)^[ \t]*\(?([A-J])[.):][ \t]+\S")
_LONGEST_EXPONENT = 400
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "k": 1000,
}
_FRACTIONS = {
    "½": "1/2",
    "⅓": "1/3",
    "⅔": "2/3",
    "¼": "1/4",
    "¾": "3/4",
    "⅕": "1/5",
    "⅛": "1/8",
    "⅜": "3/8",
    "⅝": "5/8",
}
_DIGITS = (
    r"\d{1,3}(?:[, ']\d{3})+(?!\d)(?:\.\d+)?|\d{1,3}(?:\.\d{3})+,\d+|\d+,\d{1,2}(?![\d,])|\d+,\d{4,}|"
    r"\d+(?:\.\d+)?|\.\d+"
)
_NUMBER = re.compile(
    rf"(?<![\w.^\\])(?<![A-Za-z\d]-)(?P<sign>(?:(?<![\w)}}] )(?<![\w)}}])[-+]\s?|\b(?:minus|negative)\s+)?)"
    rf"(?:[$€£¥]|\\\$)?\s?-?"
    rf"(?P<body>{_DIGITS})"
    r"(?:(?P<power>\s?(?:[eE]|(?:×|x|\*|·|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?)\{?(?P<exponent>[-+]?\d+)\}?)"
    r"|\^\{?(?P<raised>\d{1,3})\}?|\s?/\s?(?P<below>\d+(?:\.\d+)?)(?![\d/])|"
    r"(?P<mixed>\s(?:and\s)?(?P<over>\d+)/(?P<under>\d+)))?"
    r"(?P<scale>\s?(?:hundred|thousand|million|billion|trillion|dozen)\b|k\b)?"
    r"(?P<percent>\s?(?:%|percent\b|per cent\b))?",
    re.IGNORECASE,
)
_MATHS = r",(?=\d)|[\d.()+\-*/×÷·^{}\\$%€£\s]|\\(?:times|cdot|div|frac|sqrt)"
_LEFT = re.compile(
    rf"(?:\b[a-z](?:_\{{?\w+\}}?)?(?:\([a-z\d]\))?\s*|(?:(?:{_MATHS})|\b[a-z]\b){{1,80}})(?:=|≈|\\approx)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"\b(?:step|part|question|problem|case|figure|table|equation|eq\.|line|exercise|page)\s*#?\d+[a-z]?\b",
    re.IGNORECASE,
)
_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS = {word: value for value, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_NAMED = "|".join(sorted([*_WORDS, "hundred", "thousand", "million"], key=len, reverse=True))
_WORDED = re.compile(rf"\b(?:(?:minus|negative)[\s-])?(?:{_NAMED})(?:[\s-](?:and\s)?(?:{_NAMED}))*\b", re.IGNORECASE)


def read_number(final: str) -> Fraction | None:
    """The number that a final settles on, exactly; None where it names none, or several."""
    found = settled(final, numbers)
    return found if found is not None else settled(final, named_numbers)


def same_number(final: str, answer: str) -> bool:
    """Whether the final settles on the answer's number; a percentage is also a share, and the other way round."""
    truth, is_share = _truth(answer)
    if truth is None:
        return False
    found = read_number(final)
    if found == truth:
        return True
    rates = settled(final, lambda text: numbers(text, percent=True))
    return rates is not None and (rates / 100 == truth or (is_share and found is not None and found * 100 == truth))


def _truth(answer: str) -> tuple[Fraction | None, bool]:
    """The last number of a truth (GSM8K's `#### 42`), and whether it is a percentage."""
    found = numbers(answer.rpartition("####")[2])
    if not found:
        found = named_numbers(answer)
    return (found[-1] if found else None), bool(re.search(r"\d\s?\\?%\s*\.?$", answer.strip()))


def numbers(text: str, percent: bool = False) -> list[Fraction]:
    """Every number that a text claims: not denied, not left of `=`, no part of a name. percent: percentages alone."""
    text = re.sub(
        r"\\frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))", lambda m: f" {m[1] or m[2]}/{m[3] or m[4]} ", written(text)
    )
    text = re.sub(r"(?<=\d)\s*([½⅓⅔¼¾⅕⅛⅜⅝])", lambda m: f" {_FRACTIONS[m[1]]}", text)
    text = re.sub("[½⅓⅔¼¾⅕⅛⅜⅝]", lambda m: _FRACTIONS[m[0]], text)
    text = re.sub(r"(?<!\\)\$(?!\s?-?[\d.])|\\[()\[\]]|(?<=-)\$|(?<=[\d}])\$", " ", text)
    text = _LABEL.sub(" ", text)
    for left in reversed(list(_LEFT.finditer(text))):
        text = text[: left.start()] + " " * (left.end() - left.start()) + text[left.end() :]
    found: list[Fraction] = []
    for match in _NUMBER.finditer(text):
        after = text[match.end() : match.end() + 3]
        if re.match(r"[xyznXYZN]\b(?!\d)", after) or is_denied(text, match.start(), match.end()):
            continue
        value = _value(match)
        if value is not None and (not percent or match["percent"]):
            found.append(value)
    return found


def _value(match: re.Match[str]) -> Fraction | None:
    body = re.sub("[ ']", "", match["body"])
    if re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+", body):
        body = body.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"\d+,\d{1,2}|0,\d+|\d+,\d{4,}", body):
        body = body.replace(",", ".")
    try:
        value = Fraction(body.replace(",", ""))
        if match["exponent"] is not None:
            if abs(int(match["exponent"])) > _LONGEST_EXPONENT:
                return None
            value *= Fraction(10) ** int(match["exponent"])
        if match["raised"] is not None:
            value **= int(match["raised"]) if len(body) < 20 else 1
        if match["below"] is not None:
            value /= Fraction(match["below"])
        if match["over"] is not None:
            value += Fraction(int(match["over"]), int(match["under"]))
    except (ValueError, ZeroDivisionError):
        return None
    if match["scale"] is not None:
        value *= _SCALES[match["scale"].strip().lower()]
    negative = "-" in match[0][: match.start("body") - match.start()] or match["sign"].strip().lower() in (
        "minus",
        "negative",
    )
    return -value if negative else value


def named_numbers(text: str) -> list[Fraction]:
    """Every number that a text claims in English words: `forty-two`."""
    found: list[Fraction] = []
    for match in _WORDED.finditer(text):
        if is_denied(text, match.start(), match.end()):
            continue
        total = part = 0
        words = re.split(r"[\s-]+(?:and\s+)?", match[0].lower())
        for word in words:
            if word in _WORDS:
                part += _WORDS[word]
            elif word == "hundred":
                part = (part or 1) * 100
            elif word in _SCALES:
                total, part = total + (part or 1) * _SCALES[word], 0
        found.append(Fraction(-(total + part) if words[0] in ("minus", "negative") else total + part))
    return found


def read_choice(final: str, letters: str = LETTERS, options: Mapping[str, str] | None = None) -> str | None:
    """The letter of the one option that a final settles on; None where it names none, or several.

    letters: those of the row's options. options: their texts, which name an option as well as its letter does.
    """
    text = unmarked(written(final)).strip()
    leading = _leading(text, letters)
    if leading is not None:
        return leading
    found = settled(final, lambda part: choices(part, letters))
    if found is not None or choices(unmarked(written(final)), letters) or not options:
        return found
    named = [letter for letter, option in options.items() if same_text(final, option)]
    return named[0] if len(named) == 1 else None


def letters_in(asked: str) -> str:
    """The letters of the options that a prompt lists line by line, from A on; `LETTERS` where it lists none."""
    listed = list(dict.fromkeys(_LISTED.findall(asked)))
    return "".join(listed) if len(listed) > 1 and "".join(listed) == LETTERS[: len(listed)] else LETTERS


def _leading(text: str, letters: str) -> str | None:
    """The letter of an option that a final begins with, as `B. 12 m/s`, where it names no other one like that."""
    form = rf"\(?([{letters}])(?:[.):\]]+|\s*[-–—:]+)"
    first = re.match(rf"\W*{form}(?=\s+\S)", text)
    if first is None or is_denied(text, first.start(1), first.end()):
        return None
    others = re.findall(
        rf"(?:^|\n|[.,;!?]\s|\bor\s)\W{{0,9}}{form}(?=\s+[a-z0-9$\\]|\s*$|\s+\(?[{letters}][.)])", text[first.end() :]
    )
    return first[1] if all(other == first[1] for other in others) else None


def choices(text: str, letters: str = LETTERS) -> list[str]:
    """Every option's letter that a text claims; `A` and `I` before a word are none."""
    found: list[str] = []
    if len(text) < 60 and (
        alone := re.fullmatch(rf"\W*(?:(?:option|choice|answer)\b)?\W*([{letters}])\W*", text, re.IGNORECASE)
    ):
        return [alone[1].upper()]
    pattern = rf"(?<![\w'\\^_-])(?:(?P<open>[(\[])\s*)?(?P<letter>[{letters}]|(?<=[(\[])[{letters.lower()}](?=[)\]]))"
    pattern += r"(?P<close>[)\]])?(?![\w'^_])"
    text = re.sub(r"\\[()\[\]]|[${}]", " ", written(text))
    for match in re.finditer(pattern, text):
        letter, after = match["letter"], text[match.end() : match.end() + 12]
        article = (
            letter in "AI"
            and not match["close"]
            and re.match(r"\s+(?!(?:is|are|and|or|because|since|as|but|with)\b)[a-z]", after)
        )
        if letter == "I" and not match["close"] and re.match(r"\s+[a-z]|'", after):
            article = True  # `I am`, `I think`
        if not article and not is_denied(text, match.start(), match.end()):
            found.append(letter.upper())
    return found


def true_choice(answer: str) -> str:
    """The letter of a truth: `B`, `(B)`, `B. 12 m/s`."""
    found = re.match(r"\W*([A-Za-z])(?=\W|$)", answer)
    return found[1].upper() if found else answer.strip().upper()


def same_text(final: str, answer: str) -> bool:
    """Whether the final settles on the answer's words: case, articles, markdown and punctuation aside."""
    wanted = bare(answer)
    if not wanted:
        return final.strip() == answer.strip()
    return any(bare(phrase) == wanted for phrase in phrases(final))


def phrases(final: str) -> list[str]:
    """What a final says in short, whole and with what only explains it cut off. One reading, in several lengths."""
    text = written(final)
    if boxed := boxes(text):
        return boxed if len({bare(box) for box in boxed}) == 1 else []
    whole = re.sub(r"\\[()\[\]]|\$(?!\d)", " ", unmarked(text)).strip()
    answered = re.match(r"\W*(yes|no|true|false)\b(?=\s*(?:[.,;:!—–-]|$))", whole, re.IGNORECASE)
    lines = sentences(whole)
    if (place := marked(whole)) is not None and bare(place):
        return _shortened(place, is_denied_first=True)
    bold = {bare(a or b): a or b for a, b in re.findall(r"\*\*(.+?)\*\*|__(.+?)__", text)}
    if len(bold) == 1 and not is_denied(
        whole, at := max(whole.find(span := unmarked(next(iter(bold.values())))), 0), at + len(span)
    ):
        return [whole, span, *_shortened(span)]
    out = [whole] + ([answered[1]] if answered else [])
    if len(lines) == 1:
        return out + _clause(lines[0])
    first_is_answer = (
        lines and len(lines[0].split()) <= 6 and not re.search(r"\b(?:is|are|was|were|let|we|I)\b|:$|=", lines[0])
    )
    return out + (_shortened(lines[0]) if first_is_answer else _clause(lines[-1]) if lines else [])


_IS = re.compile(
    r"\b(?:is|are|was|were|be|named|called|by|say|choose)\b:?|\b(?:it|that|he|she)'s\b|:(?!\d)|=", re.IGNORECASE
)
_SUBJECT = re.compile(
    r"^((?:The )?[A-Z0-9][\w.'-]*(?: (?:of |the |de |von )?[A-Z0-9][\w.'-]*){0,4}) (?:is|was|are|were) "
    r"(?:the|a|an|its|one|where)\b"
)
_POINTERS = re.compile(r"^(?:it|this|that|these|those|he|she|they|there|here|what|which|answer)\b", re.IGNORECASE)


def _clause(sentence: str) -> list[str]:
    """What a sentence says of its subject, or the subject that it describes."""
    if (subject := _SUBJECT.match(sentence)) is not None and not _POINTERS.match(subject[1]):
        return [subject[1]]
    sentence = re.sub(r",? (?:which|who|where|because|since) .*", "", sentence)
    for place in reversed(list(_IS.finditer(sentence))):
        if re.search(r"\w", sentence[place.end() :]):
            return _shortened(sentence[place.end() :], is_denied_first=True)
    return _shortened(sentence)


def _shortened(phrase: str, is_denied_first: bool = False) -> list[str]:
    """A phrase, without brackets, and without what follows it: `, the capital`, `because ...`."""
    phrase = phrase.strip()
    if is_denied_first and re.match(r"(?:not|never|n't|neither)\b", phrase, re.IGNORECASE):
        rest = re.search(r"\b(?:but|it is|it's)\b(?: rather)?", phrase, re.IGNORECASE)
        return _shortened(phrase[rest.end() :]) if rest else []
    out = [phrase, without_brackets(phrase)]
    cut = re.split(
        r",? (?:because|since|as|so|which|who|where|when|located|situated|with|not|rather|instead|on|in|by)\b|"
        r", (?:the|a|an|also|not|one)\b| [-–—] |;|, (?=[a-z])| \(",
        phrase,
    )[0]
    return list(
        dict.fromkeys([*out, cut, re.sub(r"^(?:in|on|at|by|from|around|about) ", "", cut, flags=re.IGNORECASE)])
    )


def bare(text: str) -> str:
    """Words alone: no case, article, accent of markdown, quote, or punctuation outside of numbers."""
    text = unmarked(written(text)).casefold()
    text = re.sub(r"(?<=[^\W\d])[-/](?=[^\W\d])|_", " ", text)
    text = re.sub(r"(?<!\d)[.,:]|[.,:](?!\d)|[;!?'\"´`()\[\]{}«»]", "", text)
    words = text.split()
    while len(words) > 1 and words[0] in ("the", "a", "an"):
        words = words[1:]
    return " ".join(words)
