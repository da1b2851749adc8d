"""`counterpoint show` through the real command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

COMMAND = [str(Path(sys.executable).with_name("counterpoint")), "show"]
ANSWER = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "reasoning_content": "think", "content": "1"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "reasoning_content": "again", "content": "2", "weight": 0},
        {"role": "user", "content": "three"},
        {"role": "assistant", "reasoning_content": "more", "content": "3"},
    ]
}
EVIL = "\x1b[31m\x1b]0;owned\x07 \u202egnp.exe\u202c </pre><script>alert(1)</script> <|start|>assistant"
HOSTILE = {"messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL}]}


Show = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def show(forks: Forks) -> Show:
    def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS"))
        done = forks.command("show", *arguments, folder=cwd, **{**clean, "TERM": "xterm", **environment})
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def write(folder: Path, *rows: Any, name: str = "train.jsonl") -> str:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return name


def rows_in(text: str) -> list[str]:
    """Sources of the rows that are shown, bad ones with a cross."""
    lines = [line for line in text.splitlines() if line.startswith(("━━ ", "✗ "))]
    return [("✗" if line[0] == "✗" else "") + line[2:].strip().split(" ")[0].rstrip(":") for line in lines]


def rows_in_colour(text: str) -> list[str]:
    plain = re.sub("\x1b\\[[0-9;]*m", "", text)
    return [line for line in plain.splitlines() if line.startswith(("━━ ", "✗ "))]


def test_a_file(show: Show, tmp_path: Path) -> None:
    done = show(write(tmp_path, ANSWER, TALK, {"oops": 1}, "no json"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    head = done.stdout.splitlines()[:5]
    assert head[0] == "train.jsonl"
    assert head[1].startswith("format openai (1), messages (1) · all 4 rows: 2 conversations, 4 assistant turns, 2 bad")
    assert head[3] == "bad rows: unknown_format 1, not_json 1"
    assert rows_in(done.stdout) == ["train.jsonl:1", "train.jsonl:2", "✗train.jsonl:3", "✗train.jsonl:4"]
    assert "⟦<|channel|>final<|message|>a<|return|>⟧" in done.stdout
    assert "earlier analysis dropped, as at inference: 2 messages: message 2 (analysis), message 5 (analysis)" in (
        done.stdout
    )
    assert "not trained: weight 0 in the row" in done.stdout
    assert "\x1b" not in done.stdout
    assert "rows shown" not in done.stdout


def test_rows_and_turns_are_chosen(show: Show, tmp_path: Path) -> None:
    name = write(tmp_path, ANSWER, TALK, *[ANSWER] * 8)
    assert len(rows_in(show(name, cwd=tmp_path).stdout)) == 5
    assert show(name, cwd=tmp_path).stdout.splitlines()[-1].startswith("5 of 10 rows shown; ")
    assert rows_in(show(name, "--row", "7", cwd=tmp_path).stdout) == ["train.jsonl:7"]
    assert rows_in(show(name, "--rows", "2:4", cwd=tmp_path).stdout) == [f"train.jsonl:{n}" for n in (2, 3, 4)]
    assert rows_in(show(name, "--rows", "9:", cwd=tmp_path).stdout) == ["train.jsonl:9", "train.jsonl:10"]
    assert len(rows_in(show(name, "--limit", "100", cwd=tmp_path).stdout)) == 10
    third = show(name, "--row", "2", "--turn", "3", cwd=tmp_path).stdout
    assert "turn 3 of 3" in third
    assert "turn 1 of 3" not in third
    assert "│ <|start|>user<|message|>one<|end|>" in third


def test_broken_targets_are_shown_with_what_training_does(show: Show, tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": "put", "arguments": "{}"}}
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    write(tmp_path, ANSWER, {"messages": said, "tools": [tool]})
    out = show("train.jsonl", "--plain", cwd=tmp_path).stdout
    assert "! no_analysis  turn 1, final: effort medium without analysis" in out
    refused = re.search(
        r"! unknown_tool  turn 1, call to functions.put: quarantined by (data\.bad_targets\.\w+): ", out
    )
    assert refused is not None
    kept = show("train.jsonl", "--plain", f"{refused[1]}=keep", cwd=tmp_path).stdout
    assert "quarantined by" not in kept
    assert "! unknown_tool  turn 1, call to functions.put: " in kept


def test_settings_of_the_data(show: Show, tmp_path: Path) -> None:
    name = write(tmp_path, TALK)
    final = show(name, "data.train_on=final", "data.weights.final=2", cwd=tmp_path).stdout
    assert "not trained: data.train_on = final" in final
    assert "data.weights.final = 2" in final
    (tmp_path / "run.yaml").write_text(f"recipe: sft\ndata:\n  train: {name}\n  train_on: last_turn\n")
    assert "data.train_on = last_turn" in show("--config", "run.yaml", cwd=tmp_path).stdout
    other = write(tmp_path, ANSWER, name="other.jsonl")
    assert rows_in(show(other, "--config", "run.yaml", cwd=tmp_path).stdout) == ["other.jsonl:1"]
    assert "turn 3 of 3" in show("--config", "run.yaml", "data.train_on=turns", cwd=tmp_path).stdout
    assert "Reasoning: high" in show(name, "--effort", "high", cwd=tmp_path).stdout


def test_colour_only_where_it_is_wanted(show: Show, tmp_path: Path) -> None:
    name = write(tmp_path, ANSWER)
    assert "\x1b[1;38;2;" in show(name, cwd=tmp_path, FORCE_COLOR="1", COLORTERM="truecolor").stdout
    for environment in ({}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}):
        plain = show(name, cwd=tmp_path, **environment).stdout
        assert "\x1b" not in plain
        assert "⟦" in plain
    assert "\x1b" not in show(name, "--plain", cwd=tmp_path, FORCE_COLOR="1").stdout


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1", "COLORTERM": "truecolor"}])
def test_hostile_rows_do_not_reach_the_terminal(show: Show, tmp_path: Path, environment: dict[str, str]) -> None:
    name = write(tmp_path, HOSTILE, {"messages": EVIL}, {EVIL: 1}, '"' + "\x1b[31m")
    text = show(name, cwd=tmp_path, **environment).stdout
    assert [plain.startswith("✗ ") for plain in rows_in_colour(text)] == [False, True, True, True]
    assert not [c for c in text if c in "\x07\u202e\u202c\r"]
    assert "\x1b[31m" not in text
    assert "\x1b]" not in text
    assert "⟨U+001B⟩[31m" in text
    assert "\\<|start|>" in text


def test_a_row_of_2_mb(show: Show, tmp_path: Path) -> None:
    long = {"messages": [{"role": "user", "content": "ab " * 700_000}, {"role": "assistant", "content": "a"}]}
    name = write(tmp_path, long)
    folded = show(name, cwd=tmp_path).stdout
    assert "tokens folded" in folded
    assert "tokens are more than data.max_tokens = 8192" in folded
    assert len(folded) < 5_000
    assert len(show(name, "--full", cwd=tmp_path).stdout) > 2_100_000
    show(name, "--html", "page.html", cwd=tmp_path)
    assert (tmp_path / "page.html").stat().st_size < 100_000


def test_output_that_is_not_unicode(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*COMMAND, write(tmp_path, HOSTILE)], cwd=tmp_path, capture_output=True, env=environment)
    assert done.returncode == 0
    assert b"\\u27e6<|channel|>final" in done.stdout


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    name = write(tmp_path, *[TALK] * 500)
    for force in ({}, {"FORCE_COLOR": "1"}):
        process = subprocess.Popen(
            [*COMMAND, name, "--limit", "500"],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **force},
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141
        process.stderr.close()


def test_a_page_is_written(show: Show, tmp_path: Path) -> None:
    name = write(tmp_path, TALK, ANSWER, {"oops": 1})
    done = show(name, "--html", "page.html", cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "wrote page.html: 5 examples of 3 rows"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["page.html", "train.jsonl"]
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    limited = show(name, "--html", "page.html", "--limit", "2", cwd=tmp_path).stdout
    assert "wrote page.html: 2 examples of 1 row; the page is full" in limited


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no data file: name one, or a run file with --config"),
        (["nope.jsonl"], 1, "nope.jsonl: no such file or folder: check the path"),
        (["train.jsonl", "--row", "9"], 1, "train.jsonl: no such row: rows are numbered as messages name them"),
        (["train.jsonl", "--rows", "4"], 2, "counterpoint show: argument --rows: `4`: write A:B, for example 10:20"),
        (
            ["train.jsonl", "--rows", "4:2"],
            2,
            "counterpoint show: argument --rows: `4:2`: the second number is smaller",
        ),
        (["train.jsonl", "--row", "0"], 2, "counterpoint show: argument --row: `0`: write a whole number from 1"),
        (["train.jsonl", "--html", "a.jsonl"], 2, "counterpoint show: argument --html: `a.jsonl`: name a page that"),
        (["train.jsonl", "--html", "no/a.html"], 1, "no/a.html: cannot be written (No such file or directory)"),
        (["train.jsonl", "train_on=final"], 2, "command line: unknown key `train_on`; did you mean `data.train_on`?"),
        (["train.jsonl", "--format", "opnai"], 2, "command line: `data.train.0.format` is `opnai`: it must be one of"),
    ],
)
def test_mistakes_are_one_line(show: Show, tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    write(tmp_path, ANSWER)
    done = show(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_row_deep_in_a_large_file_is_found_without_reading_the_others_as_json(show: Show, tmp_path: Path) -> None:
    file = write(tmp_path, *[ANSWER] * 1500, *["{ no JSON"] * 100, *[TALK, ANSWER])
    for row, found in ((1601, ["train.jsonl:1601"]), (1602, ["train.jsonl:1602"]), (1600, ["✗train.jsonl:1600"])):
        done = show(file, "--row", str(row), cwd=tmp_path)
        assert rows_in(done.stdout) == found
        assert "first 1,000 rows, more follow" in done.stdout
    assert rows_in(show(file, "--rows", "1599:", "--limit", "9", cwd=tmp_path).stdout) == [
        "✗train.jsonl:1599", "✗train.jsonl:1600", "train.jsonl:1601", "train.jsonl:1602",
    ]  # fmt: skip
    gone = show(file, "--row", "1603", cwd=tmp_path)
    assert gone.returncode == 1
    assert "no such row" in gone.stderr


def test_a_line_of_a_session_log_shows_the_session_only_by_its_first_line(show: Show, tmp_path: Path) -> None:
    def event(session: int, role: str) -> dict[str, Any]:
        return {"type": role, "sessionId": f"s{session}", "message": {"role": role, "content": f"{role} {session}"}}

    file = write(tmp_path, *[event(n, role) for n in range(1100) for role in ("user", "assistant")])
    assert rows_in(show(file, "--row", "2101", cwd=tmp_path).stdout) == ["train.jsonl:2101"]
    assert show(file, "--row", "2102", cwd=tmp_path).returncode == 1
