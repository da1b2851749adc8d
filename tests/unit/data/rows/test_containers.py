"""Rows come out of every container, one at a time; a fault costs its own row and no other."""

import gzip
import json
import re
import tracemalloc

import pyarrow as pa
import pytest
from pyarrow import parquet

from counterpoint.configs.data_section import SourceSettings
from counterpoint.configs.errors import DataError
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.rows.containers import list_files, read_rows
from counterpoint.data.rows.row import BadRow, RawRow

ROW = {"messages": [{"role": "user", "content": 'Hi: "{[,]}"'}, {"role": "assistant", "content": "Hello\\"}]}
LINE = json.dumps(ROW)


_BROKEN = [(":4", "not_json"), (":4[2]", "not_json")]


def rows(path):
    return list(read_rows(path))


def outline(path):
    """(source after the file's name, kind of fault or None) of every row."""
    size = len(str(path))
    return [
        (r.source[size:] if r.source.startswith(str(path)) else r.source, getattr(r, "kind", None)) for r in rows(path)
    ]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_jsonl_rows_have_their_line_and_bytes(tmp_path):
    file = write(tmp_path / "a.jsonl", f"{LINE}\n\n{LINE}\r\n{LINE[:-5]}\n{LINE}")
    found = rows(file)
    assert [r.source for r in found] == [f"{file}:{n}" for n in (1, 3, 4, 5)]
    assert [n.kind for n in found[1].notices] == ["crlf", "blank_line"]
    assert isinstance(found[2], BadRow)
    assert (found[2].kind, found[2].raw) == ("truncated", LINE[:-5].encode())
    assert found[3].value == ROW
    assert found[3].raw == LINE.encode()


def test_every_fault_of_a_line_costs_only_that_line(tmp_path):
    faults = {
        b'{"messages": [': "truncated",
        b'{"a": "\xff"}': "bad_utf8",
        b'\xef\xbb\xbf{"a": 1}': "bom",
        b'{"a": "\x00"}': "nul",
        b'{"a": NaN}': "not_a_number",
        b'{"a": 1, "a": 2}': "duplicate_key",
        b'{"a": "\\ud800"}': "lone_surrogate",
        b"hello": "not_json",
    }
    file = write(
        tmp_path / "a.jsonl", LINE.encode() + b"\n" + b"".join(f + b"\n" + LINE.encode() + b"\n" for f in faults)
    )
    found = rows(file)
    assert [r.kind for r in found if isinstance(r, BadRow)] == list(faults.values())
    assert [r.raw for r in found if isinstance(r, BadRow)] == list(faults)
    assert sum(isinstance(r, RawRow) for r in found) == len(faults) + 1


def test_a_byte_order_mark_at_the_start_is_told_and_read_over(tmp_path):
    for name in ("a.jsonl", "b.json"):
        (row,) = rows(write(tmp_path / name, b"\xef\xbb\xbf" + LINE.encode()))
        assert row.value == ROW
        assert [n.kind for n in row.notices] == ["bom"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.csv", "a.jsonl.gz"])
def test_an_empty_file_is_a_bad_row(tmp_path, name):
    raw = gzip.compress(b"") if name.endswith("gz") else b""
    assert outline(write(tmp_path / name, raw)) == [(":1", "empty_file")]


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        (f"[{LINE}, {LINE}]", [":1", ":1[2]"]),
        (f"[\n{LINE},\n{LINE}\n]\n", [":2", ":3"]),
        (json.dumps([ROW, ROW], indent=2), [":2", ":14"]),
        (LINE, [":1"]),
        (json.dumps(ROW, indent=1), [":1"]),
        (f"{LINE}\n{LINE}\n", [":1", ":2"]),
        (f"{json.dumps(ROW, indent=1)}\n{json.dumps(ROW, indent=1)}", [":1", ":13"]),
    ],
)
def test_json_documents(tmp_path, text, sources):
    found = rows(write(tmp_path / "a.json", text))
    assert [r.value for r in found] == [ROW] * len(sources)
    assert [r.source.removeprefix(str(tmp_path / "a.json")) for r in found] == sources


def test_a_list_of_messages_is_one_row(tmp_path):
    for text in (json.dumps(ROW["messages"]), json.dumps(ROW["messages"], indent=1)):
        (row,) = rows(write(tmp_path / "a.json", text))
        assert row.value == ROW["messages"]
        (conversation,) = read_conversations([str(tmp_path / "a.json")])
        assert [m.content for m in conversation.messages] == ['Hi: "{[,]}"', "Hello\\"]


def test_a_bad_element_of_an_array_costs_only_itself(tmp_path):
    file = write(tmp_path / "a.json", f'[\n{LINE},\n{{"a": NaN}},\n{{"b": [}}]}},\nnull,\n{LINE}\n]')
    assert outline(file) == [(":2", None), (":3", "not_a_number"), *_BROKEN, (":5", None), (":6", None)]


def test_an_array_that_ends_early(tmp_path):
    assert outline(write(tmp_path / "a.json", f"[\n{LINE},\n{LINE[:-9]}")) == [
        (":2", None),
        (":3", "truncated"),
        (":1", "truncated"),
    ]
    assert outline(write(tmp_path / "b.json", f"[{LINE}] {LINE}")) == [(":1", None), (":1[2]", "not_json")]


def test_elements_longer_than_the_buffer_and_cut_anywhere(tmp_path):
    long = json.dumps({"messages": [{"role": "user", "content": 'x\\"{' * 700_000}]})
    found = rows(write(tmp_path / "a.json", f"[{LINE},{long},{LINE}]"))
    assert [len(r.raw) for r in found] == [len(LINE), len(long), len(LINE)]
    assert found[1].value["messages"][0]["content"] == 'x\\"{' * 700_000


def test_gzip(tmp_path):
    assert rows(write(tmp_path / "a.jsonl.gz", gzip.compress(LINE.encode())))[0].value == ROW
    damaged = gzip.compress((LINE + "\n").encode() * 5)[:-20]
    assert outline(write(tmp_path / "b.jsonl.gz", damaged))[-1] == (":1", "damaged_gzip")


def test_parquet_nulls_are_absent_and_told_where_they_may_mean_something(tmp_path):
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    value = [
        {"role": "user", "content": "Hi", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    parquet.write_table(pa.Table.from_pylist([{"messages": value, "n": 1}] * 3), tmp_path / "a.parquet")
    found = rows(tmp_path / "a.parquet")
    assert [r.source for r in found] == [f"{tmp_path / 'a.parquet'}:{n}" for n in (1, 2, 3)]
    assert found[0].value["messages"][0] == {"role": "user", "content": "Hi"}
    assert found[0].value["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert [n.kind for n in found[0].notices] == ["null_arguments"]
    assert json.loads(found[0].raw)["messages"] == value


def test_a_file_that_is_no_parquet(tmp_path):
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file .*: write it again"):
        rows(write(tmp_path / "a.parquet", b"PAR1 no"))


def test_csv(tmp_path):
    text = 'instruction,input,output\r\nAdd,"1, 2\r\nand 3",6\r\nbad,row\r\nSay,,Hi\r\n'
    found = rows(write(tmp_path / "a.csv", text))
    assert [r.source.rpartition(":")[2] for r in found] == ["2", "4", "5"]
    assert found[0].value == {"instruction": "Add", "input": "1, 2\r\nand 3", "output": "6"}
    assert (found[1].kind, found[1].raw) == ("csv_columns", b"bad,row")
    assert found[2].value == {"instruction": "Say", "output": "Hi"}
    assert outline(write(tmp_path / "b.csv", b"a,b\nx,\xff\n")) == [(":2", "bad_utf8")]
    assert rows(write(tmp_path / "c.tsv", "a\tb\n1\t2\n"))[0].value == {"a": "1", "b": "2"}


def test_messages_as_json_text_in_a_table(tmp_path):
    cell = json.dumps(ROW["messages"]).replace('"', '""')
    file = write(tmp_path / "a.csv", f'id,messages\n7,"{cell}"\n8,[not json\n')
    good, bad = read_conversations([str(file)])
    assert [m.content for m in good.messages] == ['Hi: "{[,]}"', "Hello\\"]
    assert [n.kind for n in good.notices] == ["json_in_string", "unused_field", "missing_thinking"]
    assert bad.kind == "unknown_format"


def test_a_data_set_by_name(tmp_path):
    write(tmp_path / "train.jsonl", f"{LINE}\n{LINE}\n")
    found = rows(f"hf:{tmp_path}:train")
    assert [r.source for r in found] == [f"hf:{tmp_path}:train:{n}" for n in (1, 2)]
    assert found[0].value == ROW
    with pytest.raises(DataError, match=r"cannot be loaded \(.*\): check name, split and network"):
        rows(f"hf:{tmp_path}:nothing")


def test_a_folder_is_read_in_order_and_says_what_it_passes_over(tmp_path):
    write(tmp_path / "b.jsonl", LINE)
    write(tmp_path / "a.json", f"[{LINE}]")
    write(tmp_path / "LICENSE", "MIT")
    (tmp_path / ".hidden").mkdir()
    write(tmp_path / ".hidden" / "c.jsonl", LINE)
    assert [r.source for r in rows(tmp_path)] == [f"{tmp_path / 'a.json'}:1", f"{tmp_path / 'b.jsonl'}:1"]
    assert [f.name for f in list_files(tmp_path)[1]] == ["LICENSE"]


def test_server_logs_of_prompt_and_response_are_one_row(tmp_path):
    write(tmp_path / "0_prompt_text.txt", "<|start|>user<|message|>Hi<|end|><|start|>assistant\n")
    write(tmp_path / "0_response_text.txt", "<|channel|>final<|message|>Hello.")
    write(tmp_path / "0_finish_reason.txt", "stop")
    (row,) = rows(tmp_path)
    assert row.value["finish_reason"] == "stop"
    (conversation,) = read_conversations([str(tmp_path)])
    assert conversation.messages[-1].content == "Hello."


def test_a_data_set_folder_and_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([ROW, ROW])
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    assert [r.source for r in rows(tmp_path / "one")] == [f"{tmp_path / 'one'}:1", f"{tmp_path / 'one'}:2"]
    assert rows(f"{tmp_path / 'two'}:test")[0].value == ROW
    with pytest.raises(DataError, match="holds the splits train, test"):
        rows(tmp_path / "two")


def test_what_does_not_exist_is_told(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file or folder"):
        rows(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="example:nothing: no such example"):
        rows("example:nothing")
    with pytest.raises(DataError, match="holds no data file"):
        rows(tmp_path)


def test_weights_of_sources_are_exact(tmp_path):
    file = write(tmp_path / "a.jsonl", "".join(LINE.replace("Hi", f"Hi {n}") + "\n" for n in range(10)))

    def taken(weight):
        return [
            int(c.source.rpartition(":")[2])
            for c in read_conversations([SourceSettings(path=str(file), weight=weight)])
        ]

    assert taken(1.0) == list(range(1, 11))
    assert taken(0.5) == [2, 4, 6, 8, 10]
    assert taken(2.0) == [n for n in range(1, 11) for _ in (0, 1)]
    assert len(taken(0.3)) == 3
    assert len(taken(1.7)) == 17


@pytest.mark.slow
def test_memory_stays_flat_however_long_the_file_is(tmp_path):
    big = json.dumps({"messages": [{"role": "user", "content": "word " * 400}, {"role": "assistant", "content": "ok"}]})
    peaks = []
    for n in (2_000, 20_000):
        peaks.append([])
        for name, text in (("a.jsonl", f"{big}\n" * n), ("a.json", "[" + ",\n".join([big] * n) + "]")):
            file = write(tmp_path / name, text)
            tracemalloc.start()
            assert sum(1 for _ in read_conversations([str(file)])) == n
            peaks[-1].append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert all(late < early + 2_000_000 for early, late in zip(*peaks, strict=True)), peaks


def test_a_csv_file_of_another_country_is_read_and_utf_16_is_told_where_both_had_to_close_quotes(tmp_path):
    first, second = rows(write(tmp_path / "a.csv", b'ask;reply\n"a, b";c\nd;e\n'))
    assert (first.value, second.value) == ({"ask": "a, b", "reply": "c"}, {"ask": "d", "reply": "e"})
    assert [n.kind for n in first.notices] == ["csv_delimiter"]
    assert outline(write(tmp_path / "b.csv", "ask,reply\na,b\n".encode("utf-16"))) == [(":1", "bad_utf8")]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (gzip.compress(b"{}\n", mtime=0), "is packed with gzip: name it a.jsonl.gz"),
        (b"PK\x03\x04rest", "is an Excel file or a zip archive: save the table as CSV"),
        (b"PAR1rest", "is a Parquet file: name it a.jsonl.parquet"),
        (b"\x28\xb5\x2f\xfdrest", "is packed with zstd: unpack it, or pack it with gzip"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_told_by_what_it_is(tmp_path, data, told):
    with pytest.raises(DataError, match=re.escape(told)):
        rows(write(tmp_path / "a.jsonl", data))
