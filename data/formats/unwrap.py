"""Rows inside of something else: logs of requests and responses, batch files, traces, pages of a viewer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.message import holds_messages

_REQUEST = ("messages", "input", "prompt", "contents")
_ANSWER = ("choices", "output", "output_text", "completion", "content", "candidates")
_SAVE = "write one row a line"


def unwrapped(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str | None]:
    """(the row inside, what was around it); the row itself and None where there is nothing around it. Raises RowError
    where there are many rows inside, or answers without what they answer."""
    _refuse_many(row)
    for key in ("item", "row"):
        inner = row.get(key)
        if isinstance(inner, dict) and inner and not holds_messages(row.get("messages")):
            rest = {name: value for name, value in row.items() if name not in (key, "row_idx", "truncated_cells")}
            return {**rest, **inner}, key
    for found in (_exchange(row), _trace(row)):
        if found is not None:
            return found
    return row, None


def _refuse_many(row: Mapping[str, Any]) -> None:
    rows = row.get("rows")
    if (
        isinstance(rows, list)
        and rows
        and all(isinstance(one, dict) and isinstance(one.get("row"), dict) for one in rows)
    ):
        what = f"a page of a data set's viewer with {len(rows)} rows"
        raise RowError("rows_in_row", "rows", what, f"{_SAVE}: what is under `row` of each")
    numbered = bool(row) and all(isinstance(key, str) and key.isdigit() for key in row)
    if numbered and all(isinstance(value, dict) for value in row.values()):
        what = f"{len(row)} rows by their numbers"
        raise RowError("rows_in_row", "row", what, f'{_SAVE}, with pandas as to_json(orient="records", lines=True)')


def _exchange(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """A request and its response as one row: `request` and `response`, or `body` of a batch file."""
    key = next((key for key in ("request", "body") if isinstance(row.get(key), dict)), None)
    response = _body(row.get("response"))
    if key is None:
        if "custom_id" in row and isinstance(response, dict) and not any(name in row for name in _REQUEST):
            what = "an answer of a batch without its request"
            raise RowError("no_request", "response", what, "put the request with the same custom_id under `request`")
        return None
    request = _body(row[key])
    if not isinstance(request, dict) or not any(name in request for name in _REQUEST):
        return None
    rest = {name: value for name, value in row.items() if name not in (key, "response", "method", "url")}
    if response is None:
        return {**rest, **request}, key
    if isinstance(response, dict) and "input" not in request and isinstance(response.get("choices"), list):
        return {**rest, **request, "choices": response["choices"]}, f"{key} and response"
    return {**rest, **request, "response": response}, f"{key} and response"


def _body(value: Any) -> Any:
    """What a logged request or response carries."""
    return value["body"] if isinstance(value, dict) and isinstance(value.get("body"), dict) else value


def _trace(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], str] | None:
    """Exports of LangSmith (`inputs`, `outputs`) and Langfuse (`input`, `output`)."""
    for asked, answered in (("inputs", "outputs"), ("input", "output")):
        question, answer = row.get(asked), row.get(answered)
        if not isinstance(question, dict) or answered not in row:
            continue
        messages = question.get("messages")
        if isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], list):
            messages = messages[0]
        rest = {name: value for name, value in row.items() if name not in (asked, answered)}
        if holds_messages(messages):
            return {**rest, **question, "messages": messages, "output": _generated(answer)}, f"{asked} and {answered}"
        texts = [value for value in question.values() if isinstance(value, str)]
        said = [answer] if isinstance(answer, str) else list(answer.values()) if isinstance(answer, dict) else []
        if len(texts) == len(said) == len(question) == 1 and isinstance(said[0], str):
            return {**rest, "input": texts[0], "output": said[0]}, f"{asked} and {answered}"
    return None


def _generated(answer: Any) -> Any:
    """The message of a traced answer."""
    generations = answer.get("generations") if isinstance(answer, dict) else None
    while isinstance(generations, list) and generations:
        generations = generations[0]
    if isinstance(generations, dict):
        return generations.get("message", generations.get("text"))
    if isinstance(answer, dict) and not any(key in answer for key in ("role", *_ANSWER)):
        inner = next(
            (answer[key] for key in ("output", "message", "messages", "answer", "response") if key in answer), None
        )
        return answer if inner is None else inner
    return answer
