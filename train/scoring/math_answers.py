r"""Is a final's mathematics equal to the truth? Read by math-verify, out of the place where the final says its answer.

A truth is parsed between dollars first: bare, math-verify 0.9.0 reads `12\pi` as 12 and `2\sqrt{3}` as 2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from counterpoint.train.scoring.answers import numbers, read_number, same_text
from counterpoint.train.scoring.confined_eval import confine
from counterpoint.train.scoring.reading import (
    boxes,
    is_denied,
    marked,
    said,
    sentences,
    unmarked,
    without_brackets,
    written,
)

_NO_LIMIT = 0  # of math-verify, whose limits score what is slow on a loaded machine 0: the guarded process has one
_SPANS = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$(.+?)(?<!\\)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SIGNS = {
    "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset ", "θ": r"\theta ", "°": r"^\circ ",
    "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "∈": r"\in ",
}  # fmt: skip
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sqrt",
        "pi",
        "min",
        "max",
        "gcd",
        "lcm",
        "mod",
        "infty",
        "inf",
        "and",
        "or",
    ]
)
_UNITS = (
    r"(?:square |cubic )?(?:cm|mm|km|m|kg|g|mg|s|h|min|seconds?|minutes?|hours?|days?|degrees?|radians?|units?|"
    r"inches|feet|meters?|metres?|miles?|dollars?|cents?|percent|ways?|people|cm\^2|m\^2|m/s|km/h|mph)"
    r"(?:\s*\^\{?[23]\}?)?(?:\s?/\s?[a-z]+)?"
)
_CUE = re.compile(
    r"\b(?:so|therefore|thus|hence|gives?|equals?|yields?|is|are|be|becomes?|has|have|get|obtain|find)\b:?",
    re.IGNORECASE,
)


def math_value(final: str, answers: Sequence[str]) -> bool:
    """Mathematical equality of what the final settles on and one of the truths (package math-verify)."""
    confine()
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return any(same_math(final, answer) for answer in answers)


def same_math(final: str, answer: str) -> bool:
    """Whether the final settles on what equals the truth. In a process of its own: sympy reads both."""
    gold = parsed_truth(answer)
    text = written(_signs(final))
    if same_text(final, answer):
        return True
    if not gold:
        return False
    candidates = _settled(text, _several(gold))
    if candidates:
        return any(_equal(gold, candidate) for candidate in candidates)
    found = read_number(final)
    return found is not None and _equal(gold, _parse(f"{found.numerator}/{found.denominator}"))


def parsed_truth(answer: str) -> list[Any]:
    """A truth as math-verify reads it: bare LaTeX, in dollars, boxed, or within words."""
    text = written(_signs(answer)).strip().rstrip(".")
    if boxed := boxes(text):
        text = boxed[-1]
    spans = [next(filter(None, groups)) for groups in _SPANS.findall(text)]
    if len(spans) == 1:
        text = spans[0]
    return _parse(_tidy(text)) or _parse(text) or _raw(answer)


def _settled(text: str, several: int) -> list[list[Any]]:
    """What the text settles on, as expressions each of which may be it; empty for none. several: elements of a truth
    that is a set or a list, whose elements may be said one by one."""
    if boxed := boxes(text):
        return _one(boxed, several)
    plain = unmarked(text)
    if (place := _marked(plain)) is not None and (found := _one(_expressions(place), several)):
        return found
    whole = without_brackets(plain) if not _SPANS.search(plain) else plain
    expressions = _expressions(whole)
    if found := _one(expressions, several):
        return found
    if len(expressions) < 2:
        return []
    bold = [each for a, b in re.findall(r"\*\*(.+?)\*\*|__(.+?)__", text, re.DOTALL) for each in _expressions(a or b)]
    if bold:
        return _one(bold, several)
    last = next((part for part in reversed(sentences(plain)) if _expressions(part)), "")
    for cue in reversed(list(_CUE.finditer(_masked(last)))):
        rest = said(last[cue.end() :])
        if found := _one(_expressions(rest), several):
            return found
        if _expressions(rest):
            return []
    return _one(_expressions(last), several) if _SPANS.search(last) and len(sentences(plain)) > 1 else []


def _marked(plain: str) -> str | None:
    """What follows the last marker; inside of a formula, neither `=` nor a point ends it."""
    masked = _masked(plain)
    place = marked(masked)
    if place is None:
        return None
    start = masked.rfind(place)
    return plain[start : start + len(place)]


def _masked(text: str) -> str:
    """The text with every formula blackened, to look for words in it."""
    return _SPANS.sub(lambda m: "█" * len(m[0]), text)


def _expressions(text: str) -> list[str]:
    """Every formula that a text claims; without dollars the text itself, where it is one, or the numbers in it."""
    spans = list(_SPANS.finditer(text))
    if spans:
        masked = _masked(text)
        return [next(filter(None, span.groups())) for span in spans if not is_denied(masked, span.start(), span.end())]
    bare = text.strip().strip(".;,:").strip()
    bare = _without_unit(bare)
    if bare and not re.match(r"(?:not|never)\b", bare) and not _is_prose(bare):
        parts = re.split(r"\s+(?:and|or)\s+", bare)
        return parts
    tail = _CUE.split(bare)[-1].strip() if _CUE.search(bare) else ""
    if tail and not _is_prose(tail) and re.search(r"[\\^]|\d.*[a-z]|[a-z].*[+\-*/=]|\(.*,.*\)", tail):
        return [] if re.match(r"(?:not|never)\b", tail) else re.split(r"\s+(?:and|or)\s+", tail)
    return [
        f"{value.numerator}/{value.denominator}" if value.denominator > 1 else str(value) for value in numbers(text)
    ]


def _is_prose(text: str) -> bool:
    words = re.findall(r"(?<![\\A-Za-z])[A-Za-z]{2,}", text)
    return any(word.lower() not in _FUNCTIONS for word in words)


def _one(expressions: Sequence[str], several: int) -> list[list[Any]]:
    """The readings of expressions that are all equal; of as many as a truth has elements, their set and their list."""
    distinct: list[tuple[str, list[Any]]] = []
    for expression in expressions:
        found = _parse(_tidy(expression))
        if found and not any(_equal(known, found) for _, known in distinct):
            distinct.append((expression, found))
    if len(distinct) == 1:
        tidy, whole = _tidy(distinct[0][0]), distinct[0][1]
        right = _parse(_right_side(tidy)) if "=" in tidy else []
        readings = [whole, right] if right else [whole]
        if several > 1 and "," in tidy and not re.match(r"^\s*(?:\\left)?(?:\(|\\\{|\[)", tidy):
            readings += [_parse(rf"\{{{tidy}\}}")]
        return [reading for reading in readings if reading]
    if several > 1 and len(distinct) == several:
        joined = ", ".join(_right_side(_tidy(text)) for text, _ in distinct)
        return [found for found in (_parse(rf"\{{{joined}\}}"), _parse(f"({joined})")) if found]
    return []


def _right_side(text: str) -> str:
    return text.rpartition("=")[2].strip()


def _tidy(text: str) -> str:
    """A formula without sentence's end, units and dollars, with LaTeX's powers and roots."""
    text = text.strip().strip("$").strip().rstrip(".,;").strip()
    text = _without_unit(text)
    text = re.sub(r"(?<=[\d}])\s*\^\s*\{?\\circ\}?$", "", text)
    text = re.sub(r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![\\A-Za-z])(pi|sqrt|sin|cos|tan|ln|log)(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\*\*", "^", text).replace("\\$", "")
    text = re.sub(r"(?<=[\w)])\s*\*\s*(?=[\w(\\])", r" \\cdot ", text)
    return re.sub(r"\^(-?\d{2,})", r"^{\1}", text)


def _without_unit(text: str) -> str:
    return re.sub(rf"(?:(?<=[\d}}])\s*|\s(?!\s*[mgsh]\b)\s*){_UNITS}$", "", text)


def _signs(text: str) -> str:
    text = re.sub(r"√\s*(?:\(([^()]*)\)|(\w+))", lambda m: rf"\sqrt{{{m[1] or m[2]}}}", text)
    return "".join(_SIGNS.get(character, character) for character in text)


def _several(gold: Sequence[Any]) -> int:
    """How many elements the truth has; 1 for what is no set or list."""
    from sympy import FiniteSet, Tuple

    for each in gold:
        if isinstance(each, FiniteSet | Tuple):
            return len(each.args)
    return 1


def _parse(text: str) -> list[Any]:
    if re.fullmatch(r"-?\d+/\d+", text.strip()):
        above, below = text.strip().split("/")
        text = rf"\frac{{{above}}}{{{below}}}" if not above.startswith("-") else rf"-\frac{{{above[1:]}}}{{{below}}}"
    return _raw(f"${text}$")


def _raw(text: str) -> list[Any]:
    from math_verify import parse

    return parse(text, parsing_timeout=_NO_LIMIT)


def _equal(gold: Sequence[Any], found: Sequence[Any]) -> bool:
    from math_verify import verify

    compared = partial(verify, list(gold), timeout_seconds=_NO_LIMIT)
    return bool(compared(list(found))) or bool(compared([_as_set(each) for each in found]))


def _as_set(found: Any) -> Any:
    """An inequality of one variable as the interval that it describes."""
    from sympy.core.relational import Relational

    as_set: Callable[[], Any] | None = getattr(found, "as_set", None)
    if isinstance(found, Relational) and as_set is not None and len(found.free_symbols) == 1:
        try:
            return as_set()
        except (NotImplementedError, TypeError, ValueError):
            return found
    return found
