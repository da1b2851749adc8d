"""Log lines become sessions, whether their bytes are read beforehand or not."""

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.configs.data_section import SourceSettings
from counterpoint.data.formats.claude_code import KEY, by_session, is_log_line
from counterpoint.data.formats.read import weighted_rows
from counterpoint.data.rows.row import RawRow, UnreadRow, read

MESSAGE = {"role": "user", "content": "hi"}
PLAIN = json.dumps({"messages": [MESSAGE, {"role": "assistant", "content": "ho"}]})


def event(session: str | None = "s1", key: str = "sessionId") -> str:
    return json.dumps({"type": "user", key: session, "message": MESSAGE})


LINES = st.sampled_from(
    [
        event("s1"),
        event("s2"),
        event(None),
        event("u1", "uuid"),
        event("s1").replace("sessionId", "\\u0073essionId"),
        event("s1").replace("sessionId", "session\\u0049d"),
        '{"type": "summary", "summary": "x", "leafUuid": "1"}',
        '{"type": "summary", "summary": "x", "\\u006CeafUuid": "1"}',
        event("s1")[:-4],
        event("s1").replace('"hi"', '"hi", "content": "twice"'),
        PLAIN,
        PLAIN.replace("hi", 'the field \\"sessionId\\" of a row'),
        json.dumps({"uuid": "1", "question": "q", "answer": "a"}),
        json.dumps({"type": "user", "message": MESSAGE}),
        "[1]",
        "",
    ]
)


@given(st.lists(LINES, max_size=12))
def test_unread_lines_give_the_rows_that_read_lines_give(lines: list[str]) -> None:
    unread = [UnreadRow(f"a:{n}", line.encode()) for n, line in enumerate(lines, 1)]
    expected = list(by_session(read(row) for row in unread))
    assert [read(row) for row in by_session(unread)] == expected


def test_events_of_one_session_are_one_row_and_a_plain_row_ends_it() -> None:
    lines = [event(), event(None), event("s2"), PLAIN, event("s2")]
    rows = list(by_session(UnreadRow(f"a:{n}", line.encode()) for n, line in enumerate(lines, 1)))
    assert [row.source for row in rows] == ["a:1", "a:3", "a:4", "a:5"]
    first = rows[0]
    assert isinstance(first, RawRow)
    assert first.value == {KEY: [json.loads(lines[0]), json.loads(lines[1])]}
    assert first.raw == f"{lines[0]}\n{lines[1]}".encode()


@pytest.mark.parametrize("text", [f"{PLAIN}\n{PLAIN}\n{{\n", f"[{PLAIN}, {PLAIN}, NaN]"])
def test_rows_travel_as_bytes_and_are_read_where_they_arrive(tmp_path, text) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    sent = [row for row, _, _ in weighted_rows([SourceSettings(path=str(file))])]
    assert [type(row) for row in sent] == [UnreadRow] * 3
    arrived = [read(row) for row in pickle.loads(pickle.dumps(sent))]
    assert arrived == [read(row) for row in sent]
    assert [getattr(row, "kind", None) for row in arrived] == [None, None, arrived[2].kind]
    assert not any(is_log_line(row.value) for row in arrived[:2])
