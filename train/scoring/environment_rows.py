"""Rows of a task of one's own: each field is kept for the environment, and a prompt is read where there is one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.formats.read import convert_row, source_rows
from counterpoint.data.rows.row import BadRow, RawRow, read
from counterpoint.train.scoring.prompts import EvalPrompt, prompt_of


def load_rows(spec: SourceSettings) -> list[EvalPrompt]:
    """The rows of a file, in its order, whose conversations have the row as `metadata`; no messages where the row holds
    none that we can read. DataError for a row that is no JSON object, or none at all."""
    prompts = []
    for each in source_rows(spec):
        row = read(each)
        if isinstance(row, BadRow):
            raise DataError(row.message)
        if not isinstance(row.value, dict):
            raise DataError(f"{row.source}: not an object: an environment is given a row's fields by name")
        prompts.append(_prompt(row, spec.format))
    if not prompts:
        raise DataError(f"{spec.path}: no rows")
    return prompts


def of_environment(prompts: Sequence[EvalPrompt], name: str) -> tuple[list[EvalPrompt], list[str]]:
    """The rows whose field `environment` is `name`, and what the others name. DataError for none."""
    named = [prompt.conversation.metadata.get("environment") for prompt in prompts]
    kept = [prompt for prompt, own in zip(prompts, named, strict=True) if own == name]
    others = Counter("none" if own is None else f"`{own}`" for own in named if own != name)
    told = ", ".join(f"{own} ({count})" for own, count in others.items())
    if not kept:
        raise DataError(f"no row names the environment `{name}`: they name {told}")
    return kept, [f"rows of other environments are left out: they name {told}"] if others else []


def _prompt(row: RawRow, format: str) -> EvalPrompt:
    found = convert_row(row, format, ConversionSettings())
    if isinstance(found, Conversation) and found.messages:
        return _whole(prompt_of(found), row.value)
    return row_prompt(row.value, row.source)


def row_prompt(row: Mapping[str, Any], source: str) -> EvalPrompt:
    """A row without a prompt: read as a question without a text, for its id, its truth and its cluster."""
    blank = prompt_of(Conversation((Message("user", ""),), metadata=row, source=source))
    return _whole(replace(blank, conversation=replace(blank.conversation, messages=())), row)


def _whole(prompt: EvalPrompt, row: Mapping[str, Any]) -> EvalPrompt:
    return replace(prompt, conversation=replace(prompt.conversation, metadata=row), follow_ups=())
