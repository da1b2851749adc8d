"""Every trained action is held against the checker: which rule costs the row, which is counted, and which tokens count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import DataError
from counterpoint.configs.preference_section import DpoSettings
from counterpoint.configs.schema import DataSettings
from counterpoint.configs.target_section import BadTargetSettings
from counterpoint.data.counts.lines import training_lines
from counterpoint.data.dataset.build import build_training_rows
from counterpoint.data.dataset.pairs import build_pairs, build_rated
from counterpoint.data.harmony.codes import Code
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.prepare.validate import validate
from counterpoint.data.prepare.writer import Job, prepare

ASKED = {"role": "user", "content": "q"}
F = {"name": "f", "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}
NUMBER = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object", "required": ["n"]}}}


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [ASKED, *messages], "reasoning_effort": "low", **fields}


def said(content: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def called(arguments: str, name: str = "f") -> tuple[dict[str, Any], ...]:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "r"}, said("a")


def harmony(*messages: dict[str, Any]) -> dict[str, Any]:
    return chat(*({"role": "assistant", **message} for message in messages))


BROKEN = {
    "arguments_invalid": chat(*called('{"q":1}'), tools=[F]),
    "arguments_not_object": chat(
        {"role": "assistant", "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "sh", "input": "ls"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
        said("a"),
    ),
    "unknown_tool": chat(*called("{}", "g"), tools=[F]),
    "final_invalid": chat(said('{"m": 1}'), response_format=NUMBER),
    "empty_final": chat(said("  ")),
    "repetition_loop": chat(said("ha " * 400)),
    "content_type_without_recipient": harmony({"channel": "final", "content_type": "json", "content": "{}"}),
    "function_not_on_commentary": harmony({"channel": "analysis", "recipient": "functions.f", "content": "{}"}),
    "bare_name": harmony({"channel": "commentary", "recipient": "get", "content": "{}"}),
    "builtin_not_on_analysis": harmony({"channel": "commentary", "recipient": "python", "content": "1"}),
    "header_grammar": harmony(
        {"channel": "commentary", "recipient": "functions.f", "content_type": "json or so", "content": "{}"}
    ),
}
KEPT = {
    "markup_in_text": chat(said("It writes <|start|>assistant.")),
    "no_analysis": chat(said("a")) | {"reasoning_effort": "medium"},
    "empty_analysis": harmony({"channel": "analysis", "content": " "}, {"channel": "final", "content": "a"}),
}
RIGHT = chat(*called('{"q":"x"}'), tools=[F])


def data_of(folder: Path, *rows: dict[str, Any], **data: Any) -> DataSettings:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return DataSettings.model_validate({"train": str(path), "bad_rows_limit": 1, **data})


def test_each_group_of_codes_is_a_setting() -> None:
    assert {code.group for code in Code} == set(BadTargetSettings.model_fields)


def test_validate_prepare_and_training_say_the_same_of_every_row(tmp_path: Path) -> None:
    """v01_targets: 21 of 170 targets broke a rule of the checker and were trained, 16 of them without a notice."""
    data = data_of(tmp_path, *BROKEN.values(), *KEPT.values(), RIGHT)
    bad = Counter(dict.fromkeys(BROKEN, 1))
    kept = Counter(dict.fromkeys(KEPT, 1))
    trained = build_training_rows(data.train, data, load_vocabulary(), quarantine=tmp_path / "bad.jsonl").report
    checked = validate(data.train, data)
    written = prepare(data.train, tmp_path / "out", Job(data, data, 8192), workers=1).report
    for report in (trained, checked, written):
        assert (report.bad, report.bad_targets, report.actions) == (bad, kept, 5)
    assert trained.bad_messages[0].endswith(
        "rows.jsonl:1: turn 1, call to functions.f: arguments that the tool's schema refuses ($.q: 1 is not of type "
        "'string'): correct it, leave the row out, or set data.bad_targets.arguments: keep"
    )
    places = [line for line in training_lines(trained) if line.startswith("target: ")]
    assert places[0].endswith(
        "rows.jsonl:12: turn 1, final: <|start|> as plain text): see data.bad_targets"
    )  # fmt: skip
    assert places[0].startswith("target: markup_in_text: 1 of 5 trained actions (first: ")
    quarantined = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(row["kind"], json.loads(row["raw"])) for row in quarantined] == list(BROKEN.items())


@pytest.mark.parametrize("code", [*BROKEN, *KEPT])
def test_a_setting_for_each_group_of_codes(code: str, tmp_path: Path) -> None:
    group = next(c.group for c in Code if c.value == code)
    choice = "quarantine" if code in KEPT else "keep"
    data = data_of(tmp_path, {**BROKEN, **KEPT}[code], RIGHT, bad_targets={group: choice})
    report = build_training_rows(data.train, data, load_vocabulary()).report
    assert report.bad == ({code: 1} if choice == "quarantine" else {})
    assert report.bad_targets[code] == (choice == "keep")


def test_only_tokens_with_a_loss_weight_count(tmp_path: Path) -> None:
    """m01: what a row marks as not to imitate may break any rule."""
    unwanted = chat(said("  ", weight=0), ASKED, said("a"))
    arguments = BROKEN["arguments_invalid"]
    silent = KEPT["no_analysis"]
    for row, settings, actions in (
        (unwanted, {}, 1),
        (arguments, {"weights": {"call_arguments": 0}}, 2),
        (arguments, {"train_on": "final"}, 1),
        (silent, {"missing_thinking": "final_body", "bad_targets": {"policy": "quarantine"}}, 1),
    ):
        data = data_of(tmp_path, row, RIGHT, **settings)
        trained = build_training_rows(data.train, data, load_vocabulary()).report
        checked = validate(data.train, data)
        for report in (trained, checked):
            assert (report.bad, report.bad_targets) == ({}, {})
            assert report.actions == actions + (1 if "train_on" in settings else 2)


@pytest.mark.parametrize("train_on", ["turns", "last_turn", "assistant"])
def test_finals_inside_a_sequence_end_as_they_should(train_on: str, tmp_path: Path) -> None:
    turns = (said("a"), ASKED, said("b"), ASKED, *called('{"q":"x"}'))
    data = data_of(tmp_path, chat(*turns, tools=[F]), train_on=train_on)
    for report in (
        build_training_rows(data.train, data, load_vocabulary()).report,
        validate(data.train, data),
    ):
        assert (report.bad, report.bad_targets) == ({}, {})
        assert report.actions == (2 if train_on == "last_turn" else 4)


def test_of_a_pair_the_wanted_side_is_judged(tmp_path: Path) -> None:
    def pair(chosen: str, rejected: str) -> dict[str, Any]:
        return {"prompt": [ASKED], "chosen": [said(chosen)], "rejected": [said(rejected)], "reasoning_effort": "low"}

    data = data_of(tmp_path, pair("ha " * 400, "b"), pair("a", "ha " * 400), pair("<|end|>", "b"))
    found = build_pairs(data.train, data, DpoSettings(), load_vocabulary())
    assert (len(found.pairs), found.report.bad, found.report.bad_targets) == (
        2, {"repetition_loop": 1}, {"markup_in_text": 1},
    )  # fmt: skip
    checked = validate(data.train, data, use="dpo")
    assert (checked.bad, checked.bad_targets) == ({"repetition_loop": 1}, {"markup_in_text": 1})
    rated = [chat(said("ha " * 400), label=label) for label in (True, False)]
    data = data_of(tmp_path, *rated)
    report = build_rated(data.train, data, DpoSettings.model_validate({"losses": "kto"}), load_vocabulary()).report
    assert report.bad == {"repetition_loop": 1}


def test_a_run_stops_where_too_many_targets_are_bad(tmp_path: Path) -> None:
    data = data_of(tmp_path, BROKEN["empty_final"], RIGHT, bad_rows_limit=0.05)
    with pytest.raises(DataError, match="1 of 2 rows are bad"):
        build_training_rows(data.train, data, load_vocabulary())
