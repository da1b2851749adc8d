"""Loss flags: which answers a row says are to be trained, in the words of every tool that has such words.

A value outside the table is no flag: it is reported, and never becomes a weight. Of several flags all are obeyed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from counterpoint.configs.errors import RowError
from counterpoint.data.formats.call_pairing import AddNotice
from counterpoint.data.formats.fields import describe, join

Level = Literal["message", "row"]
_LARGEST_OF_ROW = 10.0
_WORDS = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0}


@dataclass(frozen=True, slots=True)
class Flag:
    """A field that says whether something is trained.

    type: `number` from 0 on, or `switch` (true, false, 1, 0). trains: what a switch that is on means. tool: who writes
    it so.
    """

    name: str
    level: Level
    type: Literal["number", "switch"]
    trains: bool
    tool: str


FLAGS = (
    Flag("weight", "message", "number", True, "OpenAI"),
    Flag("weight", "row", "number", True, "Counterpoint"),
    Flag("loss", "message", "switch", True, "ms-swift"),
    Flag("loss", "row", "switch", True, "ms-swift"),
    Flag("loss_scale", "message", "number", True, "ms-swift"),
    Flag("loss_scale", "row", "number", True, "ms-swift"),
    Flag("loss_weight", "message", "number", True, "LLaMA-Factory"),
    Flag("loss_weight", "row", "number", True, "LLaMA-Factory"),
    Flag("train", "message", "switch", True, "Axolotl"),
    Flag("train", "row", "switch", True, "Axolotl"),
    Flag("training", "message", "switch", True, "Axolotl"),
    Flag("training", "row", "switch", True, "Axolotl"),
    Flag("trainable", "message", "switch", True, "Tinker"),
    Flag("trainable", "row", "switch", True, "Tinker"),
    Flag("loss_mask", "message", "switch", True, "verl"),
    Flag("loss_mask", "row", "switch", True, "verl"),
    Flag("step_loss_mask", "message", "switch", True, "slime"),
    Flag("masked", "message", "switch", False, "torchtune"),
    Flag("masked", "row", "switch", False, "torchtune"),
    Flag("mask", "message", "switch", False, "NeMo"),
    Flag("mask", "row", "switch", False, "NeMo"),
)
_BY_LEVEL: dict[Level, tuple[Flag, ...]] = {
    "message": tuple(flag for flag in FLAGS if flag.level == "message"),
    "row": tuple(flag for flag in FLAGS if flag.level == "row"),
}
MESSAGE_FLAGS = frozenset(flag.name for flag in _BY_LEVEL["message"])
ROW_FLAGS = frozenset(flag.name for flag in _BY_LEVEL["row"])
# Axolotl trains spans of characters with these: no message of Harmony is trained by halves.
SPAN_FLAGS = frozenset({"train_detail", "training_detail"})
_OF_MESSAGE = MESSAGE_FLAGS | SPAN_FLAGS


def message_weight(message: Mapping[str, Any], field: str, notice: AddNotice) -> float:
    """The factor on the loss of an assistant's message; 1 where nothing is said.

    Raises RowError where `weight` is none, and where only a part of the message would be trained.
    """
    weight = 1.0
    if _OF_MESSAGE.isdisjoint(message):
        return weight
    for flag in _BY_LEVEL["message"]:
        if (value := message.get(flag.name)) is not None:
            weight *= _read(flag, value, join(field, flag.name), notice)
    for name in SPAN_FLAGS:
        if _leaves_out(message.get(name)):
            what = "trains a part of the message"
            raise RowError("part_trained", join(field, name), what, "say train: false, or make the parts messages")
    return weight


def row_weight(row: Mapping[str, Any], notice: AddNotice) -> float:
    """The factor on the loss of a whole row; lists of flags, one a message, are those of the messages."""
    weight = 1.0
    for flag in _BY_LEVEL["row"]:
        value = row.get(flag.name)
        if value is not None and not isinstance(value, list) and not masked_speaker(flag.name, value):
            weight *= _read(flag, value, flag.name, notice)
    return weight


def masked_speaker(name: str, value: Any) -> str | None:
    """The speaker whom a row's `mask` of NeMo names."""
    return value.strip() if name == "mask" and isinstance(value, str) and value.strip().isalpha() else None


def each_message(row: Mapping[str, Any], n_messages: int, notice: AddNotice) -> list[float] | None:
    """The factors of the messages where a row lists them (`loss_mask: [0, 1]`); None where it does not."""
    weights: list[float] | None = None
    for flag in _BY_LEVEL["row"]:
        values = row.get(flag.name)
        if not isinstance(values, list):
            continue
        if len(values) != n_messages:
            notice("no_loss_flag", flag.name, f"{len(values)} values for {n_messages} messages: not obeyed")
            continue
        found = [_read(flag, value, f"{flag.name}[{i}]", notice) for i, value in enumerate(values)]
        weights = [a * b for a, b in zip(weights, found, strict=True)] if weights else found
    return weights


def trains_unasked(message: Mapping[str, Any]) -> str | None:
    """The flag by which a message that is not the assistant's asks to be trained; None where there is none."""
    if _OF_MESSAGE.isdisjoint(message):
        return None
    for flag in _BY_LEVEL["message"]:
        value = message.get(flag.name)
        if value is not None and (flag.name == "weight" or (value not in (0, False, "false", "0")) == flag.trains):
            return flag.name
    return None


def _read(flag: Flag, value: Any, field: str, notice: AddNotice) -> float:
    number = _number(value)
    if flag.name == "weight" and flag.level == "message":
        if number is None or isinstance(value, (bool, str)) or not 0 <= number < math.inf:
            what = f"is {value}" if isinstance(value, (int, float)) else f"is {describe(value)}"
            raise RowError("bad_weight", field, what, "write 0, 1 or a positive number")
        return number
    if flag.type == "switch" and number in (0.0, 1.0):
        return number if flag.trains else 1.0 - number
    if flag.type == "number" and number is not None and 0 <= number <= _LARGEST_OF_ROW:
        return number
    wanted = "true or false" if flag.type == "switch" else f"a number from 0 to {_LARGEST_OF_ROW:g}"
    shown = repr(value)[:40] if isinstance(value, (int, float, str)) else describe(value)
    notice("no_loss_flag", field, f"is {shown}, not {wanted} as {flag.tool} writes it: not obeyed")
    return 1.0


def _number(value: Any) -> float | None:
    """A bool, a number or one of the words that a CSV file has for them."""
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return float(value) if isinstance(value, (bool, int, float)) and abs(value) < _EXACT else None


_EXACT = 2**53


def _leaves_out(spans: Any) -> bool:
    return isinstance(spans, list) and any(isinstance(span, dict) and span.get("train") is False for span in spans)
