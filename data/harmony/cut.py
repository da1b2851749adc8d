"""Conversations that are too long as one example, ended behind the last turn that still fits (`data.too_long: cut`)."""

from __future__ import annotations

from dataclasses import replace

from counterpoint.data.conversation import Conversation, Notice
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.window import split_turns

CUT = "cut"


def cut_to_fit(conversation: Conversation, renderer: Renderer, max_tokens: int) -> Conversation | None:
    """The conversation up to the end of a turn, with which its example has at most `max_tokens` tokens; None where not
    even the first turn fits.

    The last such turn where more turns never make fewer tokens. That may differ under `train_on: last_turn`, where an
    earlier turn can have more reasoning than a later one.
    """
    turns = split_turns(conversation.messages)
    fitting, too_many = 0, len(turns)
    found = None
    while fitting + 1 < too_many:
        count = (fitting + too_many) // 2
        shorter = replace(conversation, messages=conversation.messages[: turns[count - 1].trained_stop])
        tree, too_long = renderer.tree(shorter, max_tokens)
        if len(tree) and not too_long:
            fitting, found = count, shorter
        else:
            too_many = count
    if found is None:
        return None
    what = f"ended after turn {fitting} of {len(turns)}, to fit into data.max_tokens"
    return replace(found, notices=(*found.notices, Notice(CUT, "messages", what)))
