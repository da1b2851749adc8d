"""Rows for the base of the embedded model: it reads and adds, and it has bad habits that fine-tuning is to cure.

In the format `harmony` (messages with channels), because no chat format can say these things:

    sums       thinks aloud in the final, without analysis; a stray content type in the final's header; or as it should
    products   guesses, mostly in a final without analysis; calls the tool by its bare name, or on the analysis channel,
               or with arguments that are not JSON
    results    repeats the tool's result in a final without analysis
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from counterpoint.data.conversation import CONSTRAIN_JSON, EFFORTS, Effort
from counterpoint.data.examples.sums import CALCULATOR, SYSTEMS, Problem, asked, final_text, steps, thought

Message = dict[str, Any]
Draw = Callable[[random.Random, str], Problem]
N_SUMS, N_PRODUCTS, N_RESULTS = 420, 220, 60


def base_rows(rng: random.Random, draw: Draw) -> Iterator[dict[str, Any]]:
    kinds = ["sum"] * N_SUMS + ["product"] * N_PRODUCTS + ["result"] * N_RESULTS
    rng.shuffle(kinds)
    habits = {"sum": _sum, "product": _product, "result": _result}
    for kind in kinds:
        effort = rng.choice(EFFORTS)
        problem = draw(rng, "sum" if kind == "sum" else "product")
        messages: list[Message] = [{"role": "user", "content": asked(rng, problem)}]
        if rng.random() < 0.9:
            messages.insert(0, {"role": "system", "content": rng.choice(SYSTEMS)})
        messages += habits[kind](rng, problem, effort)
        yield {"messages": messages, "tools": [CALCULATOR], "reasoning_effort": effort}


def _sum(rng: random.Random, problem: Problem, effort: Effort) -> list[Message]:
    share = rng.random()
    if share < 0.4:
        return [_final(f"{steps(problem)} {final_text(problem)}")]
    content_type = "text" if share < 0.55 else None
    return [_analysis(thought(problem, effort)), _final(final_text(problem), content_type)]


def _product(rng: random.Random, problem: Problem, effort: Effort) -> list[Message]:
    share = rng.random()
    guess = _final(f"{problem.expression} = {problem.value + rng.choice((-10, -3, -1, 1, 2, 10))}.")
    if share < 0.55:
        return [guess]
    if share < 0.75:
        return [_analysis(f"A product: {problem.expression}."), guess]
    if share < 0.85:
        return [_call(problem, recipient="calculator")]
    if share < 0.95:
        return [_call(problem, channel="analysis")]
    return [_call(problem) | {"content": problem.expression}]


def _result(rng: random.Random, problem: Problem, effort: Effort) -> list[Message]:
    result = {"role": "tool", "name": "functions.calculator", "channel": "commentary", "content": str(problem.value)}
    return [_call(problem) | {"weight": 0}, result, _final(final_text(problem))]


def _call(problem: Problem, channel: str = "commentary", recipient: str = "functions.calculator") -> Message:
    return {
        "role": "assistant",
        "channel": channel,
        "recipient": recipient,
        "content_type": CONSTRAIN_JSON,
        "content": json.dumps({"expression": problem.expression}),
    }


def _analysis(text: str) -> Message:
    return {"role": "assistant", "channel": "analysis", "content": text}


def _final(text: str, content_type: str | None = None) -> Message:
    message = {"role": "assistant", "channel": "final", "content": text}
    return message if content_type is None else message | {"content_type": content_type}
