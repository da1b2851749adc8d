"""Tables: a question and its answer in columns of their own, under names of well-known data sets or of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.calls import calls_of_value, json_of
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.content import content_text
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import as_list, describe, join
from counterpoint.data.formats.logs import add_logged_answer
from counterpoint.data.formats.meaning import ALL_THINKING_KEYS, is_said
from counterpoint.data.formats.message import add_messages
from counterpoint.data.formats.system_texts import SYSTEM_KEYS, add_row_system
from counterpoint.data.formats.tagged_messages import add_answer, add_system
from counterpoint.data.formats.thinking import is_thinking, thinking_of

Columns = Mapping[str, str]
"""Part of a row (`prompt`, `answer`, ...) -> the column that holds it."""

# (question, answer) of data sets that are trained as they are. An answer beside a reasoning column is one to train, an
# `answer` or `solution` alone is a reference for RL.
_PAIRS = (
    ("instruction", ("output", "response", "answer", "completion")),
    ("prompt", ("response", "completion", "output", "answer")),
    ("query", ("response", "answers")),
    ("question", ("response", "attempt")),
    ("user", ("assistant", "final")),
    ("human", ("assistant", "gpt")),
    ("input", ("output",)),
    ("inputs", ("targets",)),
)
_WITH_REASONING = (("question", "answer"), ("problem", "solution"), ("query", "answer"), ("problem", "answer"))
_CONTEXTS = ("input", "context")
_THINKING = (*ALL_THINKING_KEYS, "complex_cot", "thinking_trajectories")
_SYSTEMS = (*SYSTEM_KEYS, "developer")
# What a verifier needs: such a row is a prompt for RL, whatever else it has.
RL_SIGNS = (
    *("ground_truth", "reward_model", "ideal", "verification_info", "test_cases", "tests", "follow_ups", "scorer"),
    *("expected_answer", "expected_arguments", "data_source", "instruction_id_list", "call", "calls", "schema"),
)
# Columns that are answers to train, and what a verifier compares with, both.
_REFERENCES = frozenset({"answer", "answers", "solution", "target"})
_FIX = "write the answer as a string or as messages"


def columns_of(row: Mapping[str, Any]) -> Columns | None:
    """The columns of a row that is a table of a known kind; None where it is none."""
    names = {name.lower(): name for name in row if isinstance(name, str)}
    if any(is_said(row.get(names.get(sign, sign))) for sign in RL_SIGNS):
        return None
    held = {low: row[name] for low, name in names.items() if is_said(row[name])}
    thinking = next((name for name in _THINKING if name in held and is_thinking(held[name])), None)
    pairs = [(question, answer) for question, answers in _PAIRS for answer in answers]
    for question, answer in (*pairs, *(_WITH_REASONING if thinking else ())):
        if question not in names or answer not in names or not _asks(row[names[question]]):
            continue
        if not _answers(row[names[answer]], question, answer, held):
            continue
        found = {"prompt": names[question], "calls" if answer == "answers" else "answer": names[answer]}
        if question == "instruction" and (context := next((name for name in _CONTEXTS if name in names), None)):
            found["context"] = names[context]
        if thinking:
            found["thinking"] = names[thinking]
        if isinstance(held.get("history"), list):
            found["history"] = names["history"]
        return found
    return None


def _asks(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _answers(value: Any, question: str, answer: str, held: Mapping[str, Any]) -> bool:
    """Whether what is under an answer's name is one; of a number it is not told what it would be trained as."""
    if answer == "answers":
        return "tools" in held and isinstance(value, (str, list))
    if answer == "completion" or question == "instruction":
        return True
    return isinstance(value, (str, dict)) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def read_table(row: Mapping[str, Any], columns: Columns, draft: Draft) -> Conversation:
    """A row of a table. Of its parts only the answer is trained. Raises RowError."""
    declared = {**row, "tools": row.get(columns["tools"])} if "tools" in columns else row
    read_declarations(draft, declared, "")
    systems = {name for name in _SYSTEMS if name not in columns.values()} if "system" not in columns else set()
    read = DECLARATIONS | set(columns.values()) | systems
    read_common(draft, row, frozenset(read))
    for name in columns.values():
        if name in _REFERENCES and row.get(name) is not None:
            draft.metadata[name] = row[name]
    _add_system(draft, row, columns)
    draft.is_context = True
    _add_history(draft, row, columns)
    _add_prompt(draft, row, columns)
    draft.is_context = False
    _add_answer(draft, row, columns)
    return draft.finish()


def _add_system(draft: Draft, row: Mapping[str, Any], columns: Columns) -> None:
    if "system" not in columns:
        add_row_system(draft, row, keys=tuple(key for key in _SYSTEMS if key not in columns.values()))
    elif (text := content_text(row.get(columns["system"]), columns["system"], draft.options, draft.notice)) is not None:
        add_system(draft, text, columns["system"])


def _add_history(draft: Draft, row: Mapping[str, Any], columns: Columns) -> None:
    name = columns.get("history")
    if name is None or not is_said(row.get(name)):
        return
    turns = as_list(row[name], name)
    if isinstance(turns[0], dict):
        add_messages(draft, turns, name)
        return
    draft.is_context = False  # Alpaca's earlier answers are of the same author, and are trained
    for i, pair in enumerate(turns):
        where = f"{name}[{i}]"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            what = f"is {describe(pair)}" if not isinstance(pair, list) else f"holds {len(pair)} values"
            raise RowError("bad_history", where, what, 'write ["question", "answer"]')
        draft.user(pair[0], f"{where}[0]")
        add_answer(draft, where, text=pair[1], text_field=f"{where}[1]")
    draft.is_context = True


def _add_prompt(draft: Draft, row: Mapping[str, Any], columns: Columns) -> None:
    name = columns["prompt"]
    prompt, context = row.get(name), row.get(columns.get("context", ""))
    if isinstance(prompt, str) and isinstance(context, str) and context:
        prompt = f"{prompt}\n{context}"
    add_prompt(draft, prompt, name, known=name in row)


def add_prompt(draft: Draft, prompt: Any, field: str, known: bool = True) -> None:
    """A prompt: a string is the user's message. Raises RowError."""
    if isinstance(prompt, str):
        draft.user(prompt, field)
    elif isinstance(prompt, list):
        add_messages(draft, prompt, field)
    else:
        what = f"is {describe(prompt)}" if known else "missing"
        raise RowError("wrong_type", field, what, "write the prompt as a string or as messages")


def _add_answer(draft: Draft, row: Mapping[str, Any], columns: Columns) -> None:
    thinking = None
    if "thinking" in columns:
        thinking = thinking_of(draft, row, "", (columns["thinking"],))
    name = columns.get("calls")
    if name is not None and is_said(row.get(name)):
        value = row[name]
        listed = json_of(value, name) if isinstance(value, str) else value
        calls = calls_of_value(listed, name)
        text = row.get(columns.get("answer", ""))
        draft.assistant(name, thinking=thinking, text=text if isinstance(text, str) else None, calls=calls)
        return
    name = columns.get("answer", "answer")
    answer = row.get(name)
    if not is_said(answer) and not isinstance(answer, str):
        raise RowError("no_answer", name, f"is {describe(answer)}" if name in row else "missing", _FIX)
    if isinstance(answer, dict) and thinking is not None and not any(answer.get(key) for key in ALL_THINKING_KEYS):
        answer, thinking = {"thinking": thinking, **answer}, None
    if isinstance(answer, str):
        add_answer(draft, join("", name), text=answer, text_field=name, thinking=thinking)
    else:
        add_logged_answer(draft, answer, name)
