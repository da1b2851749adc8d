"""What every row of some sources is: usable as a conversation, a preference or a prompt, or bad and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.formats.convert import Converted, kind_of, trainable
from counterpoint.data.formats.options import SourceOptions, SourceSpec
from counterpoint.data.formats.read import convert_row, source_rows
from counterpoint.data.harmony.prompt import Openings
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.rows.row import BadRow, one_line

Use = Literal["any", "sft", "dpo", "rl"]


@dataclass(slots=True)
class Validation:
    """Counts over one pass. bad and notices: rows by kind; first_notices: where each kind was met first."""

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    first_notices: dict[str, str] = field(default_factory=dict)

    @property
    def n_bad(self) -> int:
        return sum(self.bad.values())

    def add_bad(self, row: BadRow) -> None:
        self.rows += 1
        self.bad[row.kind] += 1

    def add(self, converted: Converted) -> None:
        conversation = converted.prompt if isinstance(converted, Preference) else converted
        self.rows += 1
        self.kinds[kind_of(converted)] += 1
        self.formats[conversation.format] += 1
        for notice in conversation.notices:
            if notice.kind not in self.first_notices:
                self.first_notices[notice.kind] = f"{conversation.source}: {notice.field}: {notice.detail}"
        self.notices.update({notice.kind for notice in conversation.notices})

    def as_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "rows": self.rows,
            "ok": self.rows - self.n_bad,
            "bad": self.n_bad,
            "kinds": dict(self.kinds),
            "formats": dict(self.formats),
            "bad_by_kind": dict(self.bad),
            "notices_by_kind": dict(self.notices),
        }


def validate(
    sources: Iterable[SourceSpec | str],
    options: SourceOptions | None = None,
    *,
    use: Use = "any",
    on_bad: Callable[[BadRow], None] | None = None,
    on_row: Callable[[Validation], None] | None = None,
) -> Validation:
    """Reads every row once, whatever the weights of the sources; memory stays flat.

    use: what the rows are for: `sft` refuses rows without a trained answer, `dpo` all but pairs, `rl` pairs. on_bad is
    called with each bad row, on_row after each row. Raises DataError where a source does not exist.
    """
    options = options or SourceOptions()
    result = Validation()
    writes = _Writes()
    for source in sources:
        spec = SourceSpec(source) if isinstance(source, str) else source
        for row in source_rows(spec):
            outcome = row if isinstance(row, BadRow) else convert_row(row, spec.format, options)
            if not isinstance(row, BadRow) and not isinstance(outcome, BadRow):
                try:
                    _check_use(outcome, use)
                    writes.check(outcome)
                except RowError as error:
                    outcome = BadRow.of(row, error)
            if isinstance(outcome, BadRow):
                result.add_bad(outcome)
                if on_bad is not None:
                    on_bad(outcome)
            else:
                result.add(outcome)
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
    """Whether openai-harmony can write a row's tools: asked once for each distinct set."""

    def __init__(self) -> None:
        self._openings: Openings | None = None

    def check(self, converted: Converted) -> None:
        conversation = converted.prompt if isinstance(converted, Preference) else converted
        if not conversation.tools and not conversation.response_formats:
            return
        if self._openings is None:
            self._openings = Openings(load_vocabulary())
        self._openings.developer(None, conversation.tools, conversation.response_formats)


def notice_line(validation: Validation, kind: str) -> str:
    """A kind of notice with its count and where it was met first."""
    return one_line(f"{kind}: {validation.notices[kind]:,} rows (first: {validation.first_notices[kind]})")
