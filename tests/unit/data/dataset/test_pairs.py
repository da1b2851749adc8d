"""Pairs share their prompt id for id, compare what `loss_on` says, and built ones differ in one fault."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from counterpoint.configs.errors import DataError
from counterpoint.configs.preference_section import DpoSettings
from counterpoint.configs.schema import DataSettings
from counterpoint.data.conversation import Conversation, Message, Preference, Tool
from counterpoint.data.dataset.pairs import build_pairs, build_rated, pair_of
from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary

VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY)
ADD = Tool("add", "", {"type": "object", "properties": {}})
PROMPT = Conversation((Message("user", "What is 1 + 1?"),), tools=(ADD,))
CHOSEN = (Message("assistant", "One and one.", "analysis"), Message("assistant", "2", "final"))
REJECTED = (Message("assistant", "Hm.", "analysis"), Message("assistant", "3", "final"))
CALL = (Message("assistant", "Call.", "analysis"), Message("assistant", "{}", "commentary", "functions.add"))


def compared(ids: list[int], mask: list[int]) -> str:
    return VOCABULARY.decode([i for i, m in zip(ids, mask, strict=True) if m])


def test_a_row_s_pair_is_what_inference_would_sample() -> None:
    pair = pair_of(Preference(PROMPT, CHOSEN, REJECTED), RENDERER)
    assert pair.prompt_ids == RENDERER.prompt(PROMPT)
    assert VOCABULARY.decode(pair.chosen_ids) == (
        "<|channel|>analysis<|message|>One and one.<|end|><|start|>assistant<|channel|>final<|message|>2<|return|>"
    )
    assert pair.chosen_mask == [1] * len(pair.chosen_ids)
    assert pair.rejected_mask == [1] * len(pair.rejected_ids)


@pytest.mark.parametrize(
    ("loss_on", "chosen", "rejected"),
    [
        ("final", "<|channel|>final<|message|>2<|return|>", ""),
        ("analysis", "<|channel|>analysis<|message|>One and one.<|end|>", "<|channel|>analysis<|message|>Call.<|end|>"),
        ("calls", "", "<|channel|>commentary to=functions.add<|message|>{}<|call|>"),
    ],
)
def test_loss_on_one_channel(loss_on: str, chosen: str, rejected: str) -> None:
    pair = pair_of(Preference(PROMPT, CHOSEN, CALL), RENDERER, loss_on)
    assert compared(pair.chosen_ids, pair.chosen_mask) == chosen
    assert compared(pair.rejected_ids, pair.rejected_mask) == rejected


def test_a_pair_inside_a_tool_loop_keeps_its_prompt() -> None:
    result = Message("tool", "2", "commentary", name="functions.add")
    prompt = Conversation((*PROMPT.messages, *CALL, result), tools=(ADD,))
    pair = pair_of(Preference(prompt, CHOSEN[1:], REJECTED[1:]), RENDERER)
    assert pair.prompt_ids == RENDERER.prompt(prompt)
    assert VOCABULARY.decode(pair.chosen_ids) == "<|channel|>final<|message|>2<|return|>"


def data_of(tmp_path: Path, rows: list[dict], **data: object) -> DataSettings:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataSettings.model_validate({"train": str(path), **data})


ROW = {
    "messages": [
        {"role": "user", "content": "What is 6 times 7?"},
        {
            "role": "assistant", "content": None, "reasoning_content": "Call it.",
            "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "42"},
        {"role": "assistant", "content": "42", "reasoning_content": "It is 42."},
    ],
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}],
}  # fmt: skip
ALL = ["malformed_header", "wrong_channel", "leaked_analysis", "empty_analysis", "wrong_terminator"]


def test_built_pairs_have_one_right_and_one_wrong_side(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ROW] * 8)
    dpo = DpoSettings.model_validate({"negatives": ALL, "negatives_each": 5})
    found = build_pairs(data.train, data, dpo, VOCABULARY)
    assert found.kinds == {
        "malformed_header": 16, "wrong_channel": 8, "leaked_analysis": 8, "empty_analysis": 16, "wrong_terminator": 16,
    }  # fmt: skip
    tools = (Tool("add", "", {"type": "object", "properties": {}}),)
    for pair in found.pairs:
        assert check(pair.chosen_ids, tools=tools).ok
        if pair.kind != "leaked_analysis":
            assert not check(pair.rejected_ids, tools=tools).ok, VOCABULARY.decode(pair.rejected_ids)
        assert pair.chosen_ids != pair.rejected_ids
        assert VOCABULARY.decode(pair.prompt_ids).endswith("<|start|>assistant")
    again = build_pairs(data.train, data, dpo, VOCABULARY)
    assert again.fingerprint == found.fingerprint
    one = build_pairs(data.train, data, DpoSettings.model_validate({"negatives": ALL}), VOCABULARY)
    assert len(one.pairs) == 16
    assert build_pairs(data.train, data, DpoSettings.model_validate({"negatives": ALL}), VOCABULARY, seed=1) != one


def test_loss_on_the_fault_compares_the_tokens_that_differ(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ROW] * 4)
    kinds = ["content_type", "wrong_channel", "wrong_terminator"]
    dpo = DpoSettings.model_validate({"negatives": kinds, "negatives_each": 3, "loss_on": "fault"})
    told: dict[str, set[tuple[str, str]]] = {}
    for pair in build_pairs(data.train, data, dpo, VOCABULARY).pairs:
        sides = (pair.chosen_ids, pair.chosen_mask), (pair.rejected_ids, pair.rejected_mask)
        told.setdefault(pair.kind, set()).add((compared(*sides[0]), compared(*sides[1])))
    assert told == {
        "content_type": {("<|message|>", " text")},
        "wrong_channel": {("commentary", "analysis")},
        "wrong_terminator": {("<|call|>", "<|return|>"), ("<|return|>", "<|end|>")},
    }


def test_loss_on_the_fault_needs_negatives() -> None:
    with pytest.raises(ValidationError, match="compares built faults"):
        DpoSettings(loss_on="fault")


def test_rows_that_make_no_pair(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ROW])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: row: a conversation, not a pair"):
        build_pairs(data.train, data, DpoSettings(), VOCABULARY)
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    data = data_of(tmp_path, [pair, pair], max_tokens=5)
    with pytest.raises(DataError, match=r"all 2 pairs are longer than data.max_tokens \(5\)"):
        build_pairs(data.train, data, DpoSettings(), VOCABULARY)
    found = build_pairs(data.train, data.model_copy(update={"max_tokens": 500}), DpoSettings(), VOCABULARY)
    assert (len(found.pairs), found.kinds, found.lines()[:1]) == (2, {"given": 2}, ["2 rows, 2 pairs (2 given)"])


LABELLED = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}], "label": True}


def test_rated_completions_of_labels_pairs_and_negatives(tmp_path: Path) -> None:
    pair = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}
    trl = {"prompt": "1 + 1?", "completion": "3", "label": False}
    data = data_of(tmp_path, [LABELLED, trl])
    kto = DpoSettings(losses=("kto",))
    labelled = build_rated(data.train, data, kto, VOCABULARY)
    assert labelled.lines()[:1] == ["2 rows, 2 rated completions (1 wanted, 1 unwanted)"]
    data = data_of(tmp_path, [pair])
    both = build_rated(data.train, data, kto, VOCABULARY)
    assert [rated.parts() for rated in both.pairs] == [rated.parts() for rated in labelled.pairs]
    assert both.fingerprint == labelled.fingerprint
    good, bad = both.pairs
    assert (good.wanted, bad.wanted) == (True, False)
    assert compared(good.ids, good.mask) == "<|channel|>final<|message|>2<|return|>"

    data = data_of(tmp_path, [ROW])
    built = build_rated(
        data.train,
        data,
        DpoSettings.model_validate({"losses": "kto", "negatives": ALL, "negatives_each": 5}),
        VOCABULARY,
    )
    assert built.kinds == {
        "wanted": 2, "malformed_header": 2, "wrong_channel": 1, "leaked_analysis": 1, "empty_analysis": 2,
        "wrong_terminator": 2,
    }  # fmt: skip
    assert [rated.wanted for rated in built.pairs].count(True) == 2


def test_rows_that_cannot_be_rated(tmp_path: Path) -> None:
    data = data_of(tmp_path, [ROW])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: label: missing: write true or false"):
        build_rated(data.train, data, DpoSettings(losses=("kto",)), VOCABULARY)
    data = data_of(tmp_path, [LABELLED])
    with pytest.raises(DataError, match="it has no calls: set"):
        build_rated(data.train, data, DpoSettings(losses=("kto",), loss_on="calls"), VOCABULARY)
    data = data_of(tmp_path, [{**LABELLED, "messages": LABELLED["messages"][:1]}])
    with pytest.raises(DataError, match="does not end in an assistant's answer"):
        build_rated(data.train, data, DpoSettings(losses=("kto",)), VOCABULARY)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"losses": ["kto", "sft"]}, "list it alone"),
        ({"losses": "kto", "label_smoothing": 0.1}, "the noise that `robust` assumes"),
        ({"losses": "kto", "loss_weights": [1.0]}, "belong to pairs"),
        ({"wanted_weight": 2.0}, "belong to `kto`"),
    ],
)
def test_settings_of_rated_completions(settings: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        DpoSettings.model_validate(settings)


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValidationError, match="loss_on: turn"):
        DpoSettings.model_validate({"negatives": "wrong_channel", "loss_on": "final"})
    with pytest.raises(ValidationError, match="`loss_weights` has 1 entries"):
        DpoSettings.model_validate({"loss_weights": [1.0]})
