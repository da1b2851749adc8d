"""What is trained, held against the strict checker that judges what a model samples: one opinion of what is right.

Every trained action goes through it as it is rendered. `data.bad_targets` says which broken rules cost the row; those
that do not are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Effort, Notice
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.harmony.checker import Reading, Rules, judge, read
from counterpoint.data.harmony.codes import CODES, Code, Violation
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import Example, actions_of


class Targets:
    """Judges the trained actions of conversations, by the settings of their renderer."""

    def __init__(self, renderer: Renderer) -> None:
        self._vocabulary = renderer.vocabulary
        groups = renderer.settings.bad_targets
        self._costs_row = frozenset(code.value for code in Code if getattr(groups, code.group) == "quarantine")

    def check(self, conversation: Conversation, examples: Iterable[Example], effort: Effort, into: RowCounter) -> None:
        """Counts the actions of `examples`, and the broken rules that are kept. RowError for one that costs the row.

        effort: the one that the conversation is rendered with; what follows a tool's result may answer at once.
        """
        judged = 0
        kept: list[tuple[str, str]] = []
        for broken in self._judged(conversation, examples, effort):
            judged += 1
            told: dict[str, str] = {}
            for violation, where in broken:
                if violation.code in self._costs_row:
                    raise _refused(violation, where)
                told.setdefault(violation.code, f"{where}: {violation.detail}")
            kept.extend(told.items())
        into.add_targets(conversation.source, judged, kept)

    def notices(self, conversation: Conversation, examples: Iterable[Example], effort: Effort) -> list[Notice]:
        """The broken rules of `check`, those that cost the row too."""
        told: list[Notice] = []
        for violation, where in chain.from_iterable(self._judged(conversation, examples, effort)):
            detail = violation.detail or CODES[violation.code]
            if violation.code in self._costs_row:
                detail = f"quarantined by data.bad_targets.{_group(violation)}: {detail}"
            told.append(Notice(violation.code, where, detail))
        return told

    def _judged(
        self, conversation: Conversation, examples: Iterable[Example], effort: Effort
    ) -> Iterator[list[tuple[Violation, str]]]:
        """Of each trained action the rules that its tokens with loss break, and where."""
        # Tools that a row does not declare may still be offered where it came from.
        tools, builtin_tools = conversation.tools or None, conversation.builtin_tools
        response_format = conversation.response_format
        first = Rules(tools, builtin_tools, effort, response_format)
        later = Rules(tools, builtin_tools, None, response_format)
        for example in examples:
            for number, (start, stop) in enumerate(actions_of(example)):
                weights_N = example.weights[start:stop]
                if not weights_N.any():
                    continue
                reading = read(example.ids[start:stop].tolist())
                checked = judge(reading, later if number or example.action else first, self._vocabulary)
                yield [
                    (violation, f"turn {example.turn + 1}, {_message_at(reading, violation.position)}")
                    for violation in checked.violations
                    if weights_N[violation.position] > 0
                ]


def _group(violation: Violation) -> str:
    return next(code.group for code in Code if code.value == violation.code)


def _refused(violation: Violation, where: str) -> RowError:
    what = f"{CODES[violation.code]} ({violation.detail})" if violation.detail else CODES[violation.code]
    fix = f"correct it, leave the row out, or set data.bad_targets.{_group(violation)}: keep"
    return RowError(violation.code, where, what, fix)


def _message_at(reading: Reading, position: int) -> str:
    """The message that holds a token, in words."""
    header = next((span.header for span in reading.spans if position <= span.body_end), None)
    if header is None:
        return f"token {position}"
    if header.recipient is not None:
        return f"call to {header.recipient[:60]}"
    return {"commentary": "preamble", None: "message"}.get(header.channel, header.channel or "")
