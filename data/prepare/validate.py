"""What every row of some sources is: usable as a conversation, a preference or a prompt, or bad and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Literal

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, SourceSettings
from counterpoint.configs.errors import DataError, RowError
from counterpoint.data.conversation import Conversation, Notice, Preference
from counterpoint.data.counts.counter import Item, RowCounter
from counterpoint.data.dataset.targets import Targets
from counterpoint.data.formats.convert import Converted, trainable
from counterpoint.data.formats.read import convert_row, source_rows
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.served_messages import ServedMessages, leading_of
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
        "actions": counter.actions,
        "bad_targets": dict(counter.bad_targets),
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
    on_item: Callable[[Item], None] | None = None,
    truth: Callable[[Conversation], str | None] | None = None,
) -> RowCounter:
    """Reads every row once, whatever the weights of the sources; memory stays flat.

    use: what the rows are for: `sft` refuses rows without a trained answer, `dpo` all but pairs, `rl` pairs. on_bad is
    called with each bad row, on_item with each row, on_row after it. truth, for `rl`: the comparison that fits what a
    row knows to be right, None where it knows nothing (notice `no_truth`), DataError where training would refuse it.
    Raises DataError where a source does not exist.

    Rows that the server of `data.serving` cannot be sent are bad, and those whose trained actions break a rule that
    `data.bad_targets` makes cost the row; `options` that do not say these stand for the defaults.
    """
    options = options or ConversionSettings()
    result = RowCounter()
    judge = _Judge(options if isinstance(options, RenderSettings) else RenderSettings(), result)
    for source in sources:
        spec = SourceSettings(path=source) if isinstance(source, str) else source
        for row in source_rows(spec):
            outcome = row if isinstance(row, BadRow) else convert_row(row, spec.format, options)
            if not isinstance(row, BadRow) and not isinstance(outcome, BadRow):
                try:
                    _check_use(outcome, use)
                    judge.check_prompts(outcome)
                    if use != "rl":
                        judge.check_targets(outcome)
                    elif truth is not None and isinstance(outcome, Conversation):
                        outcome = _with_truth(outcome, truth)
                except RowError as error:
                    outcome = BadRow.of(row, error)
            result.add(outcome)
            if isinstance(outcome, BadRow) and on_bad is not None:
                on_bad(outcome)
            if on_item is not None:
                on_item(outcome)
            if on_row is not None:
                on_row(result)
    return result


def _with_truth(row: Conversation, truth: Callable[[Conversation], str | None]) -> Conversation:
    try:
        found = truth(row)
    except RowError:
        raise
    except DataError as error:
        what = str(error).removeprefix(f"{row.source}: ")
        raise RowError("truth", "row", what, "write what a reward compares with") from None
    if found is not None:
        return row
    told = Notice("no_truth", "row", "no truth that a reward can compare with (`answer`, `calls`, `schema`, ...)")
    return replace(row, notices=(*row.notices, told))


def _check_use(converted: Converted, use: Use) -> None:
    if use == "dpo" and not isinstance(converted, Preference):
        raise RowError("not_a_preference", "row", "no pair of answers", "write prompt, chosen and rejected")
    if use in ("sft", "rl") and isinstance(converted, Preference):
        raise RowError("preference", "row", "a preference pair, not a conversation", "use it in a dpo recipe")
    if use == "sft" and isinstance(converted, Conversation):
        trainable(converted)


class _Judge:
    """Whether the server of `data.serving` can write a row, and whether what is trained of it is right."""

    def __init__(self, settings: RenderSettings, counts: RowCounter) -> None:
        self._renderer = Renderer(load_vocabulary(), settings)
        self._targets = Targets(self._renderer)
        self._counts = counts

    def check_prompts(self, converted: Converted) -> None:
        """RowError for what the server cannot write: tools, checked once for each distinct set, and messages."""
        conversation = converted.prompt if isinstance(converted, Preference) else converted
        messages, form = conversation.messages, self._renderer.form
        if form.in_turn == "served":
            actions = [action for turn in split_turns(messages) for action in split_actions(messages, turn)]
            served = ServedMessages(messages, form, leading_of(conversation, form))
            for _ in served.seen([action.start for action in actions]):
                pass
        if conversation.tools or conversation.response_formats:
            self._renderer.openings.developer(None, conversation.tools, conversation.response_formats)

    def check_targets(self, converted: Converted) -> None:
        """RowError for a trained action that costs the row; of a pair the chosen side counts."""
        whole, first = converted, 0
        if isinstance(converted, Preference):
            prompt, first = converted.prompt, len(converted.prompt.messages)
            whole = replace(prompt, messages=(*prompt.messages, *converted.chosen))
        assert isinstance(whole, Conversation)
        examples = self._renderer.targets(whole, first)
        self._targets.check(whole, examples, self._renderer.effort_of(whole), self._counts)
