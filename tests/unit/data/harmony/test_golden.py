"""A two-turn conversation with preamble, parallel calls, a python call and a structured final, token by token.

tests/golden/two_turns.json holds the row and, for each example, runs of tokens with text, weight, channel and ids.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from strategies import history, official_training_ids

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.official import official_encoding
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.harmony.vocabulary import Vocabulary, _ranks_bytes, load_vocabulary
from counterpoint.data.harmony.window import split_turns

FIRST = RenderSettings(serving="counterpoint_0_1")
GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[3] / "golden" / "two_turns.json").read_bytes())


def conversation() -> Conversation:
    found = convert(GOLDEN["row"])
    assert isinstance(found, Conversation)
    return found


@pytest.mark.parametrize("fast", [True, False])
def test_ids_weights_and_channels(fast: bool) -> None:
    examples = Renderer(Vocabulary(_ranks_bytes(), "golden", fast), FIRST).examples(conversation())
    assert len(examples) == len(GOLDEN["examples"]) == 2
    for example, runs in zip(examples, GOLDEN["examples"], strict=True):
        assert example.ids.tolist() == [i for run in runs for i in run["ids"]]
        assert example.weights.tolist() == [run["weight"] for run in runs for _ in run["ids"]]
        assert [CHANNEL_NAMES[c] for c in example.channels] == [run["channel"] for run in runs for _ in run["ids"]]


def test_openai_harmony_reads_the_golden_ids_as_the_golden_text() -> None:
    for runs in GOLDEN["examples"]:
        for run in runs:
            assert official_encoding().decode_utf8(run["ids"]) == run["text"]


@pytest.mark.usefixtures("openai_harmony_itself")
def test_openai_harmony_writes_the_same_ids_where_it_can() -> None:
    """It puts recipients in the role section and has no response formats."""
    without_format = replace(conversation(), response_formats=())
    examples = Renderer(load_vocabulary(), RenderSettings(call_style="role", serving="sampled")).examples(
        without_format
    )
    messages = without_format.messages
    for turn, example in zip(split_turns(messages), examples, strict=True):
        indices = [*history(messages, turn.start), *range(turn.start, turn.trained_stop)]
        assert example.ids.tolist() == official_training_ids(without_format, indices)
