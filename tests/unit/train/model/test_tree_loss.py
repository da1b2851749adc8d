"""Loss and gradients of tree rows equal those of the separate examples, one sequence a turn, on the tiny model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import pytest
import torch

from counterpoint.configs.data_section import ChannelWeights, RenderSettings
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Tool
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import Example
from counterpoint.data.layout.collate import Collator
from counterpoint.data.layout.pack import pack
from counterpoint.data.layout.tree import TreeRow, forest_of, tree_of
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.model.attention import use_attention
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.masks import tree_masks
from counterpoint.train.model.tiny import random_tiny

LOOK_UP = Tool("look_up", "Looks up.", {"type": "object", "properties": {"key": {"type": "string"}}})
WEIGHTS = ChannelWeights(analysis=0.5, preamble=0.25, call_header=2.0, terminators=1.5)
LOSS, GRADIENT = 1e-5, 1e-4

TOOLS = Conversation(
    (
        Message("user", "How old is Ada, and how old is Bo?"),
        Message("assistant", "Two names, two calls.", "analysis"),
        Message("assistant", "I look both up.", "commentary"),
        Message("assistant", '{"key": "Ada"}', "commentary", "functions.look_up", content_type=CONSTRAIN_JSON),
        Message("tool", "36", "commentary", name="functions.look_up"),
        Message("assistant", '{"key": "Bo"}', "commentary", "functions.look_up", content_type=CONSTRAIN_JSON),
        Message("tool", "41", "commentary", name="functions.look_up"),
        Message("assistant", "Ada is 36 and Bo is 41.", "final"),
        Message("user", "And together?"),
        Message("assistant", "print(36 + 41)", "analysis", "python", content_type="code"),
        Message("tool", "77", "analysis", name="python"),
        Message("assistant", "77", "final"),
        Message("user", "Thanks."),
        Message("assistant", "A thank you needs no thought.", "analysis", weight=0.0),
        Message("assistant", "You are welcome.", "final"),
    ),
    instructions="Be brief.",
    tools=(LOOK_UP,),
    builtin_tools=("python",),
    source="tools.jsonl:1",
)


def talk(turns: int, source: str) -> Conversation:
    messages: list[Message] = []
    for n in range(turns):
        messages.append(Message("user", f"{source}, question {n}?"))
        if n % 2 == 0:
            messages.append(Message("assistant", f"Let me think about {n}. " * (n + 1), "analysis"))
        messages.append(Message("assistant", f"Answer {n}.", "final"))
    return Conversation(tuple(messages), source=source)


CONVERSATIONS = (TOOLS, talk(5, "talk.jsonl:1"), talk(1, "talk.jsonl:2"), talk(3, "talk.jsonl:3"))


@cache
def loaded() -> LoadedModel:
    return random_tiny(seed=3)


def examples_of(conversations: Iterable[Conversation]) -> list[list[Example]]:
    renderer = Renderer(loaded().vocabulary, RenderSettings(weights=WEIGHTS))
    return [renderer.examples(conversation) for conversation in conversations]


Result = tuple[float, dict[str, torch.Tensor]]


def result_of(losses: Iterable[torch.Tensor]) -> Result:
    """Sum of the losses, and the gradients of that sum."""
    model = loaded().model
    model.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


def separately(examples: Sequence[Example]) -> Result:
    """One example at a time as transformers runs it without any of our masks: all logits, plain autograd."""
    model, rows = loaded().model, loaded().vocabulary_map
    use_attention(model, lean=False)

    def loss_of(example: Example) -> torch.Tensor:
        ids = torch.from_numpy(rows.rows(example.ids))
        logp = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        nll = -logp.gather(1, ids[1:, None])[:, 0]
        return (nll * torch.from_numpy(example.weights[1:])).sum()

    return result_of(map(loss_of, examples))


def as_trees(rows: Sequence[TreeRow], lean: bool) -> Result:
    """All rows in one batch. lean: the fast attention and loss; else transformers' eager attention with the
    dictionary of masks and all logits."""
    loaded_model = loaded()
    model = loaded_model.model
    use_attention(model, lean)
    batch = Collator(loaded_model.vocabulary_map.rows, loaded_model.pad_row)(rows)
    position, end = batch["position_ids"], batch["subtree_end"]
    if not lean:
        masks = tree_masks(position, end, model.config.sliding_window, torch.float32)
        out = model(batch["input_ids"], position_ids=position, attention_mask=masks, use_cache=False)
        logp = out.logits.flatten(0, 1).log_softmax(-1)[batch["target_index"]]
        nll = -logp.gather(1, batch["target_ids"][:, None])[:, 0]
        return result_of([(nll * batch["target_weights"]).sum()])
    more: dict[str, Any] = attention_inputs(model, position, end)
    out = model(batch["input_ids"], position_ids=position, output_hidden_states=True, use_cache=False, **more)
    hidden = out.hidden_states[-1].flatten(0, 1)[batch["target_index"]]
    head = model.get_output_embeddings().weight
    return result_of([weighted_nll(hidden, head, batch["target_ids"], batch["target_weights"], 1.0)[0]])


def assert_equal(found: Result, expected: Result) -> None:
    assert found[0] == pytest.approx(expected[0], rel=LOSS)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        assert gradient.norm() > 0, name
        assert (found[1][name] - gradient).norm() <= GRADIENT * gradient.norm(), name


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda c: c.source)
def test_a_tree_equals_its_examples(conversation: Conversation, lean: bool) -> None:
    (examples,) = examples_of([conversation])
    tree = tree_of(examples)
    assert len(examples) == 1 or len(tree) < tree.n_unshared == sum(len(e.ids) for e in examples)
    assert_equal(as_trees([tree], lean), separately(examples))


@pytest.mark.parametrize("lean", [False, True])
def test_trees_packed_in_one_row_and_padded_in_a_batch_equal_their_examples(lean: bool) -> None:
    groups = examples_of(CONVERSATIONS)
    trees = [tree_of(group) for group in groups]
    (together,) = pack(map(len, trees), budget=sum(map(len, trees)))
    packed = forest_of([trees[number] for number in together])
    expected = separately([example for group in groups for example in group])
    assert len(packed.sources) == sum(map(len, groups)) == 15
    assert_equal(as_trees([packed], lean), expected)
    assert_equal(as_trees(trees, lean), expected)


@pytest.mark.parametrize("lean", [False, True])
def test_branches_that_saw_each_other_would_be_found(lean: bool) -> None:
    """The tolerance is tight enough: one row that reads on as plain text has another loss."""
    (examples,) = examples_of([CONVERSATIONS[1]])
    tree = tree_of(examples)
    last = tree.subtree_end.max()
    blurred = TreeRow(
        tree.ids, tree.position, tree.subtree_end * 0 + last, tree.target_source, tree.target_id, tree.target_weight,
        tree.target_channel, tree.sources, tree.n_unshared,
    )  # fmt: skip
    expected = separately(examples)
    assert abs(as_trees([blurred], lean)[0] / expected[0] - 1) > 100 * LOSS
