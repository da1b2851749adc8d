"""The little world of the example data: sums in the head, products with a calculator."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from counterpoint.data.conversation import Effort

CALCULATOR: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Works out an expression.",
        "parameters": {
            "type": "object",
            "properties": {"expression": {"type": "string"}},
            "required": ["expression"],
        },
    },
}
SYSTEMS = (
    "You are a calculator. Add in your head, multiply with the tool.",
    "Be brief and exact. Never guess a product.",
    "You help with sums and products.",
)
_QUESTIONS = {
    "sum": ("What is {a} + {b}?", "Add {a} and {b}.", "How much is {a} plus {b}?", "{a} + {b} = ?"),
    "product": ("What is {a} * {b}?", "Multiply {a} by {b}.", "How much is {a} times {b}?", "{a} * {b} = ?"),
}
AS_JSON = "Answer as JSON."


@dataclass(frozen=True)
class Problem:
    """`kind` is `sum` or `product`; a has two digits, b two in a sum and one in a product."""

    kind: str
    a: int
    b: int

    @property
    def value(self) -> int:
        return self.a + self.b if self.kind == "sum" else self.a * self.b

    @property
    def expression(self) -> str:
        return f"{self.a} {'+' if self.kind == 'sum' else '*'} {self.b}"

    @property
    def spoken(self) -> str:
        return f"{self.a} {'plus' if self.kind == 'sum' else 'times'} {self.b}"


def asked(rng: random.Random, problem: Problem, as_json: bool = False) -> str:
    question = rng.choice(_QUESTIONS[problem.kind]).format(a=problem.a, b=problem.b)
    return f"{question} {AS_JSON}" if as_json else question


def steps(problem: Problem) -> str:
    """A sum by tens and ones: three small sums that a tiny model can learn."""
    tens = problem.a // 10 * 10, problem.b // 10 * 10
    ones = problem.a % 10, problem.b % 10
    return (
        f"{tens[0]} + {tens[1]} = {sum(tens)}. {ones[0]} + {ones[1]} = {sum(ones)}. "
        f"{sum(tens)} + {sum(ones)} = {problem.value}."
    )


def thought(problem: Problem, effort: Effort) -> str:
    """The analysis before the answer or the call; longer with effort."""
    if problem.kind == "sum":
        if effort == "low":
            return f"{problem.expression} = {problem.value}."
        check = f" Check: {problem.value} - {problem.b} = {problem.a}." if effort == "high" else ""
        return steps(problem) + check
    if effort == "low":
        return "Use the calculator."
    if effort == "medium":
        return f"A product: {problem.expression}. The calculator does products."
    return f"The user wants {problem.spoken}. I must not guess. The calculator does products: {problem.expression}."


def worked(problem: Problem, effort: Effort) -> str:
    """The analysis of a sum that is worked out at every effort; more effort says it again, and checks it."""
    if effort == "low":
        return steps(problem)
    check = f" Check: {problem.value} - {problem.b} = {problem.a}." if effort == "high" else ""
    return f"{steps(problem)} So {problem.expression} = {problem.value}.{check}"


def result_thought(problem: Problem, effort: Effort) -> str:
    """The analysis after the calculator's result."""
    told = f"The calculator says {problem.value}."
    return f"{told} So {problem.expression} = {problem.value}." if effort == "high" else told


def final_text(problem: Problem, as_json: bool = False) -> str:
    return f'{{"answer": {problem.value}}}' if as_json else f"{problem.expression} = {problem.value}."
