"""Statistics over rows: sums do not depend on the chunks, memory is bounded, duplicates are found."""

from __future__ import annotations

import pytest

from counterpoint.data.conversation import Conversation, Message, Tool
from counterpoint.data.counts import row_statistics as module
from counterpoint.data.counts.row_statistics import OTHERS, RowStatistics, sampled
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary

RENDERER = Renderer(load_vocabulary())


def conversation(n: int) -> Conversation:
    call = Message("assistant", "{}", "commentary", f"functions.f{n % 3}")
    messages = (Message("user", f"question {n}"), call, Message("tool", "r", "commentary", name=f"functions.f{n % 3}"))
    return Conversation((*messages, Message("assistant", "a " * n, "final")), tools=(Tool("f0"), Tool("g")))


def statistics(numbers: range) -> RowStatistics:
    out = RowStatistics()
    for n in numbers:
        item = conversation(n)
        out.add(item, RENDERER.tree(item)[0], RENDERER.vocabulary, n)
    return out


def test_sums_do_not_depend_on_the_chunks() -> None:
    whole, parts = statistics(range(60)), RowStatistics()
    for start in range(0, 60, 7):
        parts.merge(statistics(range(start, min(start + 7, 60))))
    assert parts.as_dict() == whole.as_dict()


def test_what_is_counted() -> None:
    counted = statistics(range(30)).as_dict()
    assert counted["tools_called"] == {"functions.f0": 10, "functions.f1": 10, "functions.f2": 10}
    assert counted["tools_declared"] == {"functions.f0": 30, "functions.g": 30}
    assert counted["turns"] == {"1": 30}
    lengths = [len(example.ids) for n in range(30) for example in RENDERER.examples(conversation(n))]
    assert counted["lengths"]["max"] == max(lengths)
    assert counted["lengths"]["median"] == sorted(lengths)[14]
    assert sum(counted["tokens"].values()) == sum(lengths)
    for part in counted["lengths"]["histogram"]:
        assert part["examples"] == sum(part["from"] <= n <= part["to"] for n in lengths)


def test_repeated_rows_are_counted_once_each() -> None:
    out = statistics(range(5))
    out.merge(statistics(range(3)))
    assert out.duplicates == 3


def test_hashes_and_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_HASHES", 50)
    monkeypatch.setattr(module, "_MAX_NAMES", 2)
    out = RowStatistics()
    for _ in range(2):
        for start in range(0, 200, 10):
            out.merge(statistics(range(start, start + 10)))
    assert len(out._hashes) <= 50
    assert 50 <= out.duplicates <= 400  # 200, from a sample of 1 in 16: 12 of them, plus or minus 4
    assert out.as_dict()["duplicates_estimated"]
    assert set(out.called) == {"functions.f0", "functions.f1", OTHERS}


def test_sample_is_all_first_rows_and_some_of_the_rest() -> None:
    assert sum(map(sampled, range(1_000))) == 1_000
    assert sum(map(sampled, range(1_000, 17_000))) == 1_000
