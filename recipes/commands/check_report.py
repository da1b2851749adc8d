"""What `counterpoint check` prints: a line or an object a row, and rates with Wilson intervals at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from counterpoint.data.harmony.checker import Checked
from counterpoint.data.harmony.codes import CODES
from counterpoint.data.harmony.completion import FinishedMessage
from counterpoint.data.intervals import wilson
from counterpoint.data.rows.row import BadRow


@dataclass(frozen=True, slots=True)
class Judged:
    """One row's verdict. harmony_accepts: openai-harmony's parser takes it. stop_added: the stop token was restored.
    messages: what was read, where it is asked for. skipped: ids of the prompt that stood before the completion."""

    source: str
    checked: Checked
    harmony_accepts: bool
    stop_added: bool
    messages: list[FinishedMessage] | None = None
    skipped: int = 0


def as_text(row: Judged) -> str:
    """A line for each violation, `file:line: code@position: detail`; one line `ok` without any. Then the messages."""
    lines = [f"{v.code}@{v.position}: {_printable(v.detail)}" for v in row.checked.violations] or ["ok"]
    if row.skipped:
        lines.append(f"a prompt was left in: {row.skipped} tokens before the completion are not judged")
    for message in row.messages or ():
        to = f" to {message['recipient']}" if message["recipient"] else ""
        lines.append(_printable(f"{message['channel']}{to}: {message['text']}"))
    return "".join(f"{row.source}: {line}\n" for line in lines)


def as_json(row: Judged | BadRow, number: int) -> str:
    """`number` counts rows from 1."""
    if isinstance(row, BadRow):
        return _line({"row": number, "source": row.source, "error": row.message})
    messages = {} if row.messages is None else {"messages": row.messages}
    return _line(
        {
            "row": number,
            "source": row.source,
            "violations": [asdict(violation) for violation in row.checked.violations],
            "harmony_accepts": row.harmony_accepts,
            "recipient_position": row.checked.recipient_position,
            "stop_added": row.stop_added,
            "prompt_tokens": row.skipped,
            **messages,
        }
    )


@dataclass(slots=True)
class Totals:
    """Counts over all rows; memory does not grow with them."""

    rows: int = 0
    bad: int = 0
    correct: int = 0
    accepted: int = 0
    stops_added: int = 0
    prompts_left_in: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    positions: Counter[str] = field(default_factory=Counter)

    @property
    def read(self) -> int:
        return self.rows - self.bad

    def add(self, row: Judged | BadRow) -> None:
        self.rows += 1
        if isinstance(row, BadRow):
            self.bad += 1
            return
        self.correct += row.checked.ok
        self.accepted += row.harmony_accepts
        self.stops_added += row.stop_added
        self.prompts_left_in += row.skipped > 0
        self.codes.update(row.checked.codes)
        if row.checked.recipient_position is not None:
            self.positions[row.checked.recipient_position] += 1

    def json(self) -> str:
        return _line(
            {
                "rows": self.read,
                "bad_rows": self.bad,
                "correct": self._rate(self.correct),
                "harmony_accepts": self._rate(self.accepted),
                "recipient_positions": {name: self.positions[name] for name in ("role", "channel", "mixed")},
                "stops_added": self.stops_added,
                "prompts_left_in": self.prompts_left_in,
                "rates": {code: self._rate(self.codes[code]) for code in CODES},
            }
        )

    def table(self) -> str:
        positions = ", ".join(f"{name} {self.positions[name]}" for name in ("channel", "role", "mixed"))
        lines = [
            "",
            f"{self.read} rows checked, {self.bad} could not be read",
            self._told("fully correct", self.correct),
            self._told("accepted by openai-harmony", self.accepted),
            f"recipients are in: {positions}",
        ]
        if self.stops_added:
            lines.append(f"stop token restored (the log lacks it): {self.stops_added}")
        if self.prompts_left_in:
            lines.append(f"prompts left in before the completion, not judged: {self.prompts_left_in}")
        if self.read:
            lines.append("")
            found = sorted((code for code in CODES if self.codes[code]), key=lambda code: -self.codes[code])
            lines += [f"{self._told(code, self.codes[code])}  {CODES[code]}" for code in found]
            others = len(CODES) - len(found)
            lines.append(f"{others} other codes: none, each at most {100 * wilson(0, self.read)[1]:.1f} %")
        return "\n".join(lines) + "\n"

    def _told(self, name: str, count: int) -> str:
        if not self.read:
            return f"{name:<30} -"
        low, high = wilson(count, self.read)
        return f"{name:<30} {count:>7}  {100 * count / self.read:5.1f} %  ({100 * low:.1f} to {100 * high:.1f})"

    def _rate(self, count: int) -> dict[str, Any]:
        low, high = wilson(count, self.read)
        return {"count": count, "rate": count / self.read if self.read else None, "low": low, "high": high}


def _line(value: dict[str, Any]) -> str:
    return orjson.dumps(value).decode() + "\n"


def _printable(text: str) -> str:
    """Control characters would reach the terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
