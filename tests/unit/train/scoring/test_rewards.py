"""Each reward on what it should pay and what it must not; probes of reward hacking earn nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter

from counterpoint.configs.base import BY_TYPE, kinds_of
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import (
    AnswerReward,
    ChannelReward,
    FunctionReward,
    OutsideReward,
    OverlongReward,
    RewardSettings,
)
from counterpoint.data.conversation import Conversation, Effort, Message, Tool
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.sampling.rollout import Called, Rollout, ToolResult, Turn
from counterpoint.train.scoring.rewards import Outcome, Rewards, judge, zero_variance_share
from counterpoint.train.scoring.scorers import ExpectedCall, Reference

VOCABULARY = load_vocabulary()
reward = TypeAdapter(Annotated[RewardSettings, BY_TYPE]).validate_python
ADD = Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
THINK = "<|channel|>analysis<|message|>I add them up.<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"
RIGHT = f"{THINK}<|channel|>final<|message|>42<|return|>"
PROMPT = "Is 40 + 2 equal to 42?"


def outcome(
    said: str, *, reference: Reference | None = None, faults: tuple[str | None, ...] = (), effort: Effort = "medium"
) -> Outcome:
    completion = parse_completion(VOCABULARY.encode_with_specials(said), tools=[ADD], effort=effort)
    called = tuple(
        Called(call, ToolResult("", fault))  # pyright: ignore[reportArgumentType]
        for call, fault in zip(completion.calls, faults, strict=False)
    )
    return Outcome(completion, called, reference or Reference(answer="42", prompt=PROMPT), effort)


def paid(found: Outcome, **setting: object) -> float:
    with Rewards([reward(setting)]) as rewards:
        return rewards.score(found)[0]


def test_every_kind_has_its_function() -> None:
    nothing = judge.dispatch(RewardSettings)
    assert [kind for kind in kinds_of(RewardSettings) if judge.dispatch(kind) is nothing] == list(
        kinds_of(OutsideReward)
    )


PROBES = {
    "empty": "",
    "stop alone": "<|return|>",
    "junk": "42 42 42 42<|return|>",
    "prompt echoed as tokens": f"<|start|>user<|message|>{PROMPT}<|end|><|start|>assistant",
    "answer in analysis alone": "<|channel|>analysis<|message|>42<|return|>",
    "answer in analysis, cut": "<|channel|>analysis<|message|>it is 42",
    "two finals": f"{THINK}{FINAL}41<|end|><|start|>assistant{FINAL}42<|return|>",
    "two finals, both right": f"{THINK}{FINAL}42<|end|><|start|>assistant{FINAL}42<|return|>",
    "more after the final": RIGHT + RIGHT,
    "empty final": f"{THINK}<|channel|>final<|message|><|return|>",
    "unfinished final": f"{THINK}<|channel|>final<|message|>42",
}
EVERY = [
    {"type": "channel"},
    {"type": "answer"},
    {"type": "answer", "scorer": "exact"},
    {"type": "calls"},
    {"type": "length", "budgets": {"medium": [0, 50]}},
    {"type": "language", "language": "en"},
    {"type": "language", "language": "en", "channel": "analysis"},
    {"type": "json"},
]


@pytest.mark.parametrize("said", PROBES.values(), ids=PROBES)
def test_hacking_probes_earn_nothing(said: str) -> None:
    with Rewards([reward(setting) for setting in EVERY]) as rewards:
        assert rewards.score(outcome(said)) == [0.0] * len(EVERY)


def test_manners_without_a_right_answer_earn_nothing() -> None:
    junk = f'{THINK}{FINAL}["the moon is made of cheese", "and it shines on the sea at night"]<|return|>'
    with Rewards([reward(setting) for setting in EVERY]) as rewards:
        assert rewards.score(outcome(junk)) == [1.0] + [0.0] * (len(EVERY) - 1)
    length: dict = {"type": "length", "budgets": {"medium": [0, 50]}}
    for answer, setting, value in [
        ([], length, 1),
        ([{"type": "answer"}], length, 0),
        ([{"type": "answer", "weight": 0}], {"type": "language", "language": "en"}, 0),
        ([{"type": "answer"}], {**length, "gated": False}, 1),
    ]:
        with Rewards([reward(each) for each in [*answer, setting]]) as rewards:
            assert rewards.score(outcome(junk))[-1] == value
            assert rewards.score(outcome(junk, reference=Reference(prompt=PROMPT)))[-1] == 1


def test_what_cannot_judge_is_told_and_missing_truths_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = [replace(outcome(""), reference=Reference(answer=answer)) for answer in ("42", None)]
    math = AnswerReward(type="answer", scorer="math")
    with Rewards([math, FunctionReward(type="function", function="math:sqrt")]) as rewards:
        assert rewards.unjudged(nothing) == {"answer": 1}
    with Rewards([math]) as rewards, monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ConfigError, match=r"reward answer: scorer `math` needs math_verify: pip install"):
            rewards.unjudged(nothing)
    with (
        Rewards([FunctionReward(type="function", function="math:nothing")]) as rewards,
        pytest.raises(ConfigError, match=r"reward function: function `math:nothing`: AttributeError"),
    ):
        rewards.unjudged(nothing)


def test_solved_is_right_through_calls_that_ran() -> None:
    call = f'{THINK}<|channel|>commentary to=functions.add <|constrain|>json<|message|>{{"a": 1}}<|call|>'
    with Rewards([AnswerReward(type="answer"), ChannelReward(type="channel")]) as rewards:
        for said, faults, wanted in [(RIGHT, (None,), True), (RIGHT, (), False), (RIGHT, ("raised",), False)]:
            ran = outcome(call, faults=faults).called
            found = replace(outcome(said), called=ran)
            assert rewards.solved(found, rewards.score(found)) is wanted
        wrong = replace(outcome(RIGHT.replace("42", "41")), called=outcome(call, faults=(None,)).called)
        assert not rewards.solved(wrong, rewards.score(wrong))
    with Rewards([ChannelReward(type="channel")]) as rewards:
        ends_in_call = outcome(call, faults=(None,))
        assert not rewards.solved(ends_in_call, rewards.score(ends_in_call))


def test_an_echoed_prompt_is_no_answer() -> None:
    echo = f"{THINK}<|channel|>final<|message|>{PROMPT}<|return|>"
    assert paid(outcome(echo), type="answer") == 0
    assert paid(outcome(echo.replace(PROMPT, f"{PROMPT} Yes: 42")), type="answer") == 1
    assert paid(outcome(echo), type="language", language="en") == 0


@pytest.mark.parametrize(
    "change", [str.lower, str.upper, lambda text: text.replace(" ", "  "), lambda t: t.rstrip("?.")]
)
def test_an_echo_in_another_guise_is_no_answer(change: Callable[[str], str]) -> None:
    echo = f"{THINK}<|channel|>final<|message|>{change(PROMPT)}<|return|>"
    assert paid(outcome(echo), type="answer") == 0
    assert paid(outcome(echo), type="length", budgets={"medium": [1, 100]}) == 0
    assert paid(outcome(echo), type="language", language="en") == 0


def test_a_short_prompt_is_not_cut_out_of_other_words() -> None:
    for answer, prompt in [("142", "42?"), ("42.5", "42?"), ("42,500", "42"), ("図42", "42")]:
        found = outcome(RIGHT.replace("42", answer), reference=Reference(answer=answer, prompt=prompt))
        assert paid(found, type="answer", scorer="exact") == 1


def test_a_right_answer_earns_each_of_them() -> None:
    assert paid(outcome(RIGHT), type="channel") == 1
    assert paid(outcome(RIGHT), type="answer") == 1
    assert paid(outcome(RIGHT.replace("42", "41")), type="answer") == 0
    assert paid(outcome(RIGHT), type="answer", scorer="math") == 1
    said = "I add them up, one after the other, and then I am done."
    assert paid(outcome(RIGHT.replace("I add them up.", said)), type="language", language="en", channel="analysis") == 1
    assert paid(outcome(RIGHT.replace("I add them up.", said)), type="language", language="fr", channel="analysis") == 0
    assert paid(outcome(RIGHT), type="language", language="en") == 0, "42 is in no language"


@pytest.mark.parametrize(
    ("arguments", "faults", "need", "value"),
    [
        ('{"a": 1}', (None,), ["valid", "right", "succeeded"], 1),
        ('{"a": 2}', (None,), ["valid", "right", "succeeded"], 0),
        ('{"a": 2}', (None,), ["valid", "succeeded"], 1),
        ('{"a": "x"}', (None,), ["valid"], 0),
        ('{"a": 1}', ("raised",), ["valid", "right"], 1),
        ('{"a": 1}', ("raised",), ["succeeded"], 0),
        ('{"a": 1}', (), ["succeeded"], 0),
    ],
)
def test_calls_must_be_what_is_needed(arguments: str, faults: tuple, need: list[str], value: float) -> None:
    call = f"{THINK}<|channel|>commentary to=functions.add <|constrain|>json<|message|>{arguments}<|call|>"
    reference = Reference(calls=(ExpectedCall("add", {"a": 1}),))
    assert paid(outcome(call, reference=reference, faults=faults), type="calls", need=need) == value


def test_no_call_is_right_only_where_none_is_wanted() -> None:
    assert paid(outcome(RIGHT, reference=Reference(calls=())), type="calls") == 1
    assert paid(outcome(RIGHT, reference=Reference(calls=(ExpectedCall("add", {}),))), type="calls") == 0
    assert paid(outcome(RIGHT), type="calls") == 0


@pytest.mark.parametrize(("tokens", "value"), [(0, 0.0), (2, 0.5), (4, 1.0), (8, 1.0), (12, 0.5), (16, 0.0), (20, 0.0)])
def test_length_against_a_budget(tokens: int, value: float) -> None:
    think = f"<|channel|>analysis<|message|>{' a' * tokens}<|end|><|start|>assistant"
    said = f"{think}<|channel|>final<|message|>42<|return|>"
    assert paid(outcome(said, effort="low"), type="length", budgets={"low": [4, 8]}) == value
    assert paid(outcome(said, effort="low"), type="length", budgets={"high": [4, 8]}) == 0


@pytest.mark.parametrize(("tokens", "value"), [(2, 0.0), (3, 0.0), (4, 1.0), (8, 1.0), (9, 0.5), (10, 0.0), (30, 0.0)])
def test_a_steep_length_reward(tokens: int, value: float) -> None:
    think = f"<|channel|>analysis<|message|>{' a' * tokens}<|end|><|start|>assistant"
    said = f"{think}<|channel|>final<|message|>42<|return|>"
    assert paid(outcome(said, effort="low"), type="length", slope=4, budgets={"low": [4, 8]}) == value


@pytest.mark.parametrize(
    ("final", "schema", "value"),
    [
        ('{"answer": 42}', {"type": "object", "required": ["answer"]}, 1),
        ('{"other": 42}', {"type": "object", "required": ["answer"]}, 0),
        ('{"answer": 42}', None, 1),
        ("42", None, 0),
        ("{}", None, 0),
        ("{", None, 0),
        ("[" * 100_000, None, 0),
    ],
)
def test_json_finals(final: str, schema: dict | None, value: float) -> None:
    said = f"{THINK}<|channel|>final<|message|>{final}<|return|>"
    assert paid(outcome(said, reference=Reference(schema=schema)), type="json") == value


def test_a_user_s_function_gets_the_typed_result_and_may_fail(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import signal, time\n"
        "def good(completion, reference): return 0.5 * (completion.final == reference.answer)\n"
        "def raises(completion, reference): return 1 / 0\n"
        "def hangs(completion, reference):\n"
        "    signal.setitimer(signal.ITIMER_REAL, 0.2)  # its limit comes soon\n"
        "    time.sleep(60)\n"
        "def nan(completion, reference): return float('nan')\n"
    )
    names = ("good", "raises", "nan", "hangs")
    settings = [
        FunctionReward(type="function", name=name, function=f"{path}:{name}", weight=2.0, seconds=15.0)
        for name in names
    ]
    with Rewards(settings) as rewards:
        asked = outcome(RIGHT)
        (found,) = rewards.finish([asked], [rewards.begin(asked)], 1)
        assert [None if math.isnan(value) else value for value in found.values] == [0.5, None, None, None]
        assert rewards.total(found.values) == 1.0
        assert found.invalid is not None
        assert found.invalid.startswith("reward raises: ZeroDivisionError: division by zero\nTraceback")
        assert rewards.failures == {"raises": 1, "nan": 1, "hangs": 1}
        assert rewards.causes["hangs"].startswith("no answer within 15 s")


ROLLOUT_REWARDS = """
import asyncio, os, time
import numpy

class Torch:
    def item(self): return -1.5

def number(rollout): return {"plain": 5, "numpy": numpy.float32(2.5), "torch": Torch(), "bool": True}[rollout.row["kind"]]
async def later(rollout):
    await asyncio.sleep(0.01)
    return -1
def nothing(rollout): return None
def parts(r): return {"a": 1, "b": -3.0, "c": None}
def sees(r): return [r.id, r.effort, r.final, len(r.turns), len(r.called), r.completion.analysis] == [
    "row", "medium", "42", 1, 0, "I add them up."]
def place(rollouts): return [k for k, _ in enumerate(rollouts)]
def few(rollouts): return [1]
def process(rollout):
    time.sleep(0.3)
    return os.getpid()
"""


def rollouts(kind: str, count: int = 1) -> list[Outcome]:
    asked = outcome(RIGHT)
    prompt = Conversation((Message("user", PROMPT),))
    seen = Rollout({"kind": kind}, "row", "medium", prompt, (Turn(asked.completion),), "return")
    return [replace(asked, rollout=seen)] * count


@pytest.mark.parametrize(
    ("name", "kind", "options", "value", "failure"),
    [
        ("number", "plain", {}, 5.0, None),
        ("number", "numpy", {}, 2.5, None),
        ("number", "torch", {}, -1.5, None),
        ("number", "bool", {}, 1.0, None),
        ("number", "plain", {"range": (0, 1)}, None, "a reward of 5, outside of `range` (0 to 1)"),
        ("number", "unknown", {}, None, "KeyError: 'unknown'"),
        ("later", "plain", {}, -1.0, None),
        ("nothing", "plain", {}, None, None),
        ("parts", "plain", {}, -2.0, None),
        ("sees", "plain", {}, 1.0, None),
    ],
)
def test_a_reward_of_a_rollout_is_any_finite_number(
    rollout_rewards: Path, name: str, kind: str, options: dict, value: float | None, failure: str | None
) -> None:
    setting = FunctionReward(type="function", name="mine", function=f"{rollout_rewards}:{name}", **options)
    with Rewards([setting]) as rewards:
        (asked,) = rollouts(kind)
        (found,) = rewards.finish([asked], [rewards.begin(asked)], 1)
    assert [None if math.isnan(each) else each for each in found.values] == [value]
    assert (found.invalid or "").startswith(f"reward mine: {failure}" if failure else "")
    assert (found.invalid is None) == (failure is None)
    assert found.parts == ({"mine/a": 1.0, "mine/b": -3.0} if name == "parts" else {})


@pytest.fixture(scope="module")
def rollout_rewards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "mine.py"
    path.write_text(ROLLOUT_REWARDS)
    return path


def test_rewards_of_a_group_and_of_a_step_are_called_once_for_it(rollout_rewards: Path) -> None:
    settings = [
        FunctionReward(type="function", name="group", function=f"{rollout_rewards}:place", per="group"),
        FunctionReward(type="function", name="step", function=f"{rollout_rewards}:place", per="step"),
        FunctionReward(type="function", name="few", function=f"{rollout_rewards}:few", per="group"),
    ]
    with Rewards(settings) as rewards:
        asked = rollouts("plain", 4)
        found = rewards.finish(asked, [rewards.begin(each) for each in asked], 2)
    assert [each.values[:2] for each in found] == [[0, 0], [1, 1], [0, 2], [1, 3]]
    assert (found[0].invalid or "").startswith("reward few: ValueError: 1 rewards for 2 rollouts")


def test_rewards_run_beside_each_other(rollout_rewards: Path) -> None:
    """In as many processes as there are workers, which are kept."""
    for workers, distinct in ((16, 8), (1, 1)):
        setting = FunctionReward(type="function", function=f"{rollout_rewards}:process", workers=workers)
        with Rewards([setting]) as rewards, ThreadPoolExecutor(8) as pool:
            values = [found[0].value for found in pool.map(rewards.begin, rollouts("plain", 8))]
        assert len(set(values)) == distinct


def test_a_gate_multiplies_any_reward() -> None:
    """Silence and junk earn nothing for their channels; ungated, they do."""
    gated = [AnswerReward(type="answer"), ChannelReward(type="channel", gate="answer")]
    junk = outcome(RIGHT.replace("42", "."))
    with Rewards(gated) as rewards:
        assert rewards.score(outcome(RIGHT)) == [1.0, 1.0]
        assert rewards.score(junk) == [0.0, 0.0]
    with Rewards([ChannelReward(type="channel", gate="environment/solved")], environment=True) as rewards:
        assert rewards.score(replace(outcome(RIGHT), earned={"solved": 0.5})) == [0.5]
        assert rewards.score(outcome(RIGHT)) == [0.0]
    with pytest.raises(ConfigError, match="gate: no other reward is named `solved`: take one of answer"):
        Rewards([AnswerReward(type="answer"), ChannelReward(type="channel", gate="solved")])
    with (
        Rewards([FunctionReward(type="function", function="operator:setitem")]) as rewards,
        pytest.raises(ConfigError, match="`operator:setitem`: 3 parameters: give it one, the rollout, or two"),
    ):
        rewards.unjudged([junk])


def test_share_of_groups_without_variance() -> None:
    assert zero_variance_share([1, 1, 0, 1, 0, 0], 2) == pytest.approx(2 / 3)
    assert zero_variance_share([0.5] * 8, 8) == 1.0
    assert zero_variance_share([], 8) == 0.0


def test_names_are_distinct() -> None:
    settings = [ChannelReward(type="channel"), AnswerReward(type="answer"), AnswerReward(type="answer")]
    with Rewards(settings) as rewards:
        assert rewards.names == ("channel", "answer", "answer_2")


@pytest.mark.parametrize(("tokens", "earned"), [(80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (140, -1.0)])
def test_a_rollout_that_nears_the_longest_earns_less(tokens: int, earned: float) -> None:
    """Equation 13 of DAPO's paper, with L_max 100 and L_cache 20."""
    setting = OverlongReward(type="overlong", longest=100, buffer=20)
    completion = replace(parse_completion([]), ids=tuple(range(tokens)))
    with Rewards([setting]) as rewards:
        assert rewards.score(Outcome(completion, (), Reference())) == [pytest.approx(earned)]
