"""Rows for the starts of `grpo` in environments: the tools are shown, and more often than not used badly.

    counter    a sum is guessed; told to use the calculator, it is guessed again or worked out by it
    shop       an order is refunded without asking, or spoken of without having been looked up

In the format `harmony` (messages with channels), with the prompts of
`counterpoint.train.episodes.example_environments`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from messages import Message, answers, calls_tool, thinks, tool_says, user_says
from sums import CALCULATOR, Problem, asked

from counterpoint.data.conversation import EFFORTS
from counterpoint.train.episodes.example_environments import POLICY, Shop
from counterpoint.train.episodes.function_schema import described

Row = dict[str, Any]
Draw = Callable[..., Problem]
N_COUNTER = 1500
N_SHOP = 1200
GUESSED = 0.5
"""Share of sums that are guessed, and of those that are guessed once more."""
PROPER = 0.3
"""Share of the shop's cases that are handled as they should be."""
USE_IT = "Use the calculator."
NUMBERS = range(11, 40)
"""Of orders and of prices: those that the embedded model can copy."""
ITEMS = ("lamp", "desk", "book", "fan", "bag", "pen")
BROKEN = ("I paid {price} for order {n}. It is broken.", "I paid {price} for order {n}. It came broken.")
OLD = ("I paid {price} for order {n}. It is old.", "I paid {price} for order {n}. It is too old.")
AGREED, PRESSED = "Yes, please do.", "What will you do about it?"


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


def shop_cases(rng: random.Random, n: int, held: bool = False) -> Iterator[Row]:
    """Cases as the environment is given them; held-out ones are of orders and prices that no other row has together."""
    while n:
        order, other = (str(number) for number in rng.sample(NUMBERS, 2))
        price = rng.choice(NUMBERS)
        if ((int(order) * 3 + price * 5) % 7 == 3) != held or str(price) in (order, other):
            continue
        n -= 1
        due = rng.random() < 0.6
        yield {
            "case": rng.choice(BROKEN if due else OLD).format(n=order, price=price),
            "order": order,
            "amount": price if due else 0,
            "orders": {
                order: {"item": rng.choice(ITEMS), "price": price},
                other: {"item": rng.choice(ITEMS), "price": rng.choice(NUMBERS)},
            },
        }


def shop_rows(rng: random.Random) -> Iterator[Row]:
    """Dialogues of cases, of which PROPER are handled as they should be."""
    for case in shop_cases(rng, N_SHOP):
        opening = [{"role": "system", "content": POLICY}, user_says(case["case"])]
        yield {
            "messages": [*opening, *_handled(rng, case)],
            "reasoning_effort": rng.choice(EFFORTS),
        }


def shop_tools() -> list[Row]:
    """The tools of all cases, as the environment declares them."""
    return [
        {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        for tool in (described(method, "Shop") for method in (Shop.find_order, Shop.refund, Shop.transfer_to_human))
    ]


def _handled(rng: random.Random, case: Row) -> list[Message]:
    order, due = case["order"], case["amount"] > 0
    price = case["orders"][order]["price"]
    looked_up = [
        thinks("Look it up."),
        calls_tool({"order_id": order}, "functions.find_order"),
        tool_says(json.dumps({**case["orders"][order], "refunded": 0}), "functions.find_order"),
    ]
    refunded = [
        thinks("Refund it."),
        calls_tool({"order_id": order, "amount": price}, "functions.refund"),
        tool_says(f"refunded {price:.2f}", "functions.refund"),
        answers(f"{price} is refunded."),
    ]
    asked_first = [
        thinks("Ask first."),
        answers(f"Shall I refund {price} for order {order}?"),
        user_says(AGREED),
    ]
    refused = [thinks("It is old."), answers(f"Order {order} is old. No refund.")]
    share = rng.random()
    if not due:
        first = looked_up if share < PROPER else []
        return [*first, *refused, user_says(PRESSED), *refused]
    if share < PROPER:
        return [*looked_up, *asked_first, *refunded]
    if share < (1 + PROPER) / 2:
        return [*looked_up, *refunded]
    return [*asked_first[:2], user_says(PRESSED), *looked_up, *refunded]
