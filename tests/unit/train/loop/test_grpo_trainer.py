"""What is learned from: ids as sampled; results masked; the loss on sampled tokens alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import DataError
from counterpoint.configs.reward_section import AnswerReward, CallsReward, ChannelReward
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.prompts import EvalPrompt, load_prompts
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

CALL = (
    "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary to=functions.multiply "
    '<|constrain|>json<|message|>{"a": 6, "b": 7}<|call|>'
)
ANSWER = "<|channel|>final<|message|>42<|return|>"


@pytest.mark.parametrize("efforts", [(), ("low", "high")])
def test_a_step_of_rollouts(tmp_path: Path, efforts: tuple) -> None:
    (tmp_path / "tools.py").write_text("def multiply(a: int, b: int) -> int:\n    return a * b\n")
    loaded = random_tiny()
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    stop = loaded.vocabulary.encode_with_specials("<|call|>")[0]
    engine = ScriptedEngine(loaded.vocabulary, lambda prompt, seed: ANSWER if stop in prompt else CALL)
    settings = [AnswerReward(type="answer"), CallsReward(type="calls"), ChannelReward(type="channel")]
    with Toolkit([f"{tmp_path / 'tools.py'}:multiply"]) as toolkit, Rewards(settings) as rewards:
        prompt = toolkit.declared(Conversation((Message("user", "6 times 7?"),)))
        item = EvalPrompt("one", prompt, Reference(answer="42"), "number")
        items = items_of([item], renderer, efforts)
        assert [item.effort for item in items] == list(efforts or ("medium",))
        rollouts = Rollouts(
            items, renderer, engine, rewards, EpisodeLimits(), 1.0, 2, 0, toolkit, tmp_path / "rollouts.jsonl"
        )
        out = rollouts([0, 0], 7)
        measured = rollouts.measured
    ((row,), _) = out.rows
    assert row.prompt_ids == renderer.prompt(prompt, items[0].effort)
    sampled = [i for i, m in zip(row.completion_ids, row.env_mask, strict=True) if m]
    assert sampled == loaded.vocabulary.encode_with_specials(CALL + ANSWER)
    assert out.scores == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert out.lengths == [(len(row.prompt_ids), len(row.completion_ids), True)] * 2
    assert measured["rewards/answer/zero_variance"] == 1.0
    assert measured["channel_correct"] == 1.0
    assert (measured["tools/calls"], measured["tools/faults"], measured["tools/solved"]) == (1.0, 0.0, 1.0)
    assert measured[f"analysis_tokens/{items[0].effort}"] == len(loaded.vocabulary.encode("Call."))
    (first, _) = (json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines())
    assert first["step"] == 7
    assert "<|start|>functions.multiply to=assistant<|channel|>commentary<|message|>42<|end|>" in first["text"]


def test_each_turn_is_learned_from_and_judged_by_its_own_truth(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    row = {"prompt": "6 times 7?", "answer": 42, "follow_ups": ["Thanks.", {"content": "And 8?", "answer": 48}]}
    path.write_text(json.dumps(row) + "\n")
    loaded = random_tiny()
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    engine = ScriptedEngine(loaded.vocabulary, [ANSWER, ANSWER, "<|channel|>final<|message|>48<|return|>"])
    items = items_of(load_prompts(str(path)), renderer)
    assert [item.turn for item in items] == [0, 1, 2]
    with Rewards([AnswerReward(type="answer")]) as rewards:
        keep = tmp_path / "rollouts.jsonl"
        rollouts = Rollouts(items, renderer, engine, rewards, EpisodeLimits(), 1.0, 2, 0, None, keep)
        assert rollouts([2], 0).scores == [[1.0]]
        assert rollouts([2], 1).scores == [[1.0]]
        engine.script = lambda prompt, seed: ANSWER
        assert rollouts([2, 1, 0], 2).scores == [[0.0], [0.0], [1.0]]
    asked = loaded.vocabulary.decode(engine.asked[2][0])
    assert asked.count("<|start|>user<|message|>") == 3
    assert [json.loads(line)["turn"] for line in keep.read_text().splitlines()] == [2, 2, 2, 1, 0]


@pytest.mark.parametrize("given", [[3], [{"answer": 1}], {"content": ""}, [""]])
def test_follow_ups_that_say_nothing_are_told(tmp_path: Path, given: object) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Hello?", "follow_ups": given}) + "\n")
    with pytest.raises(DataError, match=r"follow_ups\[0\]: not a text"):
        load_prompts(str(path))
