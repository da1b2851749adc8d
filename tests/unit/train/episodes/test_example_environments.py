"""The shipped environments on scripted models: what solves a case earns 1, and no cheat earns anything for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, SourceSettings
from counterpoint.configs.environment_section import EnvironmentSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.episodes.episodes import World, run_episodes
from counterpoint.train.sampling.rollout import Episode
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.environment_rows import load_rows
from counterpoint.train.scoring.prompts import load_prompts

VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))
HOME = "counterpoint.train.episodes.example_environments"
ROW = {
    "case": "I want my money back for A1.",
    "order": "A1",
    "amount": 30,
    "orders": {"A1": {"item": "lamp", "price": 30}, "B2": {"item": "desk", "price": 80}},
}
NOTHING_DUE = {**ROW, "case": "I want my money back for A1, it is old.", "amount": 0}


def say(final: str) -> str:
    return f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>{final}<|return|>"


def use(name: str, arguments: str) -> str:
    return f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"


FIND, REFUND = use("find_order", '{"order_id": "A1"}'), use("refund", '{"order_id": "A1", "amount": 30}')
ASK, TOLD = say("Order A1 is a lamp for $30. Shall I refund 30?"), say("30.00 refunded.")


def made(name: str) -> Environments:
    return Environments(EnvironmentSettings.model_validate({"class": f"{HOME}:{name}"}))


@pytest.fixture(scope="module")
def shop() -> Iterator[Environments]:
    with made("Shop") as environments:
        yield environments


def play(environments: Environments, row: dict[str, Any], *answers: str) -> Episode:
    engine = ScriptedEngine(VOCABULARY, answers)
    (episode,) = run_episodes([Conversation(())], RENDERER, engine, environments=environments, worlds=[World(row)])
    assert episode.invalid is None
    return episode


def test_an_order_that_is_looked_up_and_refunded_with_consent_is_solved(shop: Environments) -> None:
    episode = play(shop, ROW, FIND, ASK, REFUND, TOLD)
    assert episode.earned == {"solved": 1.0, "looked_up": 1.0}
    assert [m["content"] for m in episode.messages if m["role"] == "user"] == [ROW["case"], "Yes, please do."]
    assert play(shop, NOTHING_DUE, FIND, say("It is too old.")).earned["solved"] == 1.0


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        (ROW, [REFUND, TOLD]),
        (ROW, [FIND, REFUND, TOLD]),
        (ROW, [ASK, FIND, REFUND, TOLD]),
        (ROW, [ASK, REFUND, TOLD]),
        (ROW, [FIND, ASK, REFUND, use("refund", '{"order_id": "B2", "amount": 80}'), TOLD]),
        (ROW, [FIND, ASK, use("refund", '{"order_id": "A1", "amount": 20}'), TOLD]),
        (ROW, [FIND, ASK, REFUND, say("Done.")]),
        (ROW, [FIND, say("A1 costs 30, B2 80, I refund 30."), REFUND, TOLD]),
        (ROW, [use("transfer_to_human", '{"reason": "no time"}')]),
        (ROW, [FIND, ASK, REFUND, use("transfer_to_human", '{"reason": "no time"}')]),
        (ROW, [say("30")]),
        (ROW, ["<|return|>"]),
        (ROW, [FIND, use("refund", '{"order_id": "A1", "amount": -30}'), TOLD]),
        (NOTHING_DUE, [say("It is too old.")]),
        (NOTHING_DUE, [use("transfer_to_human", '{"reason": "no time"}')]),
        (NOTHING_DUE, [FIND, REFUND, TOLD]),
        (NOTHING_DUE, ["<|return|>"]),
    ],
    ids=[
        "refund at once", "no consent", "asked before it was looked up", "not looked up", "refund everything",
        "less than was agreed", "not told", "told instead of asked", "transfer", "transfer after all", "only said",
        "silence", "negative", "not looked up, nothing due", "transfer, nothing due", "refund, nothing due",
        "silence, nothing due",
    ],
)  # fmt: skip
def test_no_cheat_solves_a_case(shop: Environments, row: dict[str, Any], answers: list[str]) -> None:
    assert play(shop, row, *answers).earned["solved"] == 0.0


def test_the_calculator_pays_for_an_answer_that_its_display_shows() -> None:
    prompt = load_prompts("example:products")[0].conversation
    row = dict(prompt.metadata)
    call = use("calculator", '{"expression": "31 * 8"}')
    with made("Calculator") as calculator:

        def earned(*answers: str) -> dict[str, float]:
            engine = ScriptedEngine(VOCABULARY, answers)
            (episode,) = run_episodes([prompt], RENDERER, engine, environments=calculator, worlds=[World(row)])
            return dict(episode.earned)

        assert earned(call, say("31 * 8 = 248.")) == {"right": 1.0, "keys": -0.05}
        assert earned(say("248"), call, say("248")) == {"right": 1.0, "keys": -0.05}
        assert earned(say("248")) == {"right": 0.0, "keys": 0.0}
        assert earned(use("calculator", '{"expression": "1"}'), say("248"))["right"] == 0.0
        assert earned(call, say("249"))["right"] == 0.0


def test_a_start_is_shown_the_prompts_that_its_environment_has() -> None:
    shown = load_prompts("example:counter_start")[0].conversation
    shown = replace(shown, messages=shown.messages[:1])
    (row, *_) = load_rows(SourceSettings(path="example:counter"))
    asked = replace(row.conversation, messages=shown.messages)
    engine = ScriptedEngine(VOCABULARY, ["<|return|>"])
    with made("Calculator") as environments:
        run_episodes([asked], RENDERER, engine, environments=environments)
    assert engine.asked[0][0] == RENDERER.prompt(shown, "medium")


def test_a_case_of_the_shop_is_shown_as_it_is_met(shop: Environments) -> None:
    (row, *_) = load_rows(SourceSettings(path="example:shop"))
    engine = ScriptedEngine(VOCABULARY, ["<|return|>"])
    world = World(row.conversation.metadata)
    run_episodes([row.conversation], RENDERER, engine, environments=shop, worlds=[world])
    options = ConversionSettings(tools="example:shop_tools.json")
    shown = next(iter(read_conversations(["example:shop_start"], options)))
    assert isinstance(shown, Conversation)
    opening = replace(shown.messages[0], content=world.row["case"])
    assert engine.asked[0][0] == RENDERER.prompt(replace(shown, messages=(opening,)), "medium")


def test_the_cases_of_the_shop_are_solved_by_the_book(shop: Environments) -> None:
    for path in ("example:shop", "example:shop_held_out"):
        for found in load_rows(SourceSettings(path=path))[:20]:
            row = dict(found.conversation.metadata)
            order, price = row["order"], row["orders"][row["order"]]["price"]
            find = use("find_order", f'{{"order_id": "{order}"}}')
            refund = use("refund", f'{{"order_id": "{order}", "amount": {price}}}')
            asks, told, no = say(f"Shall I refund {price} for order {order}?"), say(f"{price} is refunded."), say("No.")
            due = row["amount"] > 0
            by_the_book, hasty = ([find, asks, refund, told], [find, refund, told]) if due else ([find, no], [no])
            assert play(shop, row, *by_the_book).earned["solved"] == 1.0
            assert play(shop, row, *hasty).earned["solved"] == 0.0
