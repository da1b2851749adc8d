"""The counts of rows in words, for a terminal: what each command prints of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.rows.row import one_line


def by_count(counts: Counter[str]) -> str:
    """`name 1,234, other 5`, the most frequent first."""
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common())


def training_lines(counter: RowCounter) -> list[str]:
    """Of rows that were rendered: examples, tokens, warnings, notices; one fact a line."""
    trained = counter.trained.total()
    share = trained / counter.tokens if counter.tokens else 0.0
    by_channel = ", ".join(f"{name} {count:,}" for name, count in counter.trained.items() if count)
    out = [
        f"{counter.rows:,} rows: {counter.n_good:,} conversations, {counter.examples:,} training examples",
        f"{counter.tokens:,} tokens, {trained:,} of them trained ({share:.0%}): {by_channel or 'none'}",
    ]
    if 0 < counter.row_tokens < counter.tokens:
        saved = 1 - counter.row_tokens / counter.tokens
        out.append(
            f"{counter.row_tokens:,} tokens where the turns of a conversation share one row: "
            f"{counter.tokens - counter.row_tokens:,} saved ({saved:.0%})"
        )
    if counter.without_thinking:
        part = counter.without_thinking / max(1, counter.turns)
        out.append(
            f"warning: {counter.without_thinking:,} of {counter.turns:,} assistant turns ({part:.0%}) have no "
            "thinking; trained as they are they teach the model to answer without it: see data.missing_thinking"
        )
    if counter.too_long:
        out.append(f"warning: {counter.too_long:,} examples are longer than data.max_tokens and were left out")
    out += [f"notice: {kind}: {count:,} rows" for kind, count in counter.notices.most_common()]
    out += unused_lines(counter)
    out += target_lines(counter)
    if counter.bad:
        kinds = by_count(counter.bad)
        out.append(f"warning: {counter.n_bad:,} of {counter.rows:,} rows were quarantined ({kinds})")
    return out


def pair_lines(counter: RowCounter, kinds: Counter[str], noun: str) -> list[str]:
    """Of rows that became pairs or rated completions (`noun`), of so many `kinds`."""
    by_kind = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    out = [f"{counter.rows} rows, {kinds.total()} {noun}s ({by_kind})"]
    if counter.prompts:
        out.append(f"{counter.prompts} rows make no {noun}")
    if counter.too_long:
        out.append(f"{counter.too_long} {noun}s are longer than data.max_tokens and left out")
    out += target_lines(counter)
    if counter.bad:
        out.append(f"{counter.n_bad} bad rows quarantined, the first: {counter.bad_messages[0]}")
    return out


def validation_lines(counter: RowCounter, seconds: float) -> Iterator[str]:
    """Of rows that were read for `seconds`: good and bad ones, then every kind of notice and of bad row."""
    yield f"{counter.rows:,} rows: {counter.n_good:,} good, {counter.n_bad:,} bad ({seconds:.1f} s)"
    if counter.kinds:
        yield "kind: " + ", ".join(f"{count:,} {kind}s" for kind, count in counter.kinds.most_common())
        yield f"format: {by_count(counter.formats)}"
    for kind, count in counter.notices.most_common():
        yield one_line(f"notice: {kind}: {count:,} rows (first: {counter.first_notices[kind]})")
    yield from unused_lines(counter)
    yield from target_lines(counter)
    for kind, count in counter.bad.most_common():
        yield f"bad: {kind}: {count:,} rows"


def unused_lines(counter: RowCounter) -> list[str]:
    """Each field that no rule reads, with its rows and a value of it."""
    return [
        one_line(f"not read: {name}: {count:,} rows, for example {counter.unused_samples.get(name, '')}")
        for name, count in counter.unused.most_common()
    ]


def target_lines(counter: RowCounter) -> list[str]:
    """Each rule that trained actions break and that does not cost their row, with the first place."""
    return [
        one_line(
            f"target: {code}: {count:,} of {counter.actions:,} trained actions (first: "
            f"{counter.first_bad_targets[code]}): see data.bad_targets"
        )
        for code, count in counter.bad_targets.most_common()
    ]


def first_look_lines(counter: RowCounter, complete: bool) -> list[str]:
    """Of the rows read so far (complete: all there are): formats and kinds, then notices and bad rows if any."""
    if not counter.rows:
        return ["no rows"]
    which = "all" if complete else "first"
    kinds = [_counted(count, name) for name, count in sorted(counter.kinds.items())]
    if counter.kinds["conversation"]:
        kinds.append(_counted(counter.turns, "assistant turn"))
    if counter.bad:
        kinds.append(f"{counter.n_bad:,} bad")
    formats = next(iter(counter.formats)) if len(counter.formats) == 1 else _formats(counter)
    rows = f"{which} {_counted(counter.rows, 'row')}" + ("" if complete else ", more follow")
    out = [f"format {formats} · {rows}: {', '.join(kinds)}"]
    for title, counts in (("notices", counter.notices), ("bad rows", counter.bad)):
        if counts:
            out.append(f"{title}: {by_count(counts)}")
    return out


def quarantine_line(counter: RowCounter, path: str | Path) -> str:
    return f"quarantine: {counter.n_bad:,} rows in {path}"


def _formats(counter: RowCounter) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counter.formats.most_common()) or "none"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"
