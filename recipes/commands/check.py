"""Check sampled completions strictly: one code a rule, a rate with its interval for each code.

Rows: {"tokens": [...]} or {"text": "..."} (raw Harmony text), or what a server answered or logged (`choices`,
`outputs`, `token_ids`, `completion`, ...), and where they are known "tools" (OpenAI's list), "builtin_tools", "effort",
"finish_reason", "response_format". A prompt that stands before the completion is skipped.

A text whose finish_reason says that the model stopped, but that lacks the stop token (servers cut it off), gets the one
that its last message asks for; where its header is malformed too, the end of that message is not judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from counterpoint.configs.errors import RowError

if TYPE_CHECKING:
    from counterpoint.data.harmony.checker import Rules
    from counterpoint.data.rows.row import BadRow, RawRow
    from counterpoint.recipes.commands.check_report import Judged
    from counterpoint.recipes.commands.check_rows import Sampled

_EFFORTS = ("low", "medium", "high")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="rows to check; - reads JSON lines from standard input"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a completion, and a last one with the rates"
    )
    parser.add_argument("--messages", action="store_true", help="the finished messages too, as they were read")
    parser.add_argument("--tools", metavar="FILE", help="JSON file with the tools of rows that name none, or a folder")
    parser.add_argument("--effort", choices=_EFFORTS, help="reasoning effort of rows that name none")
    parser.add_argument("--no-policy", action="store_true", help="leave out no_analysis and empty_analysis")
    parser.add_argument("--fail-on-violation", action="store_true", help="exit with 1 where any row breaks a rule")


def run(arguments: argparse.Namespace) -> int:
    from counterpoint.data.harmony.checker import Rules
    from counterpoint.data.rows.row import BadRow
    from counterpoint.recipes.commands.check_report import Totals, as_json, as_text
    from counterpoint.recipes.commands.check_rows import with_tools

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    defaults = Rules(effort=arguments.effort, policy=not arguments.no_policy)
    if arguments.tools:
        from counterpoint.data.formats.tool_files import declarations

        defaults = with_tools(defaults, {"tools": declarations(arguments.tools)}, arguments.tools)
    totals = Totals()
    for row in _rows(arguments.files):
        for judged in [row] if isinstance(row, BadRow) else _judged(row, defaults, arguments.messages):
            totals.add(judged)
            if isinstance(judged, BadRow):
                print(judged.message, file=sys.stderr)
            elif not arguments.json:
                sys.stdout.write(as_text(judged))
            if arguments.json:
                sys.stdout.write(as_json(judged, totals.rows))
    sys.stdout.write(totals.json() if arguments.json else totals.table())
    return 1 if totals.bad or (arguments.fail_on_violation and totals.correct < totals.read) else 0


def _rows(files: list[str]) -> Iterator[RawRow | BadRow]:
    from counterpoint.data.rows.containers import read_rows

    for file in files:
        yield from read_rows(file)


def _judged(row: RawRow, defaults: Rules, with_messages: bool) -> Iterator[Judged | BadRow]:
    from counterpoint.data.rows.row import BadRow
    from counterpoint.recipes.commands.check_rows import completions_of

    try:
        if not isinstance(row.value, Mapping):
            raise RowError("wrong_type", "row", "is not an object", 'write {"tokens": [...]} or {"text": "..."}')
        for sampled in completions_of(row.value, defaults):
            yield _judge(f"{row.source}{sampled.place}", sampled, with_messages)
    except RowError as error:
        yield BadRow.of(row, error)


def _judge(source: str, sampled: Sampled, with_messages: bool) -> Judged:
    from dataclasses import replace

    from counterpoint.data.harmony.checker import judge, read
    from counterpoint.data.harmony.completion import finished_messages
    from counterpoint.data.harmony.official import harmony_accepts
    from counterpoint.data.harmony.vocabulary import load_vocabulary
    from counterpoint.recipes.commands.check_report import Judged

    ids = sampled.ids
    reading = read(ids)
    checked = judge(reading, sampled.rules, load_vocabulary())
    if sampled.stop_added and reading.scan.spans[-1].header.faults:
        checked = replace(checked, violations=tuple(v for v in checked.violations if v.position != len(ids) - 1))
    messages = finished_messages(reading, load_vocabulary()) if with_messages else None
    return Judged(source, checked, harmony_accepts(ids), sampled.stop_added, messages, sampled.skipped)
