"""Tree rows say exactly what the separate examples say."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import conversations

from counterpoint.data.conversation import Conversation
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import Example
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.layout.collate import Collator, padding
from counterpoint.data.layout.pack import pack
from counterpoint.data.layout.tree import TreeRow, forest_of, parts_of, row_of, size_of, tree_of

RENDERER = Renderer(load_vocabulary())


def path_to(row: TreeRow, index: int) -> np.ndarray:
    """Indices that token `index` attends to: the plain reading of the rule."""
    return np.array([j for j in range(index + 1) if index < row.subtree_end[j]])


def example_of(prefix: list[int], target: list[int], source: str = "s") -> Example:
    ids = np.array(prefix + target, dtype=np.int32)
    trained = np.arange(len(ids)) >= len(prefix)
    return Example(source, 0, ids, trained.astype(np.float32), trained.astype(np.uint8))


def assert_same(row: TreeRow, examples: list[Example]) -> None:
    """Every target of every example is there once, behind exactly the tokens that precede it."""
    expected = sorted(
        (e.ids[:i].tolist(), int(e.ids[i]), float(e.weights[i]), int(e.channels[i]))
        for e in examples
        for i in np.flatnonzero(e.weights > 0)
    )
    found = []
    for source, id_, weight, channel in zip(
        row.target_source, row.target_id, row.target_weight, row.target_channel, strict=True
    ):
        seen = path_to(row, source)
        assert row.position[seen].tolist() == list(range(len(seen)))
        found.append((row.ids[seen].tolist(), int(id_), float(weight), int(channel)))
    assert sorted(found) == expected


short_ids = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(st.builds(example_of, short_ids, short_ids), min_size=1, max_size=6))
def test_any_examples(examples: list[Example]) -> None:
    row = tree_of(examples)
    assert_same(row, examples)
    prefixes = {tuple(e.ids[: n + 1].tolist()) for e in examples for n in range(len(e.ids))}
    assert len(row) == len(prefixes)  # no prefix stands twice
    assert row.n_unshared == sum(len(e.ids) for e in examples)
    assert size_of(ExampleTree.of(examples)) == len(row)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(max_turns=4))
def test_conversations(conversation: Conversation) -> None:
    examples = RENDERER.examples(conversation)
    if examples:
        assert_same(tree_of(examples), examples)


@given(st.lists(st.lists(st.builds(example_of, short_ids, short_ids), min_size=1, max_size=3), min_size=1, max_size=8))
def test_packing_keeps_every_example_and_the_budget(groups: list[list[Example]]) -> None:
    trees = [tree_of(group) for group in groups]
    rows = [forest_of([trees[n] for n in members]) for members in pack(map(len, trees), budget=20)]
    assert sum(len(row) for row in rows) == sum(len(tree) for tree in trees)
    for row in rows:
        assert len(row) <= max(20, *(len(t) for t in trees))
    assert sorted(s for row in rows for s in row.sources) == sorted(s for t in trees for s in t.sources)


@given(st.lists(st.lists(st.builds(example_of, short_ids, short_ids), min_size=1, max_size=3), min_size=1, max_size=4))
def test_a_forest_is_its_trees(groups: list[list[Example]]) -> None:
    assert_same(forest_of([tree_of(group) for group in groups]), [e for group in groups for e in group])


@given(st.lists(st.builds(example_of, short_ids, short_ids), min_size=1, max_size=6), st.integers(4, 30))
def test_trees_within_a_budget(examples: list[Example], budget: int) -> None:
    tree, everything = ExampleTree.of(examples), np.arange(len(examples), dtype=np.int32)
    rows = [row_of(tree, everything[first:last]) for first, last in parts_of(tree, everything, budget)]
    assert_same(forest_of(rows), examples)
    assert all(len(row) <= budget or len(row.sources) == 1 for row in rows)


@given(st.lists(st.builds(example_of, short_ids, short_ids), min_size=1, max_size=6), st.data())
def test_a_part_of_a_tree_is_the_tree_of_its_examples(examples: list[Example], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(examples) - 1), min_size=1, unique=True).map(sorted))
    part = row_of(ExampleTree.of(examples), np.array(chosen, dtype=np.int32))
    alone = tree_of([examples[n] for n in chosen])
    for name in TreeRow.__slots__:
        values = getattr(part, name), getattr(alone, name)
        assert np.array_equal(*values) if isinstance(values[0], np.ndarray) else values[0] == values[1]


def test_one_source_can_have_two_targets() -> None:
    row = tree_of([example_of([1, 2], [3]), example_of([1, 2], [4])])
    assert row.target_source.tolist() == [1, 1]
    assert row.target_id.tolist() == [3, 4]
    assert row.ids.tolist() == [1, 2, 3, 4]
    assert row.position.tolist() == [0, 1, 2, 2]
    assert row.subtree_end.tolist() == [4, 4, 3, 4]


def test_collator_pads_and_maps() -> None:
    long, short = tree_of([example_of([1, 2], [3, 4])]), tree_of([example_of([5], [6], "t")])
    batch = Collator(rows_of_ids=lambda ids: ids + 100, pad_row=7)([long, short])
    assert batch["input_ids"].tolist() == [[101, 102, 103, 104], [105, 106, 7, 7]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 0, 1]]
    assert batch["subtree_end"].tolist() == [[4, 4, 4, 4], [2, 2, 4, 4]]
    assert batch["target_index"].tolist() == [1, 2, 4]
    assert batch["target_ids"].tolist() == [103, 104, 106]
    assert batch["row_sources"] == ["s#0", "t#0"]


def test_padding_is_trees_of_128_tokens() -> None:
    """One sequence a token would take a flash kernel's scratch memory 128 times, one in all the time of a whole row."""
    position, end = padding(10, 300)
    assert position.tolist() == [*range(128), *range(128), *range(34)]
    assert end.tolist() == [138] * 128 + [266] * 128 + [300] * 34
    assert [len(part) for part in padding(7, 7)] == [0, 0]
