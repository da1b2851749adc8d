"""Content of a message as one text: strings, lists of parts, and what gpt-oss cannot read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.formats.fields import as_text, describe, one_of, wrong_type

TEXT_TYPES = frozenset({"text", "input_text", "output_text", "summary_text", "reasoning_text"})
_MEDIA = {
    "image_url": "image",
    "image": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "input_audio": "audio",
    "audio": "audio",
    "audio_url": "audio",
    "file": "file",
    "input_file": "file",
    "document": "file",
    "image_file": "image",
    "inlineData": "file",
    "inline_data": "file",
    "fileData": "file",
    "file_data": "file",
}
_TEXT_KEYS = ("text", "value", "content")
# Columns that hold media, as ms-swift, LLaMA-Factory and TRL name them.
MEDIA_COLUMNS = {
    **dict.fromkeys(("image", "images", "image_url", "image_urls", "image_path", "image_paths"), "image"),
    **dict.fromkeys(("video", "videos", "video_url", "video_path"), "video"),
    **dict.fromkeys(("audio", "audios", "audio_url", "audio_path"), "audio"),
}

AddNotice = Callable[[str, str, str], None]


def content_text(value: Any, field: str, options: ConversionSettings, notice: AddNotice) -> str | None:
    """Text of `content`; None where absent. Text parts are joined without a separator. Raises RowError."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, dict):
        return part_text(value, field, options, notice)
    if not isinstance(value, list):
        raise wrong_type(value, field, "a string or a list of text parts")
    texts = [part_text(part, f"{field}[{i}]", options, notice) for i, part in enumerate(value)]
    if len(texts) > 1:
        notice("joined_parts", field, f"{len(texts)} text parts were joined")
    return "".join(texts)


def part_text(part: Any, field: str, options: ConversionSettings, notice: AddNotice) -> str:
    """Text of one content part; media are refused or written as a placeholder."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise wrong_type(part, field, 'a text part {"type": "text", "text": "..."}')
    kind = part.get("type", part.get("content_type"))
    if isinstance(part.get("parts"), list):
        return content_text(part["parts"], f"{field}.parts", options, notice) or ""
    if one_of(kind, TEXT_TYPES) or (kind is None and "text" in part):
        name = next((key for key in _TEXT_KEYS if part.get(key) is not None), "text")
        for key, value in part.items():
            if key not in ("type", "content_type", name) and value:
                notice("part_field", f"{field}.{key}", "next to the text of a part: not rendered")
        return as_text(part.get(name), f"{field}.{name}")
    if kind == "refusal":
        notice("refusal", field, "a refusal was taken as text")
        return as_text(part.get("refusal"), f"{field}.refusal")
    if (held := media_name(part)) is not None:
        return media(held, field, options, notice)
    name = kind[:40] if isinstance(kind, str) else describe(kind)
    raise RowError("unknown_part", field, f"a content part of unknown type ({name})", "write text parts only")


def media_name(part: dict[str, Any]) -> str | None:
    """What a part holds that is no text, by its type or its only field."""
    kind = part.get("type")
    if kind is None:
        kind = next((key for key in part if key in _MEDIA), None)
    return _MEDIA.get(kind) if isinstance(kind, str) else None


def media(name: str, field: str, options: ConversionSettings, notice: AddNotice) -> str:
    if options.images == "placeholder":
        notice("media_placeholder", field, f"{name} was written as [{name}]")
        return f"[{name}]"
    fix = "describe it in text, or set data.images: placeholder"
    raise RowError("media", field, f"holds {name}, which gpt-oss cannot read", fix)
