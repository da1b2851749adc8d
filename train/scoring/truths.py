"""The right answer of a row, by the names that data sets use for it, and the options of a multiple choice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.configs.errors import DataError
from counterpoint.configs.problems import shown
from counterpoint.train.scoring.answers import LETTERS, true_choice
from counterpoint.train.scoring.code_truths import holds_tests
from counterpoint.train.scoring.reading import boxes

NAMES = (
    "answer",
    "ground_truth",
    "reward_model.ground_truth",
    "reference_answer",
    "expected_answer",
    "final_answer",
    "solution",
    "target",
    "answers",
    "targets",
    "ideal",
    "label",
)
"""Fields that hold a right answer, the first that is there counts. `answers`, `targets` and `ideal` list accepted ones;
of `solution` the last box is the answer."""
_ANY_OF = ("answers", "targets", "ideal")
_MATHS = re.compile(
    r"\\(?:[dt]?frac|sqrt|pi|infty|cup|cap|left|begin|text|mathrm|[lg]eq?|times|cdot|pm|circ|theta|log|ln|sin|cos|tan|\{)"
    r"|^\s*\$[^$]+\$\s*$|\w\^\{?\w"
)


@dataclass(frozen=True, slots=True)
class Truth:
    """answer: None where the row has none. accepted: further ones, each as right. notice: what a reader should know."""

    answer: str | None = None
    accepted: tuple[str, ...] = ()
    notice: str | None = None


def truth_of(row: Mapping[str, Any], options: Mapping[str, str], source: str, path: str | None = None) -> Truth:
    """The right answer of a row. path: where it is, as `a.b.c`; None looks under every name of `NAMES`.

    DataError where nothing is at the path, or no answer.
    """
    if path is not None:
        value = _at(row, path)
        answers = _texts(value, options, any_of=True)
        if not answers:
            there = "nothing" if value is None else shown(value)
            raise DataError(
                f"{source}: truth: `{path}` holds {there}: name the field with the right answer, as `a.b.c`"
            )
        return Truth(answers[0], answers[1:])
    found = [(name, answers) for name in NAMES if (answers := _named(row, name, options))]
    if not found:
        return Truth()
    (name, first), notice = found[0], None
    for other, answers in found[1:]:
        if not {text.strip().casefold() for text in first} & {text.strip().casefold() for text in answers}:
            notice = (
                f"{source}: `{name}` ({shown(first[0])}) and `{other}` ({shown(answers[0])}) disagree: the first is "
                "taken; `truth: FIELD` of the task names another"
            )
            break
    return Truth(first[0], first[1:], notice)


def _named(row: Mapping[str, Any], name: str, options: Mapping[str, str]) -> tuple[str, ...]:
    value = _at(row, name)
    if name.endswith("ground_truth") and holds_tests(value):
        return ()
    if name == "solution" and isinstance(value, str):
        boxed = boxes(value)
        return (boxed[-1],) if boxed else ()
    if name == "label" and isinstance(value, bool):
        return ()  # of KTO: whether the answer in the row is wanted
    return _texts(value, options, any_of=name in _ANY_OF)


def _texts(value: Any, options: Mapping[str, str], any_of: bool) -> tuple[str, ...]:
    """A value as the answers that it accepts; of a multiple choice each is a letter, also where it is an index or the
    option's text."""
    if isinstance(value, list) and (any_of or len(value) == 1):
        return tuple(text for each in value for text in _texts(each, options, any_of=False))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ()
    if not options:
        return (str(value),)
    letters = list(options)
    if isinstance(value, int) and 0 <= value < len(letters):
        return (letters[value],)
    text = str(value).strip()
    same = [letter for letter, option in options.items() if option.strip() == text]
    if len(same) == 1 and text.upper() not in options:
        return (same[0],)
    if text.isdigit() and int(text) < len(letters):
        return (letters[int(text)],)
    return (true_choice(text),)


def _at(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    if path in row:
        return row[path]
    for part in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """From each letter of a multiple choice its text: of `choices` or `options` (a list, an object by letter, or
    `{text, label}`). Empty where the row has none."""
    given = row.get("choices", row.get("options"))
    if isinstance(given, Mapping) and isinstance(given.get("text"), list):
        texts, labels = given["text"], given.get("label")
        if isinstance(labels, list) and len(labels) == len(texts) and all(str(label) in LETTERS for label in labels):
            return {str(label): str(text) for label, text in zip(labels, texts, strict=True)}
        given = texts
    if isinstance(given, Mapping) and given and all(str(key).upper() in LETTERS for key in given):
        return {str(key).upper(): str(text) for key, text in given.items()}
    if isinstance(given, list) and 2 <= len(given) <= len(LETTERS) and all(isinstance(each, str) for each in given):
        return {
            letter: re.sub(rf"^\(?{letter}[.):]\s+", "", text) for letter, text in zip(LETTERS, given, strict=False)
        }
    return {}


def fitting(answer: str, options: Mapping[str, str]) -> str:
    """The comparison that fits an answer: `choice` with options, `number`, `math` for LaTeX, else `exact`."""
    if options:
        return "choice"
    plain = answer.replace(",", "").removeprefix("-").replace(".", "", 1)
    if plain.isdigit() or "####" in answer:
        return "number"
    return "math" if _MATHS.search(answer) else "exact"


def disagreements(notices: Iterator[str | None]) -> list[str]:
    """The first notice, and how many more there are."""
    told = [notice for notice in notices if notice is not None]
    more = f" ({len(told) - 1} more rows alike)" if len(told) > 1 else ""
    return [told[0] + more] if told else []
