"""Generated items: arithmetic from a seed, and the generators of reasoning-gym.

The same options and seed give the same items on every machine; an item's id names what made it.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.user_code.worker import Guard
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.scorers import Reference

ONLY_THE_ANSWER = "Give only the result as your answer, without a sentence around it."
JUNK = ("I do not know.", "0", "?")
JUNK_LIMIT = 0.2

_OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "add": ("+", operator.add),
    "subtract": ("-", operator.sub),
    "multiply": ("*", operator.mul),
}
_UNUSABLE = {
    "propositional_logic": "its scorer gives points to texts that are no answer",
    "knight_swap": "it takes seconds to make one item",
}


def arithmetic_items(size: int, seed: int, options: Mapping[str, Any]) -> list[EvalPrompt]:
    """Questions such as `What is 40 + 52?`, no two alike.

    options: `operations`, of add, subtract, multiply (default add); `digits`, of each operand (default 2); `terms`, how
    many operands (default 2). ConfigError for other options, or where fewer such questions exist.
    """
    names, digits, terms = _arithmetic_options(options)
    rng = random.Random(f"arithmetic {seed}")
    made: dict[str, EvalPrompt] = {}
    for _ in range(size * 100):
        if len(made) == size:
            return list(made.values())
        sign, apply = _OPERATIONS[rng.choice(names)]
        operands = [rng.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(terms)]
        expression = f" {sign} ".join(map(str, operands))
        value = operands[0]
        for operand in operands[1:]:
            value = apply(value, operand)
        made.setdefault(expression, _question(f"What is {expression}?", str(value), expression, "number"))
    raise ConfigError(f"task of type arithmetic: there are fewer than {size} such questions: lower `size`")


def _arithmetic_options(options: Mapping[str, Any]) -> tuple[Sequence[str], int, int]:
    if unknown := sorted(options.keys() - {"operations", "digits", "terms"}):
        raise ConfigError(f"task of type arithmetic: no option `{unknown[0]}`: take operations, digits, terms")
    names = options.get("operations", ["add"])
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or any(name not in _OPERATIONS for name in names):
        raise ConfigError(f"task of type arithmetic: `operations`: take of {', '.join(_OPERATIONS)}")
    numbers = [options.get("digits", 2), options.get("terms", 2)]
    for name, value, low, high in zip(("digits", "terms"), numbers, (1, 2), (18, 20), strict=True):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"task of type arithmetic: `{name}`: write a number from {low} to {high}")
    return names, *numbers


def gym_items(
    generator: str, size: int, seed: int, options: Mapping[str, Any], guard: Guard
) -> tuple[list[EvalPrompt], list[str]]:
    """Items of one generator of reasoning-gym, and notices about its scorer.

    Generators whose scorer gives junk more than JUNK_LIMIT are refused, and those known to be unusable. ConfigError
    with what is wrong.
    """
    where = f"task of type reasoning_gym: `{generator}`"
    if generator in _UNUSABLE:
        raise ConfigError(f"{where}: {_UNUSABLE[generator]}: take another generator")
    entries = _entries(generator, size, seed, options, where)
    prompts = [
        EvalPrompt(
            id=f"{generator}-{seed}-{number}",
            conversation=_conversation(str(entry["question"])),
            reference=Reference(answer=None if entry["answer"] is None else str(entry["answer"]), entry=entry),
            scorer="reasoning_gym",
        )
        for number, entry in enumerate(entries)
    ]
    return prompts, _junk_notices(generator, entries, guard, where)


def _entries(generator: str, size: int, seed: int, options: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise ConfigError(f"{where}: reasoning-gym is not installed: pip install 'counterpoint[eval]'") from None
    if generator not in DATASETS:
        import difflib

        close = difflib.get_close_matches(generator, DATASETS, n=1)
        hint = f"did you mean `{close[0]}`?" if close else "see reasoning-gym's gallery for the names"
        raise ConfigError(f"{where}: there is no such generator; {hint}")
    try:
        dataset = reasoning_gym.create_dataset(generator, size=size, seed=seed, **options)
        return [dict(dataset[number]) for number in range(size)]
    except Exception as error:
        # A generator may raise anything, AssertionError for its options included.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(f"{where}: it makes no items ({reason}): check `options` and `size`") from None


def _junk_notices(generator: str, entries: Sequence[Mapping[str, Any]], guard: Guard, where: str) -> list[str]:
    """What its scorer does with junk; junk that happens to be the right answer is not counted."""
    paid: list[float] = []
    raised = 0
    for entry in entries[:3]:
        for junk in JUNK:
            if junk == str(entry["answer"]):
                continue
            scored = guard("counterpoint.train.scoring.scorers:reasoning_gym_value", junk, entry)
            raised += scored.value is None
            paid += [scored.value] if scored.value is not None else []
    mean = sum(paid) / len(paid) if paid else 0.0
    if mean > JUNK_LIMIT:
        raise ConfigError(f"{where}: its scorer gives {mean:.2f} to junk: take another generator")
    if raised:
        return [f"{generator}: its scorer raises on some texts that are no answer; these count as 0 and as failed"]
    return []


def _question(text: str, answer: str, id: str, scorer: str) -> EvalPrompt:
    return EvalPrompt(id, _conversation(text), Reference(answer=answer, prompt=text), scorer)


def _conversation(text: str) -> Conversation:
    return Conversation(messages=(Message(role="user", content=text),))
