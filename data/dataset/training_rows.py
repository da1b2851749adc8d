"""Source files -> rows of tokens that a trainer takes, with a report of the outcome of every source row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import DataError, RowError
from counterpoint.configs.schema import DataSettings, SourceSettings
from counterpoint.data.conversation import Conversation, Preference, Tool
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.counts.lines import training_lines
from counterpoint.data.dataset.targets import Targets
from counterpoint.data.formats.read import converted_rows, weighted_rows
from counterpoint.data.harmony.cut import cut_to_fit
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import Example
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.data.layout.pack import pack
from counterpoint.data.layout.tree import TreeRow, tree_of, trees_of
from counterpoint.data.prepared.source import is_prepared, prepared_rows
from counterpoint.data.rows.row import BadRow

Progress = Callable[[int], None]
OnBad = Callable[[BadRow], None]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation and its training examples (none for a prompt that ends in a user message)."""

    conversation: Conversation
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows ready for the collator. fingerprint: hash of every id and weight in order, to find changed data. tools: by
    name, what clients must send under `data.tool_schemas: cleaned`; none of rows that were prepared before."""

    rows: Sequence[TreeRow]
    report: RowCounter
    fingerprint: str
    tools: Mapping[str, Tool] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The report for a person."""
        return training_lines(self.report)


def render_sources(
    specs: Sequence[SourceSettings],
    options: ConversionSettings,
    renderer: Renderer,
    report: RowCounter,
    *,
    max_tokens: int | None = None,
    cut: bool = False,
    on_bad: OnBad | None = None,
) -> Iterator[Rendered]:
    """Every usable row in order, rendered; bad rows go to the report and to `on_bad`. Memory stays flat.

    Examples longer than `max_tokens` are left out and counted in the report; cut: a conversation of one such example
    first ends behind the last turn that fits.
    """
    for row, format, times in weighted_rows(specs):
        converted = converted_rows(row, format, times, options)
        yield from render_rows(converted, renderer, report, max_tokens=max_tokens, cut=cut, on_bad=on_bad, raw=row.raw)


def render_rows(
    rows: Iterable[Conversation | Preference | BadRow],
    renderer: Renderer,
    report: RowCounter,
    *,
    max_tokens: int | None = None,
    cut: bool = False,
    on_bad: OnBad | None = None,
    raw: bytes = b"",
) -> Iterator[Rendered]:
    """`render_sources` of one row that is converted already, as often as it is taken; `raw` are its bytes."""
    targets = Targets(renderer)
    for item in rows:
        if isinstance(item, BadRow):
            _quarantine(item, report, on_bad)
            continue
        if isinstance(item, Preference):
            row = RowError("preference", "row", "a preference pair, not a conversation", "use it in a dpo recipe")
            _quarantine(BadRow(item.prompt.source, row.kind, row.field, row.what, row.fix, raw), report, on_bad)
            continue
        try:
            examples, too_long = renderer.examples_within(item, max_tokens)
            if cut and too_long and max_tokens and (shorter := cut_to_fit(item, renderer, max_tokens)):
                item = shorter
                examples, too_long = renderer.examples_within(item, max_tokens)
            effort = renderer.effort_of(item)
            targets.check(item, examples, effort, report)
        except RowError as error:
            _quarantine(BadRow(item.source, error.kind, error.field, error.what, error.fix, raw), report, on_bad)
            continue
        report.add(item, effort)
        report.too_long += too_long
        report.prompts += not examples and not too_long
        for example in examples:
            report.add_example(example)
        yield Rendered(item, examples)


def build_training_rows(
    sources: Sequence[SourceSettings],
    data: DataSettings,
    vocabulary: Vocabulary,
    *,
    quarantine: Path | None = None,
    progress: Progress | None = None,
) -> TrainingData:
    """Rows of tokens of `sources` (`data.train` or `data.valid`), all in memory. A source may be a prepared folder.

    Bad rows are written to `quarantine` as JSON lines. Raises DataError where their share passes
    `data.bad_rows_limit`, where nothing is left to train, or with `too_long: error` for a long example.
    """
    report = RowCounter()
    renderer = Renderer(vocabulary, data)
    bad: list[BadRow] = []
    rows_of_examples = _rows_of_examples(sources, data, renderer, report, bad.append)
    trees = _trees(rows_of_examples, data, progress)
    rows = list(pack(trees, data.pack_tokens) if data.pack_tokens else trees)
    report.row_tokens = sum(len(row) for row in rows)
    if quarantine is not None and bad:
        write_quarantine(quarantine, bad)
    _check(report, data, sources)
    tools = renderer.openings.rewritten if data.tool_schemas == "cleaned" else {}
    return TrainingData(rows, report, _fingerprint(rows), tools)


def write_quarantine(path: Path, rows: Iterable[BadRow]) -> None:
    """Append bad rows with their reason and original bytes, one JSON object a line; a resumed run writes a row once."""
    known = set(path.read_bytes().splitlines()) if path.is_file() else set()
    with path.open("ab") as file:
        for row in rows:
            line = orjson.dumps(row.quarantined())
            if line not in known:
                file.write(line + b"\n")


def _quarantine(row: BadRow, report: RowCounter, on_bad: OnBad | None) -> None:
    report.add(row)
    if on_bad is not None:
        on_bad(row)


def _rows_of_examples(
    sources: Sequence[SourceSettings], data: DataSettings, renderer: Renderer, report: RowCounter, on_bad: OnBad
) -> Iterator[list[Example]]:
    """The examples of each row: read where the source is prepared already, rendered where it is not."""
    for spec in sources:
        if is_prepared(spec.path):
            yield from prepared_rows(spec, data, renderer, report, data.max_tokens)
            continue
        rendered = render_sources(
            [spec], data, renderer, report, max_tokens=data.max_tokens, cut=data.too_long == "cut", on_bad=on_bad
        )
        yield from (item.examples for item in rendered)


def _trees(rows: Iterable[list[Example]], data: DataSettings, progress: Progress | None) -> Iterator[TreeRow]:
    for count, examples in enumerate(rows, 1):
        if progress is not None:
            progress(count)
        if data.tree:
            yield from trees_of(examples, data.max_tokens)
        else:
            yield from (tree_of([example]) for example in examples)


def _check(report: RowCounter, data: DataSettings, sources: Sequence[SourceSettings]) -> None:
    where = ", ".join(source.path for source in sources)
    report.check_bad_rows(data.bad_rows_limit, where)
    if data.too_long == "error":
        report.check_too_long(data.max_tokens, where)
    if report.examples:
        return
    if report.too_long:
        raise DataError(
            f"{where}: all {report.too_long} examples are longer than data.max_tokens ({data.max_tokens}): raise it"
        )
    if report.turns:
        raise DataError(
            f"{where}: no token of its {report.turns} assistant turns has a loss weight: see data.weights, "
            "data.train_on and data.missing_thinking"
        )
    raise DataError(f"{where}: no row has an assistant turn to train: check the file with `counterpoint show`")


def _fingerprint(rows: Iterable[TreeRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        for array in (row.ids, row.position, row.target_source, row.target_id, row.target_weight):
            digest.update(array.tobytes())
    return digest.hexdigest()
