"""List every bad row of data files: where, what is wrong, what to do. Exit code 1 where there is one.

counterpoint validate train.jsonl
counterpoint validate train.jsonl --for sft --quarantine bad.jsonl
counterpoint validate train.parquet hf:org/name:train --format messages data.images=placeholder"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.recipes.commands.data_arguments import add_data_arguments, data_settings

if TYPE_CHECKING:
    from counterpoint.configs.data_section import SourceSettings
    from counterpoint.data.counts.counter import RowCounter
    from counterpoint.data.rows.row import BadRow

_SECONDS_BETWEEN_PROGRESS = 0.2


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
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    start = time.monotonic()
    progress = _Progress(sys.stderr) if sys.stderr.isatty() else None
    with ExitStack() as stack:
        quarantine = stack.enter_context(_quarantine(args.quarantine, specs)) if args.quarantine else None

        def on_bad(row: BadRow) -> None:
            if progress is not None:
                progress.clear()
            print(json.dumps(row.quarantined(), ensure_ascii=False) if args.json else row.message)
            if quarantine is not None:
                quarantine.write(json.dumps(row.quarantined(), ensure_ascii=False) + "\n")

        found = validate(specs, data, use=args.use, on_bad=on_bad, on_row=progress)
    if progress is not None:
        progress.clear()
    seconds = time.monotonic() - start
    if args.json:
        print(json.dumps({**as_json(found), "seconds": round(seconds, 3)}, ensure_ascii=False))
    else:
        for line in validation_lines(found, seconds):
            print(line)
        if args.quarantine:
            print(quarantine_line(found, args.quarantine))
        _tell_passed_over(specs)
    return 1 if found.n_bad else 0


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
