"""What `init` sees in data files: what the rows are for, how long they are, and which of them can be asked."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from counterpoint.configs.errors import DataError
from counterpoint.configs.schema import DataSettings
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.counts.counter import Item, RowCounter
from counterpoint.data.dataset.row_keys import keys_of
from counterpoint.data.formats.harmony_row import harmony_row
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.prepare.validate import validate
from counterpoint.data.rows.row import BadRow
from counterpoint.train.scoring.prompts import EvalPrompt, prompt_of

PROMPTS, LONGEST, SHORT_ANSWER = 32, 8, 60
_TRUTH_OF_ROW = ("answer", "ground_truth", "solution", "answers", "target", "choices", "options", "call", "calls")
_TRUTH_OF_ROW += ("schema", "scorer", "instruction_id_list", "kwargs", "source_dataset", "metadata", "reward_model")


@dataclass
class Look:
    """counter: of all rows. rows: usable ones of `use`. thoughtless: conversations without any thinking. longest: the
    conversations with the most characters.

    asked: rows to ask with their prompt and truth, those with a truth first, in an order that the rows' hashes give.
    """

    counter: RowCounter = field(default_factory=RowCounter)
    seconds: float = 0.0
    use: Literal["sft", "dpo"] = "sft"
    rows: int = 0
    thoughtless: int = 0
    longest: list[Conversation] = field(default_factory=list)
    asked: list[tuple[Conversation, EvalPrompt, dict[str, Any]]] = field(default_factory=list)

    @property
    def thinks(self) -> bool:
        """Whether at least half of the conversations show thinking, or all is about pairs."""
        return self.use != "sft" or 2 * self.thoughtless <= self.rows

    @property
    def judged(self) -> int:
        """Rows to ask that have a truth."""
        return sum(bool(truth) for _, _, truth in self.asked)

    def write_prompts(self, to: Path) -> int:
        """How many there are; nothing is written for none."""
        if self.asked:
            rows = ({**harmony_row(prompt.conversation), "id": prompt.id, **truth} for _, prompt, truth in self.asked)
            to.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return len(self.asked)


def look(data: DataSettings) -> Look:
    """Reads every row once. DataError where none can be trained."""
    found = Look()
    longest: list[tuple[int, int, Conversation]] = []
    drawn: dict[int, tuple[int, Conversation]] = {}
    pairs = 0

    def see(item: Item) -> None:
        nonlocal pairs
        if isinstance(item, BadRow):
            return
        if isinstance(item, Preference):
            pairs += 1
            return
        if not split_turns(item.messages):
            return
        found.rows += 1
        found.thoughtless += not any(message.channel == "analysis" for message in item.messages)
        entry = (sum(len(message.content) for message in item.messages), found.rows, item)
        (heapq.heappush if len(longest) < LONGEST else heapq.heappushpop)(longest, entry)
        key = keys_of(item).asked
        drawn.setdefault(key, (key, item))
        if len(drawn) > 8 * PROMPTS:
            del drawn[max(drawn)]

    started = time.monotonic()
    found.counter = validate(data.train, data, on_item=see)
    found.seconds = time.monotonic() - started
    if pairs > found.rows:
        found.use, found.rows = "dpo", pairs
    elif not found.rows:
        reads = data.train[0].path
        raise DataError(
            f"{reads}: no row holds an answer to train: `counterpoint validate {reads}` says why; prompts with their "
            "truth alone are for `recipe: grpo` (`counterpoint configs ls`)"
        )
    found.longest = [conversation for *_, conversation in longest]
    if found.use == "sft":
        asked = [ask for _, (_, item) in sorted(drawn.items()) if (ask := _asked(item)) is not None]
        asked.sort(key=lambda ask: not ask[2])
        found.asked = asked[: min(PROMPTS, found.rows // 10)]
    return found


def _asked(row: Conversation) -> tuple[Conversation, EvalPrompt, dict[str, Any]] | None:
    """A row as a prompt with its truth; None where it is kept as ids, or its truth cannot be read."""
    if row.opening_ids is not None or any(message.raw_ids is not None for message in row.messages):
        return None
    try:
        prompt = prompt_of(row)
    except DataError:
        return None
    if prompt.scorer is not None:
        return row, prompt, {key: row.metadata[key] for key in _TRUTH_OF_ROW if key in row.metadata}
    return row, prompt, _truth(row, len(prompt.conversation.messages))


def _truth(row: Conversation, start: int) -> dict[str, Any]:
    """Of the action that the row itself answers with: its calls, or a final that is short enough to be compared."""
    calls = []
    for message in row.messages[start:]:
        if message.is_call:
            try:
                arguments = json.loads(message.content)
            except ValueError:
                return {}
            if not isinstance(arguments, dict):
                return {}
            calls.append({"name": message.recipient, "arguments": arguments})
        elif message.role == "tool" or message.is_final:
            break
    if calls:
        return {"calls": calls}
    finals: Sequence[str] = [message.content.strip() for message in row.messages[start:] if message.is_final]
    short = finals and len(finals[0]) <= SHORT_ANSWER and "\n" not in finals[0]
    return {"answer": finals[0]} if short else {}
