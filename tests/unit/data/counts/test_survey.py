from __future__ import annotations

from collections.abc import Iterator

from counterpoint.data.conversation import Conversation, Message, Notice, Preference
from counterpoint.data.counts.survey import EVERY_ROW, Item, RowRange, Survey, chosen, first_look, row_number
from counterpoint.data.rows.row import BadRow

ANSWER = (Message("user", "q"), Message("assistant", "a", "final"))


def row(number: int) -> Conversation:
    return Conversation(ANSWER, source=f"a.jsonl:{number}", format="openai")


BAD = BadRow("a.jsonl:3", "not_json", "row", "no", "mend it")
PAIR = Preference(Conversation(ANSWER[:1], source="a.jsonl:4", format="preference"), ANSWER[1:], ANSWER[1:])


def test_counts() -> None:
    survey = Survey()
    notices = (Notice("nul", "x", ""), Notice("nul", "y", ""))
    for item in (
        row(1),
        Conversation(ANSWER * 2, source="a.jsonl:2", format="openai", notices=notices),
        BAD,
        PAIR,
        Conversation(ANSWER[:1], source="a.jsonl:5", format="rl"),
    ):
        survey.add(item)
    assert survey.lines() == [
        "format openai (2), preference (1), rl (1) · first 5 rows, more follow: "
        "2 conversations, 1 preference, 1 prompt, 3 assistant turns, 1 bad",
        "notices: nul 1",
        "bad rows: not_json 1",
    ]
    assert Survey().lines() == ["no rows"]


def test_a_first_look_reads_so_many_rows_and_the_rest_goes_on() -> None:
    items: Iterator[Item] = iter([row(n) for n in range(1, 11)])
    survey, kept = first_look(items, RowRange(3, 6), rows=4, seconds=60)
    assert (survey.rows, survey.complete) == (4, False)
    assert [row_number(item) for item in kept] == [3, 4]
    assert [row_number(item) for item in chosen(kept, items, RowRange(3, 6), one_file=True)] == [3, 4, 5, 6]
    assert next(items) == row(8)


def test_a_first_look_at_everything() -> None:
    survey, kept = first_look(iter([row(1), BAD]))
    assert survey.complete
    assert len(kept) == 2
    assert survey.lines()[0] == "format openai · all 2 rows: 1 conversation, 1 assistant turn, 1 bad"
    assert first_look(iter([]))[0].lines() == ["no rows"]


def test_a_first_look_ends_when_its_time_is_over() -> None:
    survey, _ = first_look(iter([row(n) for n in range(9)]), seconds=-1)
    assert survey.rows == 1


def test_rows_of_several_files_are_all_looked_at() -> None:
    items = [row(1), row(9), row(2), PAIR]
    assert [row_number(item) for item in chosen([], items, RowRange(1, 4), one_file=False)] == [1, 2, 4]
    assert [row_number(item) for item in chosen([], items, RowRange(1, 4), one_file=True)] == [1]
    assert Conversation(ANSWER, source="no number") in RowRange(4, 5)
    assert row(10**9) in EVERY_ROW
