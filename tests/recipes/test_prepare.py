"""`counterpoint prepare` through the real command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.prepared.source import read_prepared
from counterpoint.recipes.cli import main

COMMAND = [str(Path(sys.executable).with_name("counterpoint")), "prepare"]
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}]
ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one <|end|>"},
            {"role": "assistant", "reasoning_content": "think", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "reasoning_content": "done", "content": "2 日本語"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "ok 🙂", "weight": 0.5},
        ],
        "tools": TOOLS,
    },
    {"messages": [{"role": "user", "content": "<script>alert(1)</script>"}, {"role": "assistant", "content": "no"}]},
]
BAD = '{"messages": [{"role": "user"'


def write(path: Path, rows: list[Any], times: int = 1) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines * times) + "\n", encoding="utf-8")
    return path


class Prepare:
    """The command, run in this process from a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(folder)
        self._capsys = capsys

    def __call__(self, *arguments: str | Path | int, code: int = 0) -> str:
        """What it prints."""
        returned = main(["prepare", *map(str, arguments)])
        out, err = self._capsys.readouterr()
        assert returned == code, out + err
        return out + err


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prepare:
    return Prepare(tmp_path, monkeypatch, capsys)


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_json_lines_hold_what_the_renderer_gives(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [*ROWS, BAD])
    told = prepare("a.jsonl", "--out", "x.jsonl")
    assert "3 rows: 2 conversations, 4 training examples" in told
    assert "1 of 3 rows were quarantined (truncated 1)" in told
    written = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    renderer = Renderer(load_vocabulary(), RenderSettings())
    expected = []
    for item in read_conversations([str(write(tmp_path / "b.jsonl", ROWS))]):
        expected += renderer.examples(item)  # pyright: ignore[reportArgumentType]
    places = [(row["source"], row["turn"], row["action"]) for row in written]
    assert places == [("a.jsonl:1", 0, 0), ("a.jsonl:1", 0, 1), ("a.jsonl:1", 1, 0), ("a.jsonl:2", 0, 0)]
    for row, example in zip(written, expected, strict=True):
        assert list(row) == ["source", "turn", "action", "input_ids", "weights", "channel_of", "warnings"]
        assert row["input_ids"] == example.ids.tolist()
        assert row["weights"] == example.weights.tolist()
        names = [CHANNEL_NAMES[c] if w else None for c, w in zip(example.channels, example.weights, strict=True)]
        assert row["channel_of"] == names
        assert row["warnings"] == [f"{n.kind}: {n.field}: {n.detail}" for n in example.notices]
    assert [row["source"] for row in written[:3]] == ["a.jsonl:1"] * 3
    sizes = [len(row["input_ids"]) for row in written]
    shared = sum(sizes) - len(ExampleTree.of(expected[:3]).ids) - len(ExampleTree.of(expected[3:]).ids)
    rest = f"{shared:,} saved ({shared / sum(sizes):.0%})"
    assert f"{sum(sizes) - shared:,} tokens where the turns of a conversation share one row: {rest}" in told
    assert any("markup" in warning for warning in written[0]["warnings"])
    assert set(written[2]["weights"]) == {0.0, 0.5}


def test_folder_is_opened_by_datasets_and_holds_the_same(tmp_path: Path, prepare: Prepare) -> None:
    import datasets

    write(tmp_path / "a.jsonl", ROWS)
    prepare("a.jsonl", "--out", "x.jsonl")
    prepare("a.jsonl", "--out", "x")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    opened = datasets.load_from_disk(str(tmp_path / "x"))
    assert opened.features["input_ids"] == datasets.List(datasets.Value("int32"))
    rows = opened.to_list()
    assert [row["source"] for row in rows] == ["a.jsonl:1", "a.jsonl:2"]
    assert rows[1]["input_ids"] == lines[3]["input_ids"]
    assert sum(len(row["input_ids"]) for row in rows) < sum(len(line["input_ids"]) for line in lines)
    for example, line in zip(read_prepared(tmp_path / "x"), lines, strict=True):
        assert example.ids.tolist() == line["input_ids"]
        assert example.weights.tolist() == line["weights"]
        assert (example.source, example.turn, example.action) == (line["source"], line["turn"], line["action"])


def test_what_the_turns_of_a_row_share_is_written_once(tmp_path: Path, prepare: Prepare) -> None:
    def written(turns: int) -> int:
        said = [(f"question {n}?", f"answer {n}.") for n in range(turns)]
        messages = [
            {"role": role, "content": text}
            for pair in said
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        write(tmp_path / f"{turns}.jsonl", [{"messages": messages}])
        told = prepare(f"{turns}.jsonl", "--out", f"x{turns}", "--max-tokens", 131_072)
        assert f"{turns:,} training examples" in told
        return sum(file.stat().st_size for file in (tmp_path / f"x{turns}").glob("*.arrow"))

    assert written(1600) < 9 * written(200)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [*ROWS, BAD], times=400)
    for workers in (1, 2):
        prepare("a.jsonl", "--out", f"x{workers}", "--workers", workers, "--quarantine", f"bad{workers}")
    assert files_of(tmp_path / "x1") == files_of(tmp_path / "x2")
    assert (tmp_path / "bad1").read_bytes() == (tmp_path / "bad2").read_bytes()


EVENT = {"type": "user", "sessionId": "s", "message": {"role": "user", "content": "hi"}}
FAULTS = [
    b'{"messages": [',
    b'{"a": "\xff"}',
    b'\xef\xbb\xbf{"a": 1}',
    b'{"a": "\x00"}',
    b'{"a": NaN}',
    b'{"a": 1, "a": 2}',
    b'{"a": "\\ud800"}',
    b"hello",
    b"[" * 1200 + b"]" * 1200,
    b"",
    b'{"messages": []}',
    b'{"messages": [{"role": "user", "content": "hi"}]}',
    b'{"prompt": "a", "chosen": "b", "rejected": "c"}',
    b'{"messages": [{"role": "user", "content": 5}]}',
    json.dumps(EVENT).encode(),
    json.dumps(EVENT | {"type": "assistant", "message": {"role": "assistant", "content": "ho"}}).encode(),
    json.dumps(EVENT).replace("sessionId", "\\u0073essionId").encode() + b"\r",
    json.dumps(ROWS[1]).encode() + b"\r",
]


@pytest.mark.slow
def test_two_workers_do_the_same_with_every_fault(tmp_path: Path, prepare: Prepare) -> None:
    good = json.dumps(ROWS[0]).encode()
    lines = [b"\xef\xbb\xbf" + good, *(line for fault in FAULTS for line in (fault, good))] * 20
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.json").write_bytes(b"[" + b", ".join([good, b'{"a": NaN}', b"[1", good]))
    (tmp_path / "run.yaml").write_text(
        "recipe: sft\ndata:\n  train:\n    - {path: a.jsonl, weight: 1.5, rows: 600}\n    - b.json\n"
    )
    told = {}
    for workers in (1, 2):
        options = ("--workers", workers, "--quarantine", f"bad{workers}")
        told[workers] = prepare("--config", "run.yaml", "--out", f"x{workers}", *options)
    assert files_of(tmp_path / "x1") == files_of(tmp_path / "x2")
    assert (tmp_path / "bad1").read_bytes() == (tmp_path / "bad2").read_bytes()
    kinds = {json.loads(line)["kind"] for line in (tmp_path / "bad1").read_bytes().splitlines()}
    assert kinds >= {"truncated", "bad_utf8", "bom", "nul", "not_a_number", "duplicate_key", "lone_surrogate"}
    assert kinds >= {"not_json", "too_deep", "preference"}
    assert told[1].splitlines()[0] == told[2].splitlines()[0]


def test_prompts_alone_are_told_as_such(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [{"question": "2 + 2?", "answer": "4"}] * 2)
    told = prepare("a.jsonl", "--out", "x", code=1)
    assert "no row gives a training example (2 rows are prompts without an answer, as recipe grpo takes them)" in told


def test_quarantine_holds_bytes_and_reason(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [BAD, *ROWS])
    told = prepare("a.jsonl", "--out", "x.jsonl", "--quarantine", "bad.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert (row["source"], row["kind"], row["raw"]) == ("a.jsonl:1", "truncated", BAD)
    assert "quarantine: 1 rows in bad.jsonl" in told
    prepare("a.jsonl", "--out", "y", "data.bad_rows_limit=0.1", "--quarantine", "z.jsonl", code=1)
    assert not (tmp_path / "y").exists()
    assert (tmp_path / "z.jsonl").read_bytes() == (tmp_path / "bad.jsonl").read_bytes()


def test_quarantine_holds_the_bytes_of_rows_that_fail_only_when_they_are_rendered(
    tmp_path: Path, prepare: Prepare
) -> None:
    pair = '{ "chosen" : "a", "rejected":"b",   "prompt": "caf\\u00e9 é" }'
    bad_tool = {"name": "f", "description": f"a{' ' * 2_000_000}b"}
    unwritable = json.dumps({**ROWS[1], "tools": [{"type": "function", "function": bad_tool}]}, indent=None) + "  "
    write(tmp_path / "a.jsonl", [*ROWS, pair, unwritable])
    for workers in (1, 2):
        prepare("a.jsonl", "--out", f"x{workers}.jsonl", "--workers", workers, "--quarantine", "bad.jsonl")
        rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
        assert [(r["source"], r["kind"]) for r in rows] == [("a.jsonl:3", "preference"), ("a.jsonl:4", "tool_schema")]
        assert [r["raw"] for r in rows] == [pair, unwritable]


@pytest.mark.parametrize("out", ["x", "x.jsonl"])
def test_cache_is_used_when_whole_and_made_again_when_not(tmp_path: Path, prepare: Prepare, out: str) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    prepare("a.jsonl", "--out", out)
    data = next((tmp_path / "x").glob("*.arrow")) if out == "x" else tmp_path / out
    before, written_at = data.read_bytes(), data.stat().st_mtime_ns
    assert "unchanged: same data, same settings" in prepare("a.jsonl", "--out", out)
    assert data.stat().st_mtime_ns == written_at
    data.write_bytes(before[:-100])
    assert f"prepared again, because {data.name} is damaged" in prepare("a.jsonl", "--out", out)
    assert data.read_bytes() == before
    manifest = tmp_path / ("x/report.json" if out == "x" else "x.report.json")
    manifest.write_bytes(manifest.read_bytes()[:50])
    assert f"because {manifest.name} is damaged" in prepare("a.jsonl", "--out", out)
    write(tmp_path / "a.jsonl", ROWS[:1])
    assert "because the data changed" in prepare("a.jsonl", "--out", out)
    assert data.read_bytes() != before


@pytest.mark.parametrize("out", ["x", "x.jsonl"])
def test_other_settings_are_refused_without_overwrite(tmp_path: Path, prepare: Prepare, out: str) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    prepare("a.jsonl", "--out", out)
    told = prepare("a.jsonl", "--out", out, "data.train_on=final", code=1)
    assert 'data.train_on was "turns", now "final"' in told
    assert "--overwrite" in told
    prepare("a.jsonl", "--out", out, "data.train_on=final", "--overwrite")
    assert "was 8192, now 40" in prepare("a.jsonl", "--out", out, "data.train_on=final", "--max-tokens", "40", code=1)


def test_what_prepare_did_not_write_stays(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").write_text("mine")
    assert "x: holds notes.txt" in prepare("a.jsonl", "--out", "x", "--overwrite", code=1)
    assert (tmp_path / "x" / "notes.txt").read_text() == "mine"
    (tmp_path / "y.jsonl").write_text("{}\n")
    assert "was not written by prepare" in prepare("a.jsonl", "--out", "y.jsonl", code=1)
    assert "is one of the data files" in prepare("a.jsonl", "--out", "a.jsonl", code=2)
    assert "is in" in prepare(tmp_path, "--out", "z", code=2)
    (tmp_path / "empty.jsonl").write_text("")
    prepare("a.jsonl", "--out", "empty.jsonl")
    assert (tmp_path / "empty.jsonl").stat().st_size > 100


def test_longer_examples_are_left_out_and_counted(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", ROWS)
    told = prepare("a.jsonl", "--out", "x.jsonl", "--max-tokens", "100")
    assert "3 examples are longer than data.max_tokens and were left out" in told
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 1
    assert "no row gives a training example" in prepare("a.jsonl", "--out", "y", "--max-tokens", "10", code=1)
    assert not (tmp_path / "y").exists()


def test_a_row_taken_twice_is_no_duplicate(tmp_path: Path, prepare: Prepare) -> None:
    write(tmp_path / "a.jsonl", [*ROWS, ROWS[1]])
    (tmp_path / "run.yaml").write_text(
        "recipe: sft\ndata: {train: [{path: a.jsonl, weight: 2}]}\nmodel: {name: openai/gpt-oss-20b}\n"
    )
    prepare("--config", "run.yaml", "--out", "x")
    statistics = json.loads((tmp_path / "x" / "statistics.json").read_text())
    assert statistics["rows"] == 6
    assert statistics["duplicates"] == 1
    assert sum(b["examples"] for b in statistics["lengths"]["histogram"]) == 10


def test_page_is_escaped_and_may_load_nothing(tmp_path: Path, prepare: Prepare) -> None:
    evil = {**ROWS[0], "tools": [{"type": "function", "function": {"name": "add<b>", "description": "</script>"}}]}
    evil["messages"] = ROWS[1]["messages"]
    write(tmp_path / "<i>a.jsonl", [evil, '{"messages": 1, "<img src=x>": 2}'])
    prepare("<i>a.jsonl", "--out", "x.jsonl")
    page = (tmp_path / "x.statistics.html").read_text()
    assert "default-src 'none'; style-src 'sha256-" in page
    tags = Tags()
    tags.feed(page)
    assert not tags.names & {"i", "b", "img", "script", "link", "a", "iframe"}
    assert not tags.attributes & {"src", "href", "style", "onload", "onerror"}
    assert "http:" not in page
    assert "https:" not in page
    assert "functions.add&lt;b&gt;" in page
    assert "&lt;i&gt;a.jsonl" in page


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes.update(name for name, _ in attrs)


def big(path: Path, megabytes: int) -> Path:
    text = "The quick brown fox jumps over the lazy dog, and 12345 more of them follow. " * 12
    with path.open("w") as file:
        while file.tell() < megabytes << 20:
            row = {"messages": [{"role": "user", "content": f"{file.tell()}"}, {"role": "assistant", "content": text}]}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(
    ("stop", "workers"),
    [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGTERM, 1)],
)
@pytest.mark.slow
def test_killed_in_the_middle_nothing_half_bears_the_name(
    tmp_path: Path, prepare: Prepare, stop: signal.Signals, workers: int
) -> None:
    big(tmp_path / "a.jsonl", 30)
    running = subprocess.Popen([*COMMAND, "a.jsonl", "--out", "x", "--workers", str(workers)], cwd=tmp_path)
    while not (shards := list(tmp_path.glob(".x.partial-*/shard-0"))) or shards[0].stat().st_size < 1 << 20:
        assert running.poll() is None
        time.sleep(0.05)
    children = children_of(running.pid)
    assert len(children) >= (workers if workers > 1 else 0)
    running.send_signal(stop)
    assert running.wait(300) == (143 if stop == signal.SIGTERM else -stop)
    assert not (tmp_path / "x").exists()
    assert bool(list(tmp_path.glob(".x.*"))) == (stop == signal.SIGKILL)
    write(tmp_path / "a.jsonl", ROWS)
    prepare("a.jsonl", "--out", "x")
    assert list(tmp_path.glob(".x.*")) == []
    until = time.monotonic() + 300
    while any(child.exists() for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(child.exists() for child in children)


def children_of(parent: int) -> list[Path]:
    children = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"\nPPid:\t{parent}\n" in (process / "status").read_text():
                children.append(process)
    return children


def test_a_dead_worker_is_one_clear_line(tmp_path: Path) -> None:
    big(tmp_path / "a.jsonl", 20)
    running = subprocess.Popen(
        [*COMMAND, "a.jsonl", "--out", "x", "--workers", "2"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while not list(tmp_path.glob(".x.partial-*/shard-0")):
        assert running.poll() is None
        time.sleep(0.05)
    victim = next(p for p in children_of(running.pid) if b"spawn_main" in (p / "cmdline").read_bytes())
    os.kill(int(victim.name), signal.SIGKILL)
    _, told = running.communicate(timeout=300)
    assert running.returncode == 1
    assert told.splitlines()[-1].startswith("a worker process died")
    assert "Traceback" not in told
    assert list(tmp_path.glob(".x*")) == list(tmp_path.glob("x*")) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(megabytes: int) -> int:
        big(tmp_path / "a.jsonl", megabytes)
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        script = (
            "import resource, sys\nfrom counterpoint.recipes.cli import main\n"
            "code = main(['prepare', 'a.jsonl', '--out', 'x', '--workers', '1'])\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
        )
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
        return int(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)

    assert peak(20) - peak(2) < 24 << 20
