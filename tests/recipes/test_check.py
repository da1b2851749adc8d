"""`counterpoint check` through the real command: output, rates, bad rows, exit codes, pipes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from completions import CALL_HEAD, FINAL, MALFORMED, THINK, TOOLS, VALID, ids_of

from counterpoint.data.harmony.codes import CODES
from counterpoint.data.harmony.official import harmony_accepts
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.intervals import wilson
from counterpoint.recipes.cli import main

OPENAI_TOOLS = [
    {"type": "function", "function": {"name": t.name, "description": "", "parameters": t.parameters}} for t in TOOLS
]


def command(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    """The command in this process, with streams of bytes as a process has them."""
    streams = [io.TextIOWrapper(io.BytesIO(said), "utf-8", newline="") for said in (stdin, b"", b"")]
    with patch.multiple(sys, stdin=streams[0], stdout=streams[1], stderr=streams[2]):
        try:
            code = main(["check", *arguments])
        except SystemExit as end:  # of argparse
            code = int(str(end.code))
    for stream in streams[1:]:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode() for stream in streams[1:])
    return subprocess.CompletedProcess(arguments, code, out, err)


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def rows_of(cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for case in cases:
        row: dict[str, Any] = {"tokens": ids_of(case.text)[0]}
        for key, value in case.rules.items():
            row[key] = OPENAI_TOOLS if value is TOOLS else list(value) if isinstance(value, tuple) else value
        rows.append(row)
    return rows


def test_every_row_has_its_verdict_and_the_last_object_the_rates(tmp_path: Path) -> None:
    cases = MALFORMED + VALID
    done = command(write(tmp_path / "rows.jsonl", rows_of(cases)), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    *rows, rates = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["row"] for row in rows] == list(range(1, len(cases) + 1))
    expected_accepts = 0
    for case, row in zip(cases, rows, strict=True):
        ids, positions = ids_of(case.text)
        expected = {(code, at) for codes, at in zip(case.codes, positions, strict=True) for code in codes}
        assert {(v["code"], v["position"]) for v in row["violations"]} == expected, case.name
        assert all(set(v) == {"code", "position", "detail"} for v in row["violations"])
        assert row["harmony_accepts"] == harmony_accepts(ids)
        assert row["recipient_position"] in (None, "role", "channel", "mixed")
        expected_accepts += row["harmony_accepts"]
    n = len(cases)
    assert (rates["rows"], rates["bad_rows"]) == (n, 0)
    assert rates["correct"]["count"] == len(VALID)
    assert rates["harmony_accepts"]["count"] == expected_accepts
    assert set(rates["rates"]) == set(CODES)
    for code, rate in rates["rates"].items():
        count = sum(any(code in codes for codes in case.codes) for case in cases)
        assert rate["count"] == count
        assert rate["rate"] == pytest.approx(count / n)
        assert (rate["low"], rate["high"]) == pytest.approx(wilson(count, n))


def test_the_text_output_has_a_line_a_violation_and_a_table(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        [
            {"text": THINK + FINAL, "effort": "high"},
            {"text": "<|channel|>thought<|message|>\u001b[31m<|end|>"},
            {"text": THINK + CALL_HEAD + '{"a": "x"}<|call|>', "tools": OPENAI_TOOLS},
        ],
    )
    done = command(file)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{file}:1: ok",
        f"{file}:2: unknown_channel@1: the channel is 'thought'",
        f"{file}:2: truncated@7: no <|return|> or <|call|>",
        f"{file}:3: arguments_invalid@19: $.a: 'x' is not of type 'integer'",
        "",
        "3 rows checked, 0 could not be read",
        "fully correct                        1   33.3 %  (6.1 to 79.2)",
        "accepted by openai-harmony           3  100.0 %  (43.9 to 100.0)",
        "recipients are in: channel 1, role 0, mixed 0",
        "",
        f"unknown_channel                      1   33.3 %  (6.1 to 79.2)  {CODES['unknown_channel']}",
        f"truncated                            1   33.3 %  (6.1 to 79.2)  {CODES['truncated']}",
        f"arguments_invalid                    1   33.3 %  (6.1 to 79.2)  {CODES['arguments_invalid']}",
        f"{len(CODES) - 3} other codes: none, each at most 56.1 %",
    ]


def test_standard_input_options_and_exit_codes(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(OPENAI_TOOLS))
    stdin = json.dumps({"text": CALL_HEAD.replace("add", "sub") + "{}<|call|>"}).encode()
    done = command("-", "--json", "--tools", str(tools), "--effort", "high", stdin=b"\xef\xbb\xbf\n" + stdin + b"\r\n")
    first = json.loads(done.stdout.splitlines()[0])
    assert {v["code"] for v in first["violations"]} == {"no_analysis", "unknown_tool"}
    assert (first["source"], first["recipient_position"], done.returncode) == ("-:2", "channel", 0)
    done = command("-", "--json", "--effort", "high", "--no-policy", stdin=stdin)
    assert json.loads(done.stdout.splitlines()[0])["violations"] == []
    assert command("-", "--effort", "high", "--fail-on-violation", stdin=stdin).returncode == 1
    assert command("-", "--fail-on-violation", stdin=stdin).returncode == 0
    assert command("-", "--effort", "most", stdin=stdin).returncode == 2
    missing = command("-", "--tools", str(tmp_path / "none.json"), stdin=stdin)
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    nowhere = command(str(tmp_path / "none.jsonl"))
    assert nowhere.returncode == 1
    assert nowhere.stderr.count("\n") == 1


GOOD = json.dumps({"text": FINAL})
BAD_ROWS = [
    ("not json", "row"),
    ('{"text": 5}', "text"),
    ('{"tokens": "5"}', "tokens"),
    ('{"messages": []}', "tokens"),
    ("[]", "row"),
    ("5", "row"),
    ('{"text": "\\ud800"}', "text"),
    ('{"text": "a", "text": "b"}', "text"),
    ('{"tokens": [1], "effort": "most"}', "effort"),
    ('{"tokens": [1], "effort": 3}', "effort"),
    ('{"tokens": [1], "tools": 3}', "tools"),
    ('{"tokens": [1], "tools": [{"type": "function"}]}', "tools"),
    ('{"tokens": [1], "builtin_tools": "python"}', "builtin_tools"),
    ('{"tokens": [1], "finish_reason": 3}', "finish_reason"),
    ('{"tokens": [1], "response_format": "json"}', "response_format"),
    ('{"tokens": [1', "row"),
]


def test_bad_rows_are_told_with_line_and_field_and_the_others_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join([GOOD, *[row for row, _ in BAD_ROWS], GOOD]) + "\n")
    done = command(str(file), "--json")
    assert done.returncode == 1
    told = done.stderr.splitlines()
    assert len(told) == len(BAD_ROWS)
    for number, (line, (_, field)) in enumerate(zip(told, BAD_ROWS, strict=True), 2):
        assert line.startswith(f"{file}:{number}: {field}"), line
        assert line.count(": ") >= 3, "place, field, what, fix"
    *rows, rates = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row.get("error") for row in rows] == [None, *told, None]
    assert (rates["rows"], rates["bad_rows"], rates["correct"]["count"]) == (2, len(BAD_ROWS), 2)


def test_ids_that_are_none_are_a_violation_and_no_bad_row() -> None:
    done = command("-", "--json", stdin=b'{"tokens": [200005, 17196, 200008, "x", -1, 1.5, null, 200002]}\n')
    assert done.returncode == 0
    (violation,) = json.loads(done.stdout.splitlines()[0])["violations"]
    assert (violation["code"], violation["position"]) == ("id_out_of_range", 3)
    assert done.stderr == ""


def test_a_stop_token_that_the_server_cut_off_is_put_back_for_texts_that_stopped() -> None:
    final, call = THINK + "<|channel|>final<|message|>4", THINK + CALL_HEAD + '{"a": 1}'
    broken = THINK + "<|channel|>add<|channel|>commentary json<|message|>{}"
    rows = [
        {"text": final, "finish_reason": "stop"},
        {"text": call, "finish_reason": "tool_calls"},
        {"text": broken, "finish_reason": "stop"},
        {"text": "<|channel|>analysis<|message|>x", "finish_reason": "stop"},
        {"text": final, "finish_reason": "length"},
        {"text": final},
        {"tokens": load_vocabulary().encode_with_specials(final), "finish_reason": "stop"},
        {"text": final + "<|return|>", "finish_reason": "stop"},
    ]
    done = command("-", "--json", stdin="".join(json.dumps(row) + "\n" for row in rows).encode())
    *judged, rates = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(sorted({v["code"] for v in row["violations"]}), row["stop_added"]) for row in judged] == [
        ([], True),
        ([], True),
        (["content_type_without_recipient", "second_channel", "unknown_channel"], True),
        (["no_final_or_call", "return_without_final"], True),
        (["truncated"], False),
        (["truncated"], False),
        (["truncated"], False),
        ([], False),
    ]
    assert rates["stops_added"] == 4


CHANNELS = THINK + "<|channel|>final<|message|>4<|return|>"
ASKED = "<|start|>system<|message|>Hi<|end|><|start|>user<|message|>2 + 2?<|end|><|start|>assistant"


def ids(text: str) -> list[int]:
    return load_vocabulary().encode_with_specials(text)


@pytest.mark.parametrize(
    "row",
    [
        {"completion": CHANNELS},
        {"output": CHANNELS},
        {"token_ids": ids(CHANNELS)},
        {"choices": [{"index": 0, "text": CHANNELS, "finish_reason": "stop"}]},
        {"choices": [{"text": "4", "token_ids": ids(CHANNELS), "finish_reason": "stop"}]},
        {"choices": [{"message": {"role": "assistant", "content": CHANNELS}, "finish_reason": "stop"}]},
        {"prompt_token_ids": ids(ASKED), "outputs": [{"text": "4", "token_ids": ids(CHANNELS)}]},
        {"request": {"prompt": ASKED}, "response": {"choices": [{"text": CHANNELS}]}},
        {"custom_id": "a", "response": {"status_code": 200, "body": {"choices": [{"text": CHANNELS}]}}},
        {"text": CHANNELS.removesuffix("<|return|>"), "meta_info": {"finish_reason": {"type": "stop"}}},
        {"content": CHANNELS.removesuffix("<|return|>"), "stop_type": "eos"},
    ],
)
def test_logs_are_read_as_servers_write_them(row: dict[str, Any]) -> None:
    """k02_vllm_completion: choices were not read."""
    done = command("-", "--json", "--messages", stdin=json.dumps(row).encode())
    judged, rates = [json.loads(line) for line in done.stdout.splitlines()]
    assert (judged["violations"], judged["prompt_tokens"], rates["rows"]) == ([], 0, 1)
    assert [(m["channel"], m["text"]) for m in judged["messages"]] == [("analysis", "Think."), ("final", "4")]


def test_each_choice_is_judged_by_what_the_request_says() -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    call = "<|channel|>commentary to=functions.g <|constrain|>json<|message|>{}<|call|>"
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    choices = [{"text": CHANNELS}, {"text": call}, {"text": FINAL, "finish_reason": "length"}]
    request = {"tools": tools, "reasoning_effort": "high", "response_format": wanted}
    row = {"request": request, "response": {"choices": choices}}
    done = command("-", "--json", stdin=json.dumps(row).encode())
    *judged, rates = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(j["source"], sorted(v["code"] for v in j["violations"])) for j in judged] == [
        ("-:1[0]", ["final_invalid"]),
        ("-:1[1]", ["no_analysis", "unknown_tool"]),
        ("-:1[2]", ["final_invalid", "no_analysis", "truncated"]),
    ]
    assert rates["rows"] == 3


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"text": "analysisHi.assistantfinalHello!"},
            "text: not one special token is in it: they were stripped: sample",
        ),
        ({"choices": [{"text": "Hello!"}]}, "choices[0].text: not one special token is in it"),
        ({"choices": [{"message": {"content": "Hello!"}}]}, "choices[0].message: the server has parsed the completion"),
        ({"output": [{"type": "message", "content": []}]}, "output: the server has parsed the completion"),
    ],
)
def test_a_log_without_the_special_tokens_says_so(row: dict[str, Any], told: str) -> None:
    """k01_stripped, k03_chat_completion: told as header_grammar, or not read."""
    done = command("-", stdin=json.dumps(row).encode())
    assert done.returncode == 1
    assert done.stderr.startswith(f"-:1: {told}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("row", [{"text": ASKED + CHANNELS}, {"tokens": ids(ASKED + CHANNELS)},
                                 {"tokens": ids(ASKED + CHANNELS), "prompt_token_ids": ids(ASKED)}])  # fmt: skip
def test_a_prompt_that_was_left_in_is_skipped_and_told(row: dict[str, Any]) -> None:
    done = command("-", "--messages", stdin=json.dumps(row).encode())
    assert done.stdout.splitlines()[:4] == [
        "-:1: ok",
        f"-:1: a prompt was left in: {len(ids(ASKED))} tokens before the completion are not judged",
        "-:1: analysis: Think.",
        "-:1: final: 4",
    ]


def test_a_broken_schema_is_told_once_and_judges_nothing() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "minimum": "none"}}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": parameters}}]
    row = json.dumps({"text": THINK + CALL_HEAD + '{"a": "x"}<|call|>', "tools": tools}).encode()
    done = command("-", "--json", stdin=row + b"\n" + row)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "add: its schema is broken" in done.stderr
    assert [json.loads(line)["violations"] for line in done.stdout.splitlines()[:2]] == [[], []]


def test_an_empty_input_has_rates_without_values() -> None:
    done = command("-", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["correct"] == {"count": 0, "rate": None, "low": 0.0, "high": 1.0}


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    file = write(tmp_path / "many.jsonl", [{"text": "<|channel|>final<|message|>" + "hello " * 50}] * 3000)
    process = subprocess.Popen(
        [sys.executable, "-m", "counterpoint.recipes.cli", "check", file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(60)
