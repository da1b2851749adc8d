"""Check sampled completions strictly: one code a rule, a rate with its interval for each code.

Rows: {"tokens": [...]} or {"text": "..."} (raw Harmony text, as a server logs it), and where they are known
"tools" (OpenAI's list), "builtin_tools", "effort", "finish_reason", "response_format".

A text whose finish_reason says that the model stopped, but that lacks the stop token (servers cut it off), gets the one
that its last message asks for; where its header is malformed too, the end of that message is not judged.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from counterpoint.configs.errors import ConfigError, RowError

if TYPE_CHECKING:
    from counterpoint.data.harmony.checker import Rules
    from counterpoint.data.rows.row import BadRow, RawRow
    from counterpoint.recipes.commands.check_report import Judged

_EFFORTS = ("low", "medium", "high")
_STOPPED = frozenset({"stop", "tool_calls", "function_call", "end_turn", "tool_use", "eos", "eos_token", "stop_str"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="rows to check; - reads JSON lines from standard input"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a row, and a last one with the rates")
    parser.add_argument(
        "--messages", action="store_true", help="with --json: the finished messages of a row, as they were read"
    )
    parser.add_argument("--tools", metavar="FILE", help="JSON file with the tools of rows that name none, or a folder")
    parser.add_argument("--effort", choices=_EFFORTS, help="reasoning effort of rows that name none")
    parser.add_argument("--no-policy", action="store_true", help="leave out no_analysis and empty_analysis")
    parser.add_argument("--fail-on-violation", action="store_true", help="exit with 1 where any row breaks a rule")


def run(arguments: argparse.Namespace) -> int:
    from counterpoint.data.harmony.checker import Rules
    from counterpoint.data.rows.row import BadRow
    from counterpoint.recipes.commands.check_report import Totals, as_json, as_text

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    if arguments.messages and not arguments.json:
        raise ConfigError("--messages: add --json, or leave it out")
    defaults = Rules(effort=arguments.effort, policy=not arguments.no_policy)
    if arguments.tools:
        from counterpoint.data.formats.tool_files import declarations

        defaults = _with_tools(defaults, {"tools": declarations(arguments.tools)}, arguments.tools)
    totals = Totals()
    for row in _rows(arguments.files):
        judged = row if isinstance(row, BadRow) else _judge(row, defaults, arguments.messages)
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
    from counterpoint.data.rows.row import UnreadRow

    for file in files:
        if file != "-":
            yield from read_rows(file)
            continue
        for number, line in enumerate(sys.stdin.buffer, 1):
            text = line.removeprefix(b"\xef\xbb\xbf" if number == 1 else b"").strip()
            if text:
                yield UnreadRow(f"-:{number}", text).read()


def _judge(row: RawRow, defaults: Rules, with_messages: bool = False) -> Judged | BadRow:
    from dataclasses import replace

    from counterpoint.data.harmony.checker import judge, read
    from counterpoint.data.harmony.completion import finished_messages
    from counterpoint.data.harmony.official import harmony_accepts
    from counterpoint.data.harmony.vocabulary import load_vocabulary
    from counterpoint.data.rows.row import BadRow
    from counterpoint.recipes.commands.check_report import Judged

    try:
        value = row.value
        if not isinstance(value, Mapping):
            raise RowError("wrong_type", "row", "is not an object", 'write {"tokens": [...]} or {"text": "..."}')
        rules = _rules(value, defaults)
        ids, stop_added = _ids(value, rules)
    except RowError as error:
        return BadRow.of(row, error)
    reading = read(ids)
    checked = judge(reading, rules, load_vocabulary())
    if stop_added and reading.scan.spans[-1].header.faults:
        checked = replace(checked, violations=tuple(v for v in checked.violations if v.position != len(ids) - 1))
    messages = finished_messages(reading, load_vocabulary()) if with_messages else None
    return Judged(row.source, checked, harmony_accepts(ids), stop_added, messages)


def _ids(row: Mapping[str, Any], rules: Rules) -> tuple[list[int], bool]:
    """Ids of the row's completion, and whether the stop token that a server cut off was restored."""
    from counterpoint.data.harmony.checker import read
    from counterpoint.data.harmony.vocabulary import CALL, RETURN, load_vocabulary

    tokens, text = row.get("tokens"), row.get("text", row.get("response"))
    if tokens is not None:
        if not isinstance(tokens, list):
            raise RowError("wrong_type", "tokens", "is not a list", "write the completion's token ids")
        return tokens, False
    if text is None:
        raise RowError("no_completion", "tokens", "the row holds no completion", 'add "tokens": [...] or "text": "..."')
    if not isinstance(text, str):
        raise RowError("wrong_type", "text", "is not a string", "write the completion as raw Harmony text")
    ids = load_vocabulary().encode_with_specials(text)
    if rules.finish_reason not in _STOPPED:
        return ids, False
    found = read(ids).scan
    if found.state != "body":
        return ids, False
    return [*ids, CALL if found.spans[-1].header.recipient is not None else RETURN], True


def _rules(row: Mapping[str, Any], defaults: Rules) -> Rules:
    from dataclasses import replace

    rules = _with_tools(defaults, row, "")
    effort = row.get("effort", row.get("reasoning_effort"))
    if effort is not None:
        level = effort.strip().lower() if isinstance(effort, str) else ""
        if level not in _EFFORTS:
            raise RowError("bad_effort", "effort", f"is {str(effort)[:40]!r}", "write low, medium or high")
        rules = replace(rules, effort=level)
    reason = row.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise RowError("wrong_type", "finish_reason", "is not a string", "write stop, length, or leave it out")
    wanted = row.get("response_format")
    if not isinstance(wanted, (Mapping, bool, type(None))):
        raise RowError("wrong_type", "response_format", "is not an object", "write OpenAI's response_format, or true")
    structured = wanted.get("type") not in (None, "text") if isinstance(wanted, Mapping) else bool(wanted)
    return replace(rules, finish_reason=reason, response_format=structured)


def _with_tools(rules: Rules, row: Mapping[str, Any], source: str) -> Rules:
    """Tools that are given make the list complete: a call to any other is unknown, a built-in tool not offered."""
    from dataclasses import replace

    from counterpoint.data.harmony.argument_schema import schema_fault
    from counterpoint.data.harmony.tool_declarations import read_tools

    offered = row.get("builtin_tools")
    if offered is not None and not (isinstance(offered, list) and all(isinstance(name, str) for name in offered)):
        raise RowError("wrong_type", "builtin_tools", "is not a list of names", 'write ["python", "browser"]')
    if row.get("tools") is None:
        return rules if offered is None else replace(rules, builtin_tools=tuple(offered))
    read = read_tools(row["tools"], f"{source}: tools" if source else "tools")
    for tool in read.tools:
        if tool.parameters is not None and (fault := schema_fault(tool.parameters)) is not None:
            _tell_once(f"tool {tool.name[:80]}: its schema is broken, so its arguments are not checked: {fault}")
    return replace(rules, tools=read.tools, builtin_tools=(*read.builtin_tools, *(offered or ())))


@lru_cache(maxsize=1024)
def _tell_once(message: str) -> None:
    print(" ".join(message.split()), file=sys.stderr)
