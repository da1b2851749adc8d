"""The example data, made from a seed: `python benchmarks/examples/make.py` writes the files again.

quickstart.jsonl        OpenAI chat rows that teach: think in analysis, add by head, multiply with the calculator
quickstart_eval.jsonl   held-out prompts with the answer or the call that is expected
tiny_base.jsonl         Harmony rows for the base of the embedded model: it can add, with bad habits (see `habits`)
spoiled.jsonl           Harmony rows with a fifth of the calls on the analysis channel, for what `dpo` is to repair
weak.jsonl              Harmony rows that guess more often than not, for a checkpoint that `grpo` is to strengthen
answers.jsonl           OpenAI chat rows of sums with their answer alone, for `distill`
sums.jsonl              prompts of sums with `answer`, for `grpo`; sums_eval.jsonl held-out ones
products.jsonl          prompts of products with `answer`; products_eval.jsonl held-out ones with the expected `call`
counter.jsonl           prompts of sums for the environment `Calculator`; counter_held_out.jsonl held-out
                        ones; counter_start.jsonl Harmony rows that guess more often than they use the calculator
shop.jsonl              cases for the environment `Shop`; shop_held_out.jsonl held-out ones; shop_start.jsonl Harmony
                        rows that handle most of them badly, shop_tools.json their tools
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bias import bias_rows
from demonstrations import counter_prompts, counter_rows, shop_cases, shop_rows, shop_tools
from habits import base_rows, spoiled_rows, weak_rows
from probes import probe_rows
from sums import (
    CALCULATOR,
    SYSTEMS,
    Problem,
    asked,
    final_text,
    result_thought,
    thought,
    worked,
)

from counterpoint.data.conversation import EFFORTS, Effort

Row = dict[str, Any]
N_ROWS = 600
N_EVAL = 32
N_ANSWERS = 300
N_PROMPTS = 640

PREAMBLE = "I will ask the calculator."
GREETINGS = (("Hello!", "Hello! What shall I compute?"), ("Thank you.", "You are welcome."))


def held_out(problem: Problem) -> bool:
    """Problems that no training row holds: one in seven, and every sum has other problems of the same value."""
    return (problem.a * 3 + problem.b * 5) % 7 == 3


def draw(rng: random.Random, kind: str, held: bool = False) -> Problem:
    while True:
        # Few numbers, so that a model of 0.3 M parameters learns to copy them within minutes; enough pairs, so that it
        # adds by tens and ones and does not learn each sum by heart.
        b = rng.randint(11, 39) if kind == "sum" else rng.randint(2, 9)
        problem = Problem(kind, rng.randint(11, 39), b)
        if held_out(problem) == held:
            return problem


def quickstart_rows(rng: random.Random) -> Iterator[Row]:
    """Rows of all kinds, in shares that `_KINDS` names, shuffled."""
    kinds = [make for make, count in _KINDS for _ in range(count)]
    rng.shuffle(kinds)
    for make in kinds:
        # The second of two calls at once comes without a thought of its own, which only low effort allows.
        effort = "low" if make is _parallel else rng.choice(EFFORTS)
        messages = make(rng, effort)
        if rng.random() < 0.9:
            messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
        row: Row = {"messages": messages, "reasoning_effort": effort}
        if any("tool_calls" in m for m in messages) or rng.random() < 0.7:
            row["tools"] = [CALCULATOR]
        yield row


def _sum(rng: random.Random, effort: Effort) -> list[Row]:
    problem = draw(rng, "sum")
    as_json = rng.random() < 0.2
    return [
        {"role": "user", "content": asked(rng, problem, as_json)},
        _answer(worked(problem, effort), final_text(problem, as_json)),
    ]


def _product(rng: random.Random, effort: Effort) -> list[Row]:
    problem = draw(rng, "product")
    return [{"role": "user", "content": asked(rng, problem)}, *_called(rng, problem, effort)]


def _announced(rng: random.Random, effort: Effort) -> list[Row]:
    """Text beside the call: a preamble."""
    problem = draw(rng, "product")
    question = f"Tell me what you do. {asked(rng, problem)}"
    return [{"role": "user", "content": question}, *_called(rng, problem, effort, content=PREAMBLE)]


def _parallel(rng: random.Random, effort: Effort) -> list[Row]:
    """Two calls in one message."""
    first, second = draw(rng, "product"), draw(rng, "product")
    calls = [_call(rng, first), _call(rng, second)]
    analysis = f"Two products: {first.expression} and {second.expression}. The calculator does products."
    return [
        {"role": "user", "content": f"What are {first.spoken} and {second.spoken}?"},
        {"role": "assistant", "content": None, "reasoning_content": analysis, "tool_calls": calls},
        *(_result(call, p) for call, p in zip(calls, (first, second), strict=True)),
        _answer(result_thought(second, "low"), f"{final_text(first)} {final_text(second)}"),
    ]


def _dialogue(rng: random.Random, effort: Effort) -> list[Row]:
    """Two or three turns. Some hold a wrong answer that is context only (`weight: 0`)."""
    messages: list[Row] = []
    for _ in range(rng.choice((2, 2, 3))):
        messages += rng.choice((_sum, _sum, _product))(rng, effort)
    if rng.random() < 0.2:
        problem = draw(rng, "sum")
        wrong = {"role": "assistant", "content": f"{problem.a} + {problem.b} = {problem.value + 1}.", "weight": 0}
        messages += [{"role": "user", "content": asked(rng, problem)}, wrong]
        again = "No. Add again." if problem.a % 2 else "It is not. Add again."
        messages += [{"role": "user", "content": again}]
        messages += [_answer(worked(problem, effort), final_text(problem))]
    return messages


def _greeting(rng: random.Random, effort: Effort) -> list[Row]:
    said, reply = rng.choice(GREETINGS)
    return [{"role": "user", "content": said}, _answer("Nothing to compute.", reply)]


_KINDS: tuple[tuple[Callable[[random.Random, Effort], list[Row]], int], ...] = (
    (_sum, 250),
    (_product, 190),
    (_announced, 45),
    (_parallel, 25),
    (_dialogue, 80),
    (_greeting, 10),
)


def _called(rng: random.Random, problem: Problem, effort: Effort, content: str | None = None) -> list[Row]:
    call = _call(rng, problem)
    asks = {
        "role": "assistant",
        "content": content,
        "reasoning_content": thought(problem, effort),
        "tool_calls": [call],
    }
    return [asks, _result(call, problem), _answer(result_thought(problem, effort), final_text(problem))]


def _call(rng: random.Random, problem: Problem) -> Row:
    arguments = json.dumps({"expression": problem.expression})
    name = CALCULATOR["function"]["name"]
    return {
        "id": f"call_{rng.randrange(16**6):06x}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _result(call: Row, problem: Problem) -> Row:
    return {"role": "tool", "tool_call_id": call["id"], "content": str(problem.value)}


def _answer(analysis: str, content: str) -> Row:
    return {"role": "assistant", "reasoning_content": analysis, "content": content}


def eval_rows(rng: random.Random) -> Iterator[Row]:
    """Prompts, each with `answer`, `call` (tool and arguments), or both None; half sums, half products."""
    for index in range(N_EVAL):
        system = {"role": "system", "content": SYSTEMS[index % len(SYSTEMS)]}
        problem = draw(rng, "sum" if index % 2 == 0 else "product", held=True)
        user = {"role": "user", "content": asked(rng, problem, as_json=index % 16 == 8)}
        row: Row = {"messages": [system, user], "tools": [CALCULATOR]}
        if problem.kind == "product" and index % 8 == 7:
            call = _call(rng, problem)
            asks = {"role": "assistant", "content": None, "tool_calls": [call]}
            row["messages"] += [
                asks | {"reasoning_content": thought(problem, "low")},
                _result(call, problem),
            ]
            row["answer"] = problem.value
        elif problem.kind == "product":
            row["call"] = expected_call(problem)
        else:
            row["answer"] = problem.value
        yield row


def answer_rows(rng: random.Random) -> Iterator[Row]:
    """Sums and their answers, without a thought."""
    for _ in range(N_ANSWERS):
        problem = draw(rng, "sum")
        system = {"role": "system", "content": rng.choice(SYSTEMS)}
        answer = {"role": "assistant", "content": final_text(problem)}
        yield {"messages": [system, {"role": "user", "content": asked(rng, problem)}, answer]}


def prompt_rows(rng: random.Random, kind: str, held: bool = False) -> Iterator[Row]:
    """Questions and their answers, of problems that training rows may hold too; or held-out ones, fewer."""
    for _ in range(N_EVAL if held else N_PROMPTS):
        problem = draw(rng, kind, held)
        system = {"role": "system", "content": rng.choice(SYSTEMS)}
        row: Row = {"messages": [system, {"role": "user", "content": asked(rng, problem)}], "tools": [CALCULATOR]}
        if held and kind == "product":
            yield row | {"call": expected_call(problem)}
        else:
            yield row | {"answer": problem.value}


def expected_call(problem: Problem) -> Row:
    return {"name": "functions.calculator", "arguments": {"expression": problem.expression}}


def write_all(folder: Path) -> None:
    rows = {
        "quickstart.jsonl": quickstart_rows(random.Random(2)),
        "quickstart_eval.jsonl": eval_rows(random.Random(3)),
        "tiny_base.jsonl": base_rows(random.Random(1), draw),
        "spoiled.jsonl": spoiled_rows(random.Random(4), draw),
        "weak.jsonl": weak_rows(random.Random(8), draw),
        "answers.jsonl": answer_rows(random.Random(5)),
        "sums.jsonl": prompt_rows(random.Random(6), "sum"),
        "sums_eval.jsonl": prompt_rows(random.Random(9), "sum", held=True),
        "products.jsonl": prompt_rows(random.Random(7), "product"),
        "products_eval.jsonl": prompt_rows(random.Random(10), "product", held=True),
        "counter.jsonl": counter_prompts(random.Random(11), draw, N_PROMPTS),
        "counter_held_out.jsonl": counter_prompts(random.Random(16), draw, N_EVAL, held=True),
        "counter_start.jsonl": counter_rows(random.Random(12), draw),
        "shop_start.jsonl": shop_rows(random.Random(13)),
        "shop.jsonl": shop_cases(random.Random(14), N_PROMPTS),
        "shop_held_out.jsonl": shop_cases(random.Random(15), N_EVAL, held=True),
        "probes.jsonl": probe_rows(),
        "bias_probes.jsonl": bias_rows(),
    }
    for name, content in rows.items():
        lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in content]
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "shop_tools.json").write_text(json.dumps(shop_tools(), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_all(Path(__file__).parents[2] / "data" / "examples")
