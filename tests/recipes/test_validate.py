"""`counterpoint validate` through the real command: words, counts, quarantine, exit codes."""

from __future__ import annotations

import base64
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "counterpoint.recipes.cli", "validate"]
GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "thinking": "Hm.", "content": "Hello."}]}
PROMPT = {"messages": [{"role": "user", "content": "2+2?"}], "answer": 4}
PAIR = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
BAD_CALL = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{x: 1}"}}]},
    ]
}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, encoding="utf-8")
    assert "Traceback" not in done.stderr, done.stderr
    return done


def write(file: Path, *rows: object) -> str:
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    return str(file)


def test_a_good_file_is_counted_and_exits_with_0(tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD, PROMPT)
    done = command(file)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 rows: 2 good, 0 bad (")
    assert lines[1:] == ["kind: 1 conversations, 1 prompts", "format: messages 1, openai 1"]
    assert done.stderr == ""


def test_every_bad_row_is_one_line_with_place_fault_and_fix(tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD, BAD_CALL, b'{"messages": [', b'{"a\\u001b[31m": "\xff"}', {"x": 1})
    done = command(file)
    assert done.returncode == 1
    first, *others = done.stdout.splitlines()
    assert first.startswith(f"{file}:2: messages[1].tool_calls[0].function.arguments: not JSON (")
    assert first.endswith("): write a JSON object as a string")
    assert others[:3] == [
        f"{file}:3: row: the JSON text ends early, after character 14: write the row again",
        f"{file}:4: row: not UTF-8: byte FF at byte 18: save the file as UTF-8",
        f"{file}:5: row: no format has these fields (x): name the format with --format, or write messages",
    ]
    assert "5 rows: 1 good, 4 bad" in done.stdout
    assert "bad: truncated: 1 rows" in done.stdout


def test_the_quarantine_holds_the_original_bytes_and_the_reason(tmp_path):
    bad = b'{"a": "\xff"}'
    file = write(tmp_path / "a.jsonl", GOOD, BAD_CALL, bad)
    quarantine = tmp_path / "bad.jsonl"
    done = command(file, "--quarantine", str(quarantine))
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"quarantine: 2 rows in {quarantine}"
    first, second = map(json.loads, quarantine.read_text(encoding="utf-8").splitlines())
    assert (first["source"], first["kind"]) == (f"{file}:2", "arguments_not_json")
    assert first["field"] == "messages[1].tool_calls[0].function.arguments"
    assert json.loads(first["raw"]) == BAD_CALL
    assert base64.b64decode(second["raw_base64"]) == bad
    assert set(first) == {"source", "kind", "field", "what", "fix", "raw"}
    assert command(file, "--quarantine", file).returncode == 2
    assert Path(file).read_bytes().endswith(bad + b"\n"), "the data file itself is never written"


def test_json_is_one_object_a_bad_row_and_a_last_one_with_the_counts(tmp_path):
    done = command(write(tmp_path / "a.jsonl", GOOD, PAIR, b"no"), "--json")
    bad, counts = map(json.loads, done.stdout.splitlines())
    assert (bad["kind"], bad["raw"]) == ("not_json", "no")
    assert counts.pop("seconds") >= 0
    assert counts == {
        "rows": 3,
        "ok": 2,
        "bad": 1,
        "kinds": {"conversation": 1, "preference": 1},
        "formats": {"messages": 1, "preference": 1},
        "bad_by_kind": {"not_json": 1},
        "notices_by_kind": {"missing_thinking": 1},
        "unused_fields": {},
        "actions": 2,
        "bad_targets": {"no_analysis": 1},
    }


def test_what_the_rows_are_for_decides_which_are_good(tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD, PROMPT, PAIR)
    assert command(file).returncode == 0
    for use, bad in (("sft", [2, 3]), ("dpo", [1, 2]), ("rl", [3])):
        done = command(file, "--for", use)
        assert done.returncode == 1
        assert [int(line.split(":")[1]) for line in done.stdout.splitlines() if line.startswith(file)] == bad


@pytest.mark.slow
def test_format_and_options_are_taken(tmp_path):
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    file = write(tmp_path / "a.jsonl", {"messages": [picture, GOOD["messages"][1]]})
    assert "data.images: placeholder" in command(file).stdout
    done = command(file, "data.images=placeholder")
    assert done.returncode == 0
    assert "notice: media_placeholder: 1 rows (first: " in done.stdout
    assert command(file, "--format", "sharegpt").returncode == 1
    wrong = command(file, "--format", "sharegtp")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1


def test_a_folder_says_what_it_passes_over(tmp_path):
    write(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "README").write_text("x")
    done = command(str(tmp_path))
    assert done.stdout.splitlines()[-1] == f"skipped in {tmp_path}: README (no data files by their names)"


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    done = command(str(tmp_path / "nothing.jsonl"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{tmp_path / 'nothing.jsonl'}: no such file or folder: check the path\n"


def test_progress_is_shown_on_a_terminal_only(tmp_path):
    file = write(tmp_path / "a.jsonl", GOOD, b"no")
    ours, theirs = pty.openpty()
    done = subprocess.run([*COMMAND, file], stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert "1 rows, 0 bad" in shown
    assert shown.endswith("\r\x1b[K"), "the line is taken away"
    assert b"\x1b" not in done.stdout


def test_names_in_a_file_move_no_cursor(tmp_path):
    file = write(tmp_path / "a.jsonl", {"\x1b[31m\u202e\n": 1}, {**GOOD, "\x1b[2J": 1})
    done = command(file)
    assert not [c for c in done.stdout if c != "\n" and not c.isprintable()]


def test_for_rl_the_rows_without_a_truth_are_named(tmp_path):
    asked = {"messages": [{"role": "user", "content": "2+2?"}]}
    later = {**asked, "follow_ups": [{"content": "3+3?", "answer": 6}]}
    more = [{**asked, "test_list": ["assert f() == 4"]}, {**asked, "rubrics": [{"criterion": "It is 4.", "points": 1}]}]
    file = write(tmp_path / "a.jsonl", PROMPT, asked, later, {**PROMPT, "scorer": "my.py:judge"}, *[asked] * 25, *more)
    done = command(file, "--for", "rl")
    told = done.stdout.splitlines()
    assert done.returncode == 1
    assert told[0].startswith(f"{file}:4: row: scorer: a row names a comparison of the package")
    assert told[1:4] == [
        f"no truth: {file}:2: nothing that a reward can compare with",
        f"no truth: {file}:5: nothing that a reward can compare with",
        f"no truth: {file}:6: nothing that a reward can compare with",
    ]
    assert told[21] == "... and 6 more without a truth"
    last = json.loads(command(file, "--for", "rl", "--json").stdout.splitlines()[-1])
    assert (last["notices_by_kind"]["no_truth"], len(last["without_truth"]), last["bad"]) == (26, 20, 1)


@pytest.mark.slow
def test_at_most_twenty_rows_of_a_kind_are_told_and_folders_file_by_file(tmp_path):
    write(tmp_path / "a.jsonl", GOOD, *[{"x": 1}] * 25)
    write(tmp_path / "b.jsonl", GOOD, BAD_CALL)
    done = command(str(tmp_path))
    told = done.stdout.splitlines()
    assert sum("no format has these fields" in line for line in told) == 20
    assert told[21] == "... and 5 more of unknown_format: --quarantine FILE or --json has them all"
    assert told[-2:] == [f"file: {tmp_path}/a.jsonl: 26 rows, 25 bad", f"file: {tmp_path}/b.jsonl: 2 rows, 1 bad"]
    counts = json.loads(command(str(tmp_path), "--json").stdout.splitlines()[-1])
    assert counts["files"][f"{tmp_path}/a.jsonl"] == {"rows": 26, "bad": 25}


def test_targets_that_break_a_rule_are_counted(tmp_path):
    silent = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "It writes <|start|>."}]}
    empty = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}
    file = write(tmp_path / "a.jsonl", silent, empty)
    last = json.loads(command(file, "--json").stdout.splitlines()[-1])
    assert (last["actions"], last["bad_targets"]) == (1, {"no_analysis": 1, "markup_in_text": 1})
    assert last["bad_by_kind"] == {"empty_final": 1}
    last = json.loads(command(file, "--json", "data.bad_targets.text=keep").stdout.splitlines()[-1])
    assert (last["actions"], last["bad_targets"]["empty_final"], last["bad"]) == (2, 1, 0)


def test_no_row_needs_torch_to_be_validated(tmp_path):
    file = write(tmp_path / "a.jsonl", PROMPT)
    code = (
        "import sys; from counterpoint.recipes.cli import main; "
        f"print(main(['validate', {file!r}, '--for', 'rl']), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
