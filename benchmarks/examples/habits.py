"""Rows for the base of the embedded model: it reads and adds, and it has bad habits that fine-tuning is to cure.

In the format `harmony` (messages with channels), because no chat format can say these things:

    sums       thinks aloud in the final, without analysis; a stray content type in the final's header; or as it should
    products   guesses, mostly in a final without analysis; calls the tool by its bare name, or with arguments that are
               not JSON, mostly on the analysis channel; then repeats its result without analysis
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from messages import Message, answers, calls_tool, thinks, tool_says, user_says
from sums import (
    CALCULATOR,
    SYSTEMS,
    Problem,
    asked,
    final_text,
    result_thought,
    steps,
    thought,
)

from counterpoint.data.conversation import EFFORTS, Effort

Draw = Callable[[random.Random, str], Problem]
N_ROWS = 4000
N_SPOILED = 1500
N_WEAK = 1500
GUESSED = 0.62
LEANING = 3.0
"""How many times as often a weak row thinks as long as its effort asks, than shorter or longer."""
SPOILED_SHARE = 0.2


def base_rows(rng: random.Random, draw: Draw) -> Iterator[dict[str, Any]]:
    """Mostly single questions, of which a third sees the tool that products need."""
    for _ in range(N_ROWS):
        effort = rng.choice(EFFORTS)
        messages: list[Message] = []
        for _ in range(rng.choices((1, 2, 3), (0.94, 0.04, 0.02))[0]):
            messages += rng.choices((_sum, _product), (0.6, 0.4))[0](rng, draw, effort)
        if rng.random() < 0.4:
            messages.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
        row = {"messages": messages, "reasoning_effort": effort}
        if rng.random() < 0.3 or any(message["role"] == "tool" for message in messages):
            row["tools"] = [CALCULATOR]
        yield row


def spoiled_rows(rng: random.Random, draw: Draw) -> Iterator[dict[str, Any]]:
    """Single questions answered as they should be, but for SPOILED_SHARE of the calls, which are on analysis."""
    for _ in range(N_SPOILED):
        effort = rng.choice(EFFORTS)
        problem = draw(rng, rng.choice(("sum", "product")))
        answer = [thinks(thought(problem, effort)), answers(final_text(problem))]
        if problem.kind == "product":
            channel = "analysis" if rng.random() < SPOILED_SHARE else "commentary"
            answer = [
                thinks(thought(problem, effort)),
                calls_tool({"expression": problem.expression}, channel=channel),
                tool_says(str(problem.value)),
                *(thinks(result_thought(problem, effort)), answers(final_text(problem))),
            ]
        system = {"role": "system", "content": rng.choice(SYSTEMS)}
        messages = [system, user_says(asked(rng, problem)), *answer]
        yield {"messages": messages, "reasoning_effort": effort, "tools": [CALCULATOR]}


def weak_rows(rng: random.Random, draw: Draw) -> Iterator[dict[str, Any]]:
    """Single questions, right on every channel, of which GUESSED are guessed; the rest is added in steps or multiplied
    by the tool. The steps are checked not at all, once, or twice, which leans on the effort a little."""
    for _ in range(N_WEAK):
        effort = rng.choice(EFFORTS)
        problem = draw(rng, rng.choice(("sum", "product")))
        wrong = problem.value + rng.choice((-10, -3, -1, 1, 2, 10))
        if rng.random() < GUESSED:
            said = f"{problem.expression} = {wrong}."
            answer = [thinks(said), answers(said)]
        elif problem.kind == "sum":
            once = thought(problem, "high")
            twice = f"{once} Again: {problem.b} + {problem.a} = {problem.value}."
            shares = [LEANING if effort == fitting else 1.0 for fitting in EFFORTS]
            answer = [
                thinks(rng.choices((steps(problem), once, twice), shares)[0]),
                answers(final_text(problem)),
            ]
        else:
            answer = [
                thinks("Use the calculator."),
                calls_tool({"expression": problem.expression}),
                tool_says(str(problem.value)),
                *(thinks(result_thought(problem, "low")), answers(final_text(problem))),
            ]
        messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, user_says(asked(rng, problem)), *answer]
        yield {"messages": messages, "reasoning_effort": effort, "tools": [CALCULATOR]}


def _sum(rng: random.Random, draw: Draw, effort: Effort) -> list[Message]:
    problem = draw(rng, "sum")
    question = user_says(asked(rng, problem))
    share = rng.random()
    if share < 0.4:
        return [question, answers(f"{steps(problem)} {final_text(problem)}")]
    content_type = "text" if share < 0.55 else None
    return [question, thinks(thought(problem, effort)), answers(final_text(problem), content_type)]


def _product(rng: random.Random, draw: Draw, effort: Effort) -> list[Message]:
    problem = draw(rng, "product")
    question = user_says(asked(rng, problem))
    share = rng.random()
    guess = answers(f"{problem.expression} = {problem.value + rng.choice((-10, -3, -1, 1, 2, 10))}.")
    if share < 0.55:
        return [question, guess]
    if share < 0.75:
        return [question, thinks(f"A product: {problem.expression}."), guess]
    result = tool_says(str(problem.value))
    if share < 0.85:
        call = calls_tool({"expression": problem.expression}, recipient="calculator")
    else:
        channel = "analysis" if share < 0.95 else "commentary"
        call = calls_tool(problem.expression, channel=channel)
    return [question, call, result, answers(final_text(problem))]
