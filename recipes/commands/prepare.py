"""Write the training examples of data files as tokens and weights, with a page of statistics.

counterpoint prepare train.jsonl --out train.tokens.jsonl
counterpoint prepare train.jsonl more.parquet --out prepared --quarantine bad.jsonl
counterpoint prepare --config my.yaml --out prepared data.train_on=final

`--out X.jsonl` writes one JSON object an example; any other name a folder that `datasets.load_from_disk` opens, and
that a run file can name in data.train. What is there already, from the same data and settings, is not made again."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.recipes.commands.argument_types import count
from counterpoint.recipes.commands.data_arguments import add_data_arguments, data_settings

if TYPE_CHECKING:
    from counterpoint.configs.data_section import SourceSettings
    from counterpoint.data.counts.counter import RowCounter

_FILE_SUFFIXES = (".json", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".html", ".gz", ".yaml")
_BYTES_PER_WORKER = 8 << 20
_SECONDS_BETWEEN_PROGRESS = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--out", metavar="X", required=True, help="X.jsonl, or a folder")
    parser.add_argument(
        "--max-tokens",
        type=count,
        metavar="N",
        help="leave out longer examples (data.max_tokens, as training does)",
    )
    parser.add_argument("--quarantine", metavar="BAD.jsonl", help="write bad rows there: their bytes and the reason")
    parser.add_argument("--workers", type=count, metavar="N", help="processes (as many as cores, fewer for small data)")
    parser.add_argument("--overwrite", action="store_true", help="replace what was prepared with other settings")


def run(args: argparse.Namespace) -> int:
    from counterpoint.data.counts.lines import quarantine_line, training_lines
    from counterpoint.data.prepare.writer import Job, prepare
    from counterpoint.data.prepared.location import Place

    data = data_settings(args)
    specs = data.train
    out = Path(args.out)
    quarantine = Path(args.quarantine) if args.quarantine else None
    _check_paths(specs, out, quarantine)
    chosen = data.model_fields_set
    job = Job(
        options=data,
        render=data,
        max_tokens=args.max_tokens or data.max_tokens,
        cut=data.too_long == "cut",
        kept_ids=_kept_ids(args.config),
        output="jsonl" if out.suffix == ".jsonl" else "arrow",
    )
    size = _bytes_of(specs)
    workers = args.workers or max(1, min(_cores(), size // _BYTES_PER_WORKER))
    handler = signal.signal(signal.SIGTERM, _stop)
    progress = _Progress(sys.stderr, size) if sys.stderr.isatty() else None
    start = time.monotonic()
    try:
        done = prepare(
            specs,
            out,
            job,
            workers=workers,
            overwrite=args.overwrite,
            quarantine=quarantine,
            bad_rows_limit=data.bad_rows_limit if "bad_rows_limit" in chosen else None,
            on_chunk=progress,
        )
    finally:
        signal.signal(signal.SIGTERM, handler)
        if progress is not None:
            progress.clear()
    if done.why:
        print(f"{out}: prepared again, because {done.why}")
    for line in training_lines(done.report):
        print(line)
    if quarantine is not None:
        print(quarantine_line(done.report, quarantine))
    seconds = time.monotonic() - start
    state = f"written in {seconds:.1f} s" if done.made else "unchanged: same data, same settings, nothing was done"
    print(f"{out}: {state}")
    print(f"statistics: {Place(out, job.output).page}")
    return 0


def _check_paths(specs: Sequence[SourceSettings], out: Path, quarantine: Path | None) -> None:
    if out.suffix.lower() in _FILE_SUFFIXES and not out.is_dir():
        raise ConfigError(f"--out {out}: write a name that ends in .jsonl, or the name of a folder")
    for path, option in ((out, "--out"), (quarantine, "--quarantine")):
        if path is None:
            continue
        if path.exists() and any(Path(s.path).exists() and path.samefile(s.path) for s in specs):
            raise ConfigError(f"{option} {path}: is one of the data files: name another place")
        for spec in specs:
            if Path(spec.path).is_dir() and path.resolve().is_relative_to(Path(spec.path).resolve()):
                raise ConfigError(f"{option} {path}: is in {spec.path}, which is read: name a place outside of it")
    if quarantine is not None and (quarantine.is_dir() or not quarantine.absolute().parent.is_dir()):
        raise DataError(f"--quarantine {quarantine}: cannot be written: name a file in a folder that exists")
    if quarantine is not None and quarantine.absolute() == out.absolute():
        raise ConfigError(f"--quarantine {quarantine}: is --out as well: name another file")


def _kept_ids(config: str | None) -> tuple[int, ...] | None:
    """Ids of the vocabulary of the run file's model, where it is a restricted one."""
    if config is None:
        return None
    from importlib import resources

    from counterpoint.configs.load import load_run

    name = load_run(config).model.name
    folder = (
        Path(str(resources.files("counterpoint.train.model").joinpath("tiny_base"))) if name == "tiny" else Path(name)
    )
    if not (folder / "vocabulary_map.json").is_file():
        return None
    from counterpoint.train.model.vocabulary_map import VocabularyMap

    kept = VocabularyMap.load(folder).kept
    return None if kept is None else tuple(kept.tolist())


def _bytes_of(specs: Sequence[SourceSettings]) -> int:
    from counterpoint.data.prepared.cache import data_files

    return sum(file.stat().st_size for file in data_files(specs).values())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stop(signum: int, frame: object) -> NoReturn:
    raise SystemExit(143)


class _Progress:
    """A bar on a terminal, written over. The share is of bytes read, where the size is known."""

    def __init__(self, out: TextIO, size: int) -> None:
        self._out = out
        self._size = size
        self._start = time.monotonic()
        self._next = 0.0

    def __call__(self, report: RowCounter, read: int) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _SECONDS_BETWEEN_PROGRESS
        seconds = max(now - self._start, 1e-3)
        share = min(1.0, read / self._size) if self._size else 0.0
        bar = "#" * round(24 * share)
        left = f", {seconds * (1 - share) / share:.0f} s left" if share > 0.01 else ""
        rate = report.tokens / seconds / 1e6
        self._out.write(f"\r\x1b[K[{bar:<24}] {report.rows:,} rows, {rate:.1f} M tokens/s{left}")
        self._out.flush()

    def clear(self) -> None:
        self._out.write("\r\x1b[K")
        self._out.flush()
