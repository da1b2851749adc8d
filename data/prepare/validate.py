"""What every row of some sources is: usable as a conversation, a preference or a prompt, or bad and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, SourceSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.formats.convert import Converted, trainable
from counterpoint.data.formats.read import convert_row, source_rows
from counterpoint.data.harmony.prompt import Openings
from counterpoint.data.harmony.served_messages import ServedMessages, leading_of
from counterpoint.data.harmony.serving import form_of
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.harmony.window import split_actions, split_turns
from counterpoint.data.rows.row import BadRow

Use = Literal["any", "sft", "dpo", "rl"]


def as_json(counter: RowCounter) -> dict[str, Any]:
    """The last object of `validate --json`, as plain types."""
    return {
        "rows": counter.rows,
        "ok": counter.n_good,
        "bad": counter.n_bad,
        "kinds": dict(counter.kinds),
        "formats": dict(counter.formats),
        "bad_by_kind": dict(counter.bad),
        "notices_by_kind": dict(counter.notices),
        "unused_fields": {
            name: {"rows": count, "sample": counter.unused_samples.get(name, "")}
            for name, count in counter.unused.most_common()
        },
    }


def validate(
    sources: Iterable[SourceSettings | str],
    options: ConversionSettings | None = None,
    *,
    use: Use = "any",
    on_bad: Callable[[BadRow], None] | None = None,
    on_row: Callable[[RowCounter], None] | None = None,
) -> RowCounter:
    """Reads every row once, whatever the weights of the sources; memory stays flat.

    use: what the rows are for: `sft` refuses rows without a trained answer, `dpo` all but pairs, `rl` pairs. on_bad is
    called with each bad row, on_row after each row. Raises DataError where a source does not exist.

    Rows that the server of `data.serving` cannot be sent are bad; `options` that do not say it stand for the default.
    """
    options = options or ConversionSettings()
    result = RowCounter()
    writes = _Writes(options if isinstance(options, RenderSettings) else RenderSettings())
    for source in sources:
        spec = SourceSettings(path=source) if isinstance(source, str) else source
        for row in source_rows(spec):
            outcome = row if isinstance(row, BadRow) else convert_row(row, spec.format, options)
            if not isinstance(row, BadRow) and not isinstance(outcome, BadRow):
                try:
                    _check_use(outcome, use)
                    writes.check(outcome)
                except RowError as error:
                    outcome = BadRow.of(row, error)
            result.add(outcome)
            if isinstance(outcome, BadRow) and on_bad is not None:
                on_bad(outcome)
            if on_row is not None:
                on_row(result)
    return result


def _check_use(converted: Converted, use: Use) -> None:
    if use == "dpo" and not isinstance(converted, Preference):
        raise RowError("not_a_preference", "row", "no pair of answers", "write prompt, chosen and rejected")
    if use in ("sft", "rl") and isinstance(converted, Preference):
        raise RowError("preference", "row", "a preference pair, not a conversation", "use it in a dpo recipe")
    if use == "sft" and isinstance(converted, Conversation):
        trainable(converted)


class _Writes:
    """Whether the server of `data.serving` can write a row: its tools, checked once for each distinct set, and what its
    prompts hold of the messages."""

    def __init__(self, settings: RenderSettings) -> None:
        self._form = form_of(settings)
        self._cleaned = settings.tool_schemas == "cleaned"
        self._openings: Openings | None = None

    def check(self, converted: Converted) -> None:
        conversation = converted.prompt if isinstance(converted, Preference) else converted
        messages = conversation.messages
        if self._form.in_turn == "served":
            actions = [action for turn in split_turns(messages) for action in split_actions(messages, turn)]
            served = ServedMessages(messages, self._form, leading_of(conversation, self._form))
            for _ in served.seen([action.start for action in actions]):
                pass
        if not conversation.tools and not conversation.response_formats:
            return
        if self._openings is None:
            self._openings = Openings(load_vocabulary(), self._form, self._cleaned)
        self._openings.developer(None, conversation.tools, conversation.response_formats)
