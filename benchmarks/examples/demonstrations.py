"""Rows for `grpo` in the environment `Calculator`, and for its start: sums that are guessed, or left to the calculator.

In the format `harmony` (messages with channels), with the prompts that the environment has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from messages import Message, answers, calls_tool, thinks, tool_says, user_says
from sums import CALCULATOR, Problem, asked

from counterpoint.data.conversation import EFFORTS

Row = dict[str, Any]
Draw = Callable[..., Problem]
N_COUNTER = 1500
GUESSED = 0.5
"""Share of sums that are guessed, and of those that are guessed once more."""
USE_IT = "Use the calculator."


def counter_prompts(rng: random.Random, draw: Draw, n: int, held: bool = False) -> Iterator[Row]:
    """Questions with their answers."""
    for _ in range(n):
        problem = draw(rng, "sum", held)
        yield {"messages": [user_says(asked(rng, problem))], "tools": [CALCULATOR], "answer": problem.value}


def counter_rows(rng: random.Random, draw: Draw) -> Iterator[Row]:
    """Dialogues of one or two turns."""
    for _ in range(N_COUNTER):
        problem = draw(rng, "sum")
        messages: list[Message] = [user_says(asked(rng, problem))]
        for turn in range(2):
            if turn:
                messages.append(user_says(USE_IT))
            if rng.random() < GUESSED:
                messages += [thinks("I guess."), answers(f"{rng.randint(22, 78)}.")]
                continue
            messages += [thinks(USE_IT), calls_tool({"expression": problem.expression}), tool_says(str(problem.value))]
            messages.append(answers(f"{problem.value}."))
            break
        yield {"messages": messages, "reasoning_effort": rng.choice(EFFORTS), "tools": [CALCULATOR]}
