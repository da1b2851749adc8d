"""One set of counts over rows: what is counted, sums of parts, folders written before, and the words for a person."""

from __future__ import annotations

from collections import Counter

import pytest

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import Conversation, Message, Notice, Preference
from counterpoint.data.counts.counter import Item, RowCounter
from counterpoint.data.counts.lines import first_look_lines, pair_lines, training_lines, validation_lines
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.rows.row import BadRow

ANSWER = (Message("user", "q"), Message("assistant", "a", "final"))
THOUGHT = (ANSWER[0], Message("assistant", "hm", "analysis"), ANSWER[1])
NOTICES = (Notice("nul", "x", "first"), Notice("nul", "y", "second"))
ITEMS: tuple[Item, ...] = (
    Conversation(THOUGHT, source="a.jsonl:1", format="openai"),
    Conversation(ANSWER * 2, source="a.jsonl:2", format="openai", notices=NOTICES),
    BadRow("a.jsonl:3", "not_json", "row", "no", "fix it"),
    Preference(Conversation(ANSWER[:1], source="a.jsonl:4", format="preference"), ANSWER[1:], ANSWER[1:]),
    Conversation(ANSWER[:1], source="a.jsonl:5", format="rl", notices=(*NOTICES, Notice("cut", "z", "last"))),
    BadRow("a.jsonl:6", "truncated", "row", "it ends", "write it again"),
)
RENDERER = Renderer(load_vocabulary())


def counted(*items: Item) -> RowCounter:
    counter = RowCounter()
    for item in items:
        counter.add(item, "medium" if isinstance(item, Conversation) else None)
        if isinstance(item, Conversation):
            counter.add_examples(RENDERER.tree(item)[0])
    return counter


def test_every_row_is_counted_by_what_it_is() -> None:
    counter = counted(*ITEMS)
    assert (counter.rows, counter.n_good, counter.n_bad, counter.examples) == (6, 4, 2, 3)
    assert (counter.turns, counter.without_thinking) == (3, 2)
    assert counter.kinds == Counter(conversation=2, preference=1, prompt=1)
    assert counter.formats == Counter(openai=2, preference=1, rl=1)
    assert counter.efforts == Counter(medium=3)
    assert counter.notices == Counter(nul=2, cut=1)
    assert counter.first_notices == {"nul": "a.jsonl:2: x: first", "cut": "a.jsonl:5: z: last"}
    assert counter.bad == Counter(not_json=1, truncated=1)
    assert counter.bad_messages == ["a.jsonl:3: row: no: fix it", "a.jsonl:6: row: it ends: write it again"]
    examples = [example for item in ITEMS if isinstance(item, Conversation) for example in RENDERER.examples(item)]
    assert counter.tokens == sum(len(example.ids) for example in examples)
    assert counter.trained.total() == sum(int((example.weights > 0).sum()) for example in examples)


def test_sums_do_not_depend_on_the_parts() -> None:
    whole, many = counted(*ITEMS * 15), RowCounter()
    for start in range(0, 90, 7):
        many.merge(counted(*(ITEMS * 15)[start : start + 7]))
    assert many == whole
    assert len(whole.bad_messages) == 20
    assert RowCounter.from_dict(whole.as_dict()) == whole


def test_counts_that_an_older_version_wrote_are_read() -> None:
    older = {
        "rows": 3,
        "conversations": 2,
        "prompts": 1,
        "examples": 2,
        "turns": 2,
        "without_thinking": 1,
        "too_long": 0,
        "tokens": 90,
        "row_tokens": 80,
        "trained": {"analysis": 4, "final": 5},
        "notices": {"nul": 1},
        "bad": {"not_json": 1},
        "bad_messages": ["a.jsonl:3: row: no: fix it"],
        "efforts": {"medium": 2},
        "formats": {"openai": 2},
    }
    assert RowCounter.from_dict(older).as_dict() == {
        **older,
        "kinds": {},
        "first_notices": {},
        "unused": {},
        "unused_samples": {},
        "actions": 0,
        "bad_targets": {},
        "first_bad_targets": {},
    }


def test_too_many_bad_rows_are_an_error_with_the_first() -> None:
    counter = counted(*ITEMS)
    counter.check_bad_rows(2 / 6, "a.jsonl")
    with pytest.raises(DataError, match=r"^a.jsonl: 2 of 6 rows are bad, .*\(30%\) allows: a.jsonl:3: row: no: fix"):
        counter.check_bad_rows(0.3, "a.jsonl")


def test_the_words_of_each_command() -> None:
    counter = counted(*ITEMS)
    assert first_look_lines(counter, complete=False) == [
        "format openai (2), preference (1), rl (1) · first 6 rows, more follow: "
        "2 conversations, 1 preference, 1 prompt, 3 assistant turns, 2 bad",
        "notices: nul 2, cut 1",
        "bad rows: not_json 1, truncated 1",
    ]
    assert first_look_lines(RowCounter(), complete=True) == ["no rows"]
    assert list(validation_lines(counter, 1.25)) == [
        "6 rows: 4 good, 2 bad (1.2 s)",
        "kind: 2 conversations, 1 preferences, 1 prompts",
        "format: openai 2, preference 1, rl 1",
        "notice: nul: 2 rows (first: a.jsonl:2: x: first)",
        "notice: cut: 1 rows (first: a.jsonl:5: z: last)",
        "bad: not_json: 1 rows",
        "bad: truncated: 1 rows",
    ]
    first, *others = training_lines(counter)
    assert first == "6 rows: 4 conversations, 3 training examples"
    assert others[-3:] == [
        "notice: nul: 2 rows",
        "notice: cut: 1 rows",
        "warning: 2 of 6 rows were quarantined (not_json 1, truncated 1)",
    ]
    counter.prompts, counter.too_long = 1, 2
    assert pair_lines(counter, Counter(given=2), "pair") == [
        "6 rows, 2 pairs (2 given)",
        "1 rows make no pair",
        "2 pairs are longer than data.max_tokens and left out",
        "2 bad rows quarantined, the first: a.jsonl:3: row: no: fix it",
    ]
