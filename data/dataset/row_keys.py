"""Hashes by which rows are told apart, wherever they stand and whatever their format."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from counterpoint.data.conversation import Conversation, Message, Preference
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.prepared.trees import RowKeys


def keys_of(row: Conversation | Preference) -> RowKeys:
    """The keys of a row: texts are compared without the space around them."""
    conversation = row.prompt if isinstance(row, Preference) else row
    messages = conversation.messages
    opening = (conversation.instructions or "").strip(), repr(conversation.opening_ids)
    prompt = next((n for n, message in enumerate(messages) if message.role == "assistant"), len(messages))
    asked = len(messages)
    if not isinstance(row, Preference) and messages and messages[-1].role == "assistant":
        while asked and messages[asked - 1].role in ("assistant", "tool"):
            asked -= 1
    sides = (
        [message for side in (row.chosen, row.rejected) for message in (*side, None)]
        if isinstance(row, Preference)
        else []
    )
    return RowKeys(
        _hash(opening, messages[:prompt]), _hash(opening, messages[:asked]), _hash(opening, [*messages, *sides])
    )


def keys_of_tree(tree: ExampleTree) -> RowKeys:
    """Of a row of which only tokens are left: its prompt is what comes before the first target."""
    whole = _digest(tree.ids.tobytes() + tree.node_length.tobytes())
    first = int(tree.run_start.min(initial=len(tree.ids)))
    return RowKeys(_digest(tree.ids[:first].tobytes()), whole, whole)


def _hash(opening: tuple[str, str], messages: Sequence[Message | None]) -> int:
    parts = [*opening]
    for message in messages:
        if message is None:
            parts.append("\x1e")
        elif message.raw_ids is not None:
            parts += [message.role, repr(message.raw_ids)]
        else:
            parts += [message.role, message.channel or "", message.recipient or "", message.content.strip()]
    return _digest("\x1f".join(parts).encode("utf-8", "surrogatepass"))


def _digest(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
