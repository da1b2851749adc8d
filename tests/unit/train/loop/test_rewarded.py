"""What TRL is given: ids as sampled, in the model's rows; results masked; the loss on sampled tokens alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from counterpoint.configs.rl_section import RewardSettings
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.evals.prompts import EvalPrompt
from counterpoint.train.evals.scorers import Reference
from counterpoint.train.loop.rewarded import Rollouts, items_of
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.rollout.episodes import EpisodeLimits
from counterpoint.train.rollout.rewards import Rewards
from counterpoint.train.rollout.scripted import ScriptedEngine
from counterpoint.train.rollout.toolkit import Toolkit

CALL = (
    "<|channel|>analysis<|message|>Call.<|end|><|start|>assistant<|channel|>commentary to=functions.multiply "
    '<|constrain|>json<|message|>{"a": 6, "b": 7}<|call|>'
)
ANSWER = "<|channel|>final<|message|>42<|return|>"


@pytest.mark.parametrize("efforts", [(), ("low", "high")])
def test_a_step_of_rollouts_as_trl_takes_it(tmp_path: Path, efforts: tuple) -> None:
    (tmp_path / "tools.py").write_text("def multiply(a: int, b: int) -> int:\n    return a * b\n")
    loaded = random_tiny()
    renderer = Renderer(loaded.vocabulary)
    engine = ScriptedEngine(loaded.vocabulary, [CALL, CALL.replace("6", "5"), ANSWER, ANSWER])
    settings = [RewardSettings(type="answer"), RewardSettings(type="calls"), RewardSettings(type="channel")]
    with Toolkit([f"{tmp_path / 'tools.py'}:multiply"]) as toolkit, Rewards(settings) as rewards:
        prompt = toolkit.declared(Conversation((Message("user", "6 times 7?"),)))
        item = EvalPrompt("one", prompt, Reference(answer="42"), "number")
        items = items_of([item], renderer, efforts)
        assert [item.effort for item in items] == list(efforts or ("medium",))
        rollouts = Rollouts(
            items, renderer, engine, rewards, EpisodeLimits(), 1.0, 2, 0, toolkit, tmp_path / "rollouts.jsonl"
        )
        out = rollouts(["0", "0"], 7, loaded.vocabulary_map.rows)
        measured = rollouts.measures(out["scores"], out["episode"])
    ids = loaded.vocabulary_map.ids
    assert ids(out["prompt_ids"][0]).tolist() == renderer.prompt(prompt, items[0].effort)
    sampled = [i for i, m in zip(ids(out["completion_ids"][0]).tolist(), out["env_mask"][0], strict=True) if m]
    assert sampled == loaded.vocabulary.encode_with_specials(CALL + ANSWER)
    assert out["scores"] == [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert measured["rewards/answer/zero_variance"] == 1.0
    assert measured["channel_correct"] == 1.0
    assert (measured["tools/calls"], measured["tools/faults"]) == (1.0, 0.0)
    assert measured[f"analysis_tokens/{items[0].effort}"] == len(loaded.vocabulary.encode("Call."))
    (first, _) = (json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines())
    assert first["step"] == 7
    assert "<|start|>functions.multiply to=assistant<|channel|>commentary<|message|>42<|end|>" in first["text"]
