r"""Where a final says its answer, as a person reads it: what every comparison reads in has been cut out here.

    1. one distinct `\boxed{...}`
    2. else what follows the last marker (`####`, `answer is`, `Answer:`), up to `because`, `so` or the sentence's end
    3. else the whole final; where it holds several candidates, its bold part, what follows its conclusion (`so`,
       `is`, `=`), its last sentence

The place that is chosen never depends on the truth, and holds one distinct candidate or none: a list of guesses has no
place, and is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "﹣": "-",
        "－": "-",
        "\u00a0": " ",
        "\u2009": " ",
        "\u202f": " ",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
    }
    | {"：": ":", "（": "(", "）": ")", "，": ", ", "。": ". ", "→": "=", "⇒": "=", "⟹": "="}
    | {chr(0xFF10 + digit): str(digit) for digit in range(10)}
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox)\s*\{([^{}]*)\}")
_LONGEST = 8_000
_LONGEST_SENTENCE = 400
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BOLD = re.compile(r"\*\*(.+?)\*\*|__(.+?)__", re.DOTALL)
_WHAT = (
    r"(?:answers?|ans|choice|option|result|solutions?|antwort|respuesta|réponse|risposta|resposta|ответ|"
    r"final value|value of the expression)"
)
_MARKER = re.compile(
    rf"####|\b{_WHAT}\b(?:(?![.!?]\s)[^\n:=]){{0,80}}?"
    rf"(?:\bis\b|\bare\b|\bwas\b|\b(?:would|must|should) be\b|:|=|\bist\b|\bes\b|\best\b|\bè\b)"
    r"(?:[ \t]*(?:therefore|thus|then|simply|just|clearly|:|=))*|"
    r"(?:^|\n)[ \t]*(?:the\s+)?(?:final\s+)?answer[ \t]*(?:\n|-{1,2} )|答案(?:是|为)?:?|答え(?:は|:)",
    re.IGNORECASE,
)
_CUT = re.compile(
    r"\s*(?:\b(?:because|since|so|as|which|where|given|although|though|whereas|while)\b|"
    r"[.!?](?=\s|$)|;|\n)",
    re.IGNORECASE,
)
_REASON = re.compile(r"(?<=\w)\W*\b(?:because|since)\b.*", re.DOTALL | re.IGNORECASE)
_RETRACTED = re.compile(
    r"\b(?:wait|hold on|actually|correction|scratch that|on second thought|let me (?:correct|fix)|i mean|"
    r"i made a mistake)\b[,:.!]?",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"\b(?:so|therefore|thus|hence|consequently|gives?|giving|makes?|making|equals?|leaves?|leaving|totals?|yields?|"
    r"total(?:l?ing)? of|altogether|in (?:total|all)|means?|meaning|"
    r"comes? to|amounts? to|adds? up to|is|are|was|were|costs?|has|have|gets?|needs?|pays?|earns?|earned|"
    r"be|becomes?|take|pick|choose|select|go with|went with|settle on)\b|=",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"(?:\b(?:not|never|cannot|rather than|instead of|excluding|eliminates?|rules? out|ruled out|neither|nor|unlike|"
    r"than|over|at (?:least|most))\b|n't\b|[<>≤≥≠]|!=|\\(?:le|ge|ne|leq|geq|neq)\b)"
    r"(?:[\s\W]*[\w']+){0,4}?[\s\W]*$",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"^[\s\W]*(?:(?:is|are|was|would be|seems|looks)\s+(?:also\s+|clearly\s+)?(?:not|wrong|incorrect|false|too)\b|"
    r"(?:is|are|was|does|do|would|can)n't\b|cannot\b|can not\b|does not\b|do not\b|fails?\b)",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;:!?\n]|\.(?=\s|$)|\b(?:but|so|therefore|thus|hence|while|whereas)\b|—|–", re.IGNORECASE)
_ASSIGNED = re.compile(r"(?:^|[\s,;($])[a-zA-Z]\s*=")
_SO = re.compile(r"\b(?:so|therefore|thus|hence)\b", re.IGNORECASE)


def written(text: str) -> str:
    """The text with one way to write minus signs, blanks, quotes and powers, and without LaTeX's wrappers; of a longer
    text the last 8,000 characters."""
    text = text[-_LONGEST:]
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^" + m[0].translate(_SUPERSCRIPTS), text.translate(_CHARACTERS))
    text = re.sub(
        r"\\[,!;: ]|\\(?:left|right|quad|qquad|displaystyle)(?![A-Za-z])|\{,\}", lambda m: _spacing(m[0]), text
    )
    text = re.sub(r"\\[dtc]frac\b", r"\\frac", text).replace("\\%", "%")
    while (plainer := _WRAPPED.sub(r" \1 ", text)) != text:
        text = plainer
    return text


def _spacing(found: str) -> str:
    return "," if found == "{,}" else " " if found in ("\\ ", "\\quad", "\\qquad", "\\:", "\\;") else ""


def unmarked(text: str) -> str:
    """The text without markdown: bold, code, headings, bullets and the numbers of a list."""
    text = re.sub(
        r"(?m)^ {0,3}#{1,3}[ \t]+|^[ \t]{0,9}(?:[*•]|-(?=[ \t]\S{0,20}[A-Za-z]))[ \t]+|^ {0,3}>[ \t]+(?=[A-Za-z*])",
        "",
        text,
    )
    if len(re.findall(r"(?m)^[ \t]{0,9}\d{1,3}[.)][ \t]+\S", text)) > 1:
        text = re.sub(r"(?m)^[ \t]{0,9}\d{1,3}[.)][ \t]+(?=\S)", "", text)
    text = re.sub(r"```[a-z]*|`", "", _BOLD.sub(lambda m: m[1] or m[2], text))
    return re.sub(r"(?<![\w*])[*_](\S(?:[^*_\n]*\S)?)[*_](?![\w*])", r"\1", text)


def boxes(text: str) -> list[str]:
    r"""What is inside of each `\boxed{...}` or `\fbox{...}`, braces balanced, in order."""
    found: list[str] = []
    stop = 0
    while (start := _BOX.search(text, stop)) is not None:
        depth, stop = 1, start.end()
        while stop < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[stop], 0) if text[stop - 1] != "\\" else 0
            stop += 1
        if depth:
            break
        found.append(text[start.end() : stop - 1].strip())
    return found


def marked(text: str) -> str | None:
    """What follows the last marker, up to the end of what it says; None without a marker."""
    places = list(_MARKER.finditer(text))
    return said(text[places[-1].end() :]) if places else None


def said(text: str) -> str:
    """The text up to `because`, `so`, or its sentence's end."""
    text = text.lstrip(" \t\n:*-=>" if not re.match(r"[\s:*=>]*-[\d.$\\(]", text) else " \t\n:*=>")
    for cut in _CUT.finditer(text):
        if text[: cut.start()].strip():
            return text[: cut.start()]
    return text


def sentences(text: str) -> list[str]:
    """Its sentences and lines."""
    parts = re.split(r"(?<=[.!?])\s+(?=\S)|\n+", text)
    return [part.strip() for part in parts if part.strip()]


def settled(final: str, found: Callable[[str], Sequence[T]]) -> T | None:
    """The one candidate of the first place that holds one, None where there is none, or several that differ.

    found: the candidates of a text, those that it denies left out.
    """
    text = written(final)
    if boxed := boxes(text):
        return _only([value for box in boxed for value in found(box)])
    plain = unmarked(text)
    if retracted := list(_RETRACTED.finditer(plain)):
        rest = plain[retracted[-1].end() :]
        plain, text = (rest, rest) if found(rest) else (plain, text)
    if (place := marked(plain)) is not None and (values := found(without_brackets(place)) or found(place)):
        return _only(values)
    values = found(without_brackets(plain)) or found(plain)
    if len(set(values)) <= 1:
        return _only(values)
    bold = [value for spans in _BOLD.findall(text) for value in found(spans[0] or spans[1])]
    if bold:
        return _only(bold)
    parts = [_REASON.sub("", part) for part in sentences(without_brackets(plain))]
    if len(parts) == 1 and len(set(values := found(parts[0]))) == 1:
        return values[0]
    if (
        len(bare := [part for part in parts if not _has_words(part)]) == 1
        and bare[0] == parts[0]
        and (values := found(bare[0]))
    ):
        return _only(values)  # the answer alone on the first line, then why
    if not _has_words(plain) and "=" not in plain:
        return None  # a list of guesses
    last = next((part for part in reversed(parts) if found(part)), "")
    for part in (last, _concluded(last, found)):
        if len(set(values := found(part))) == 1:
            return values[0]
    return None


def _concluded(sentence: str, found: Callable[[str], Sequence[T]]) -> str:
    """What follows the last word of a conclusion after which there is a candidate, up to where it ends."""
    sentence = sentence[-_LONGEST_SENTENCE:]
    for cue in reversed(list(_CONCLUSION.finditer(sentence))):
        rest = said(sentence[cue.end() :])
        if found(rest):
            listed = (
                cue[0] == "="
                and len(_ASSIGNED.findall(sentence)) > 1
                and _ASSIGNED.match(sentence[max(0, cue.start() - 2) : cue.end()].strip())
            )
            return "" if listed and not _SO.search(sentence) else rest
    return ""


def _has_words(text: str) -> bool:
    return bool(re.search(r"[^\W\d_]{2,}", text))


def _only(values: Sequence[T]) -> T | None:
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else None


def without_brackets(text: str) -> str:
    """The text without what it says in round or square brackets after something else: `42 (checked in 2024)`."""
    return re.sub(r"(?<=[\w.%!°\"'*)\]])\s*(?:\([^()]{0,200}\)|\[[^\[\]]{0,200}\])", _bracketed, text)


def _bracketed(found: re.Match[str]) -> str:
    return "" if re.search(r"[A-Za-z]{2}", found[0]) else found[0]


def is_denied(text: str, start: int, stop: int) -> bool:
    """Whether the sentence says that what is at [start, stop) is not it: `not 42`, `rather than 42`, `42 is wrong`."""
    clause = list(_CLAUSE.finditer(text, max(0, start - 80), start))
    before = text[clause[-1].end() if clause else max(0, start - 80) : start]
    return bool(_NEGATED.search(before) or _DENIED.match(text[stop : stop + 40]))
