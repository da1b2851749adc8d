"""List every bad row of data files: where, what is wrong, what to do. Exit code 1 where there is one.

counterpoint validate train.jsonl
counterpoint validate train.jsonl --for sft --quarantine bad.jsonl
counterpoint validate train.parquet hf:org/name:train --format messages data.images=placeholder"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.recipes.commands.data_arguments import add_data_arguments, data_settings

if TYPE_CHECKING:
    from counterpoint.configs.data_section import SourceSettings
    from counterpoint.data.conversation import Conversation
    from counterpoint.data.counts.counter import Item, RowCounter
    from counterpoint.data.rows.row import BadRow

_SECONDS_BETWEEN_PROGRESS = 0.2
_LINES_OF_A_KIND = 20
_LINE = re.compile(r":\d+(?:\[\d+\])?$")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--quarantine", metavar="BAD.jsonl", help="write bad rows there: their bytes and the reason")
    parser.add_argument(
        "--for", dest="use", choices=("any", "sft", "dpo", "rl"), default="any", help="what the rows are for (any)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a bad row, and a last one with the counts")


def run(args: argparse.Namespace) -> int:
    from counterpoint.data.counts.lines import quarantine_line, validation_lines
    from counterpoint.data.prepare.validate import as_json, validate

    data = data_settings(args)
    specs = data.train
    truths = _Truths() if args.use == "rl" else None
    by_file = _ByFile(specs)
    shown: Counter[str] = Counter()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    start = time.monotonic()
    progress = _Progress(sys.stderr) if sys.stderr.isatty() else None
    with ExitStack() as stack:
        quarantine = stack.enter_context(_quarantine(args.quarantine, specs)) if args.quarantine else None

        def on_bad(row: BadRow) -> None:
            shown[row.kind] += 1
            if progress is not None:
                progress.clear()
            if args.json:
                print(json.dumps(row.quarantined(), ensure_ascii=False))
            elif shown[row.kind] <= _LINES_OF_A_KIND:
                print(row.message)
            if quarantine is not None:
                quarantine.write(json.dumps(row.quarantined(), ensure_ascii=False) + "\n")

        found = validate(specs, data, use=args.use, on_bad=on_bad, on_row=progress, on_item=by_file.add, truth=truths)
    if progress is not None:
        progress.clear()
    seconds = time.monotonic() - start
    if args.json:
        extra = {} if truths is None else {"without_truth": truths.rows}
        extra |= {"files": by_file.as_dict()} if by_file.counts else {}
        print(json.dumps({**as_json(found), **extra, "seconds": round(seconds, 3)}, ensure_ascii=False))
    else:
        for kind, count in shown.items():
            if count > _LINES_OF_A_KIND:
                print(f"... and {count - _LINES_OF_A_KIND:,} more of {kind}: --quarantine FILE or --json has them all")
        for line in truths.lines() if truths is not None else ():
            print(line)
        for line in [*validation_lines(found, seconds), *by_file.lines()]:
            print(line)
        if args.quarantine:
            print(quarantine_line(found, args.quarantine))
        _tell_passed_over(specs)
    return 1 if found.n_bad else 0


class _Truths:
    """What training by reinforcement reads as a row's truth; rows: the places of the first ones without."""

    def __init__(self) -> None:
        from counterpoint.train.scoring.judge import criteria_of
        from counterpoint.train.scoring.prompts import prompt_of

        self._prompt_of, self._criteria_of = prompt_of, criteria_of
        self.rows: list[str] = []
        self._count = 0

    def __call__(self, row: Conversation) -> str | None:
        prompt = self._prompt_of(row)
        found = next((s for s in (prompt.scorer, *(later.scorer for later in prompt.follow_ups)) if s), None)
        if found is None and any(self._criteria_of(row.metadata, name) for name in ("rubrics", "rubric")):
            found = "rubric"
        self._count += found is None
        if found is None and len(self.rows) < _LINES_OF_A_KIND:
            self.rows.append(row.source)
        return found

    def lines(self) -> Iterator[str]:
        yield from (f"no truth: {source}: nothing that a reward can compare with" for source in self.rows)
        if self._count > len(self.rows):
            yield f"... and {self._count - len(self.rows):,} more without a truth"


class _ByFile:
    """Rows of each file of the folders among the sources, and how many of them are bad."""

    def __init__(self, specs: Sequence[SourceSettings]) -> None:
        from counterpoint.data.rows.row import BadRow

        self._bad = BadRow
        self._folders = tuple(f"{spec.path.rstrip('/')}/" for spec in specs if Path(spec.path).is_dir())
        self.counts: dict[str, list[int]] = {}

    def add(self, item: Item) -> None:
        if not self._folders or not item.source.startswith(self._folders):
            return
        file = _LINE.sub("", item.source)
        found = self.counts.setdefault(file, [0, 0])
        found[0] += 1
        found[1] += isinstance(item, self._bad)

    def as_dict(self) -> dict[str, dict[str, int]]:
        return {file: {"rows": rows, "bad": bad} for file, (rows, bad) in self.counts.items()}

    def lines(self) -> Iterator[str]:
        most = sorted(self.counts.items(), key=lambda found: -found[1][1])
        for file, (rows, bad) in most[:_LINES_OF_A_KIND]:
            yield f"file: {file}: {rows:,} rows, {bad:,} bad"
        if len(most) > _LINES_OF_A_KIND:
            more, worst = len(most) - _LINES_OF_A_KIND, most[_LINES_OF_A_KIND][1][1]
            yield f"... and {more:,} more files with at most {worst:,} bad"


class _Progress:
    """One line on a terminal, written over."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._next = 0.0

    def __call__(self, found: RowCounter) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SECONDS_BETWEEN_PROGRESS
            self._out.write(f"\r\x1b[K{found.rows:,} rows, {found.n_bad:,} bad")
            self._out.flush()

    def clear(self) -> None:
        self._out.write("\r\x1b[K")
        self._out.flush()


def _quarantine(path: str, specs: Sequence[SourceSettings]) -> TextIO:
    place = Path(path)
    if any(Path(spec.path).exists() and place.exists() and place.samefile(spec.path) for spec in specs):
        raise ConfigError(f"--quarantine {path}: is one of the files to validate: name another file")
    try:
        return place.open("w", encoding="utf-8", newline="\n")
    except OSError as error:
        raise DataError(f"--quarantine {path}: cannot be written ({error.strerror}): name another file") from None


def _tell_passed_over(specs: Sequence[SourceSettings]) -> None:
    from counterpoint.data.rows.containers import is_saved_dataset, list_files

    for spec in specs:
        folder = Path(spec.path)
        if folder.is_dir() and not is_saved_dataset(folder):
            _, others = list_files(folder)
            if others:
                names = ", ".join(str(file.relative_to(folder)) for file in others[:5])
                more = f" and {len(others) - 5} more" if len(others) > 5 else ""
                print(f"skipped in {spec.path}: {names}{more} (no data files by their names)")
