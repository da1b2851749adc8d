"""What `show` reads before it renders, and which rows it then takes."""

from __future__ import annotations

from collections.abc import Iterator

from counterpoint.data.conversation import Conversation, Message, Preference
from counterpoint.data.counts.counter import Item
from counterpoint.data.rows.row import BadRow
from counterpoint.data.show.first_look import EVERY_ROW, RowRange, chosen, first_look, row_number

ANSWER = (Message("user", "q"), Message("assistant", "a", "final"))
BAD = BadRow("a.jsonl:3", "not_json", "row", "no", "fix it")
PAIR = Preference(Conversation(ANSWER[:1], source="a.jsonl:4", format="preference"), ANSWER[1:], ANSWER[1:])


def row(number: int) -> Conversation:
    return Conversation(ANSWER, source=f"a.jsonl:{number}", format="openai")


def test_a_first_look_reads_so_many_rows_and_the_rest_goes_on() -> None:
    items: Iterator[Item] = iter([row(n) for n in range(1, 11)])
    look = first_look(items, RowRange(3, 6), rows=4, seconds=60)
    assert (look.counts.rows, look.complete) == (4, False)
    assert [row_number(item) for item in look.rows] == [3, 4]
    assert [row_number(item) for item in chosen(look.rows, items, RowRange(3, 6), one_file=True)] == [3, 4, 5, 6]
    assert next(items) == row(8)


def test_a_first_look_at_everything() -> None:
    look = first_look(iter([row(1), BAD]))
    assert look.complete
    assert len(look.rows) == 2
    assert look.lines()[0] == "format openai · all 2 rows: 1 conversation, 1 assistant turn, 1 bad"
    assert first_look(iter([])).lines() == ["no rows"]
    assert first_look(iter([BAD])).lines()[0] == "format none · all 1 row: 1 bad"


def test_a_first_look_ends_when_its_time_is_over() -> None:
    assert first_look(iter([row(n) for n in range(9)]), seconds=-1).counts.rows == 1


def test_rows_of_several_files_are_all_looked_at() -> None:
    items = [row(1), row(9), row(2), PAIR]
    assert [row_number(item) for item in chosen([], items, RowRange(1, 4), one_file=False)] == [1, 2, 4]
    assert [row_number(item) for item in chosen([], items, RowRange(1, 4), one_file=True)] == [1]
    assert Conversation(ANSWER, source="no number") in RowRange(4, 5)
    assert row(10**9) in EVERY_ROW
