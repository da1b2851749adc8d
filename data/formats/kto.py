"""Rated answers as KTO has them: `prompt` and `completion` or a chat, and a `label` (LLaMA-Factory: `kto_tag`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.data.conversation import Conversation, Notice
from counterpoint.data.formats.chat import chat_messages, read_chat
from counterpoint.data.formats.completion import read_completion
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.fields import wrong_type

LABELS = ("label", "kto_tag")


def looks_like(row: Mapping[str, Any]) -> bool:
    return _label(row) is not None and ("completion" in row or chat_messages(row) is not None)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """The conversation, with the label as metadata. Raises RowError."""
    label = _label(row)
    if label is None:
        raise wrong_type(row.get("label"), "label", "true for a wanted answer, false for an unwanted one")
    draft = Draft("kto", options)
    rest = {key: value for key, value in row.items() if key not in LABELS}
    conversation = read_completion(rest, draft) if chat_messages(row) is None else read_chat(rest, draft)
    notices = conversation.notices
    if not label:
        told = Notice("unwanted_answer", "label", "false: never trained by sft, compared by dpo.losses: kto")
        notices = (*notices, told)
    return replace(conversation, metadata={**conversation.metadata, "label": label}, notices=notices)


def _label(row: Mapping[str, Any]) -> bool | None:
    """TRL's and ms-swift's `label`, LLaMA-Factory's `kto_tag`."""
    return next((row[key] for key in LABELS if isinstance(row.get(key), bool)), None)
