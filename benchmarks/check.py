"""The strict checker against openai-harmony's parser, on the same completions in one run.

    python benchmarks/check.py [--repeat N]

Prints microseconds of CPU a completion (the best of N rounds, each side in turn) and the ratio; caches are warm.
Shapes of completions follow gpt-oss's own: analysis and final, analysis and call (both recipient positions, with the
arguments checked against a schema), preamble, built-in call, and a long chain of thought.
"""

from __future__ import annotations

import argparse
import gc
import platform
import time
from collections.abc import Callable

from openai_harmony import Role

from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.official import official_encoding
from counterpoint.data.harmony.vocabulary import load_vocabulary

TOOL = Tool(
    "get_weather",
    "",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
SENTENCES = (
    "The user asks for the weather in {0} on day {1}, so the tool get_weather has to be called with city {0}. ",
    "We could also answer from memory, but option {1} would be a guess about {0}; better to look it up. ",
    "Let x = {1}; then 3x + 7 = {2}, and dividing by {1} leaves a remainder that has to be checked again. ",
    "In code this reads `for i in range({1}): total += rates[i] * {2}`, which ends after {1} rounds. ",
)
PLACES = ("Lyon", "Kyoto", "São Paulo", "Reykjavík", "Nairobi", "Hanoi", "Quito")


def prose(sentences: int) -> str:
    return "".join(
        SENTENCES[i % len(SENTENCES)].format(PLACES[i % len(PLACES)], i + 2, 3 * (i + 2) + 7) for i in range(sentences)
    )


def completions() -> dict[str, list[int]]:
    thought = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
    call = '<|message|>{"city": "Kyoto", "unit": "celsius", "days": 3}<|call|>'
    texts = {
        "final alone": "<|channel|>final<|message|>It will be 21 degrees and dry.<|return|>",
        "short analysis, final": thought.format(prose(2)) + "<|channel|>final<|message|>" + prose(1) + "<|return|>",
        "analysis, call (channel)": thought.format(prose(2))
        + "<|channel|>commentary to=functions.get_weather <|constrain|>json"
        + call,
        "analysis, call (role)": thought.format(prose(2))
        + " to=functions.get_weather<|channel|>commentary <|constrain|>json"
        + call,
        "analysis, preamble, call": thought.format(prose(2))
        + "<|channel|>commentary<|message|>Let me look that up.<|end|><|start|>assistant"
        + "<|channel|>commentary to=functions.get_weather <|constrain|>json"
        + call,
        "analysis, python call": thought.format(prose(3))
        + "<|channel|>analysis to=python code<|message|>print(sum(i * i for i in range(10)))<|call|>",
        "medium analysis, final": thought.format(prose(12)) + "<|channel|>final<|message|>" + prose(6) + "<|return|>",
        "long analysis, final": thought.format(prose(100)) + "<|channel|>final<|message|>" + prose(10) + "<|return|>",
    }
    vocabulary = load_vocabulary()
    return {name: vocabulary.encode_with_specials(text) for name, text in texts.items()}


def microseconds(function: Callable[[], object]) -> float:
    """CPU time of one call, over a round of about 5 ms: other processes of the machine disturb it little."""
    started = time.process_time()
    function()
    rounds = max(1, int(0.005 / max(time.process_time() - started, 1e-6)))
    started = time.process_time()
    for _ in range(rounds):
        function()
    return 1e6 * (time.process_time() - started) / rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=40)
    repeat = parser.parse_args().repeat
    official, tools = official_encoding(), (TOOL,)
    print(f"{platform.machine()}, Python {platform.python_version()}, best of {repeat} rounds, us a completion")
    print(f"{'':<26} {'tokens':>6} {'openai-harmony':>15} {'check':>8} {'ratio':>6} {'typed result':>13} {'ratio':>6}")
    totals = [0.0, 0.0, 0.0]
    gc.disable()
    for name, ids in completions().items():
        found = check(ids, tools=tools, builtin_tools=("python",), effort="low")
        assert found.ok, (name, found.violations)
        best = [float("inf")] * 3
        for _ in range(repeat):
            sides = (
                microseconds(lambda ids=ids: official.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)),
                microseconds(lambda ids=ids: check(ids, tools=tools, builtin_tools=("python",), effort="low")),
                microseconds(lambda ids=ids: parse_completion(ids, tools=tools, builtin_tools=("python",))),
            )
            best = [min(pair) for pair in zip(best, sides, strict=True)]
        _row(name, len(ids), best)
        totals = [total + one for total, one in zip(totals, best, strict=True)]
    _row("all of them", sum(map(len, completions().values())), totals)


def _row(name: str, tokens: int, best: list[float]) -> None:
    theirs, checked, typed = best
    ratios = f"{checked:>8.1f} {theirs / checked:>6.1f} {typed:>13.1f} {theirs / typed:>6.1f}"
    print(f"{name:<26} {tokens:>6} {theirs:>15.1f} {ratios}")


if __name__ == "__main__":
    main()
