"""Data files -> prepared training examples on disk, in chunks, by one or several processes; memory stays flat.

The result does not depend on the number of processes: chunks are the same and are written in order.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, SourceSettings
from counterpoint.configs.errors import DataError, RunError
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.counts.row_statistics import RowStatistics
from counterpoint.data.dataset.training_rows import render_rows
from counterpoint.data.formats.read import converted_rows, weighted_rows
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import RENDERER_VERSION, Renderer
from counterpoint.data.harmony.vocabulary import RestrictedVocabulary, Vocabulary, full_fingerprint, load_vocabulary
from counterpoint.data.prepare.statistics_page import statistics_page
from counterpoint.data.prepared import cache
from counterpoint.data.prepared.files import ArrowFolder, json_lines
from counterpoint.data.prepared.location import LINES, PAGE, STATISTICS, Output, Place
from counterpoint.data.prepared.source import TOO_LONG
from counterpoint.data.prepared.trees import SCHEMA, RowKeys, arrow_batch
from counterpoint.data.rows.row import AnyRow, BadRow

Numbered = tuple[int, AnyRow, str, int]
"""A row with its number among all rows, the format of its source, and how often it is taken."""

QUARANTINE = "quarantine"
_CHUNK_BYTES, _CHUNK_ROWS = 1 << 20, 256
_BATCH_TOKENS = 250_000


@dataclass(frozen=True, slots=True)
class Job:
    """How rows become examples. cut: `data.too_long` is `cut`. kept_ids: of a restricted vocabulary (the embedded tiny
    model's), else None."""

    options: ConversionSettings = field(default_factory=ConversionSettings)
    render: RenderSettings = field(default_factory=RenderSettings)
    max_tokens: int | None = None
    cut: bool = False
    kept_ids: tuple[int, ...] | None = None
    output: Output = "arrow"

    def vocabulary(self) -> Vocabulary:
        full = load_vocabulary()
        return full if self.kept_ids is None else RestrictedVocabulary(full, self.kept_ids)

    def fingerprint(self) -> str:
        """Of the vocabulary. A full one is not loaded here, only in the workers."""
        return full_fingerprint() if self.kept_ids is None else self.vocabulary().fingerprint

    def settings(self, specs: Sequence[SourceSettings]) -> dict[str, Any]:
        """Everything that determines the result in addition to data and vocabulary, by dotted name."""
        sources = [[spec.path, spec.format, spec.weight, spec.rows, *_mapping(spec)] for spec in specs]
        rest = {"data.max_tokens": self.max_tokens, "output": self.output, "sources": sources}
        return cache.settings_of(self.render, self.options) | rest | ({TOO_LONG: "cut"} if self.cut else {})


def _mapping(spec: SourceSettings) -> list[dict[str, Any]]:
    """What a source says of its columns and speakers; nothing for one that says nothing, so that its hash stays."""
    return (
        [part.model_dump(mode="json") if part else {} for part in (spec.columns, spec.roles)]
        if spec.columns or spec.roles
        else []
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """The outcome of the rows. made: false where everything existed already. why: the reason existing data is not
    reused."""

    report: RowCounter
    made: bool
    why: str = ""


@dataclass(slots=True)
class Chunk:
    """Examples of some rows in the form that is written, and the counts of those rows. A tree among the payloads has
    JSON lines that are too long together to be held."""

    payloads: list[bytes | ExampleTree] = field(default_factory=list)
    report: RowCounter = field(default_factory=RowCounter)
    statistics: RowStatistics = field(default_factory=RowStatistics)
    bad: list[BadRow] = field(default_factory=list)
    read_bytes: int = 0


OnChunk = Callable[[RowCounter, int], None]


def prepare(
    specs: Sequence[SourceSettings],
    out: Path,
    job: Job,
    *,
    workers: int = 1,
    overwrite: bool = False,
    quarantine: Path | None = None,
    bad_rows_limit: float | None = None,
    on_chunk: OnChunk | None = None,
) -> Prepared:
    """Writes the training examples of `specs` to `out`, unless they are there already.

    `out` is a folder (output "arrow") or a file (output "jsonl"); it is complete or absent. on_chunk gets the
    report so far and the bytes of the rows read. Raises DataError where `out` holds something else, where nothing can
    be trained, or where more than `bad_rows_limit` of the rows are bad; RunError where a worker process dies.
    """
    vocabulary = job.fingerprint()
    place = Place(out, job.output)
    place.check(job.settings(specs), overwrite)
    stamps = cache.data_stamps(specs)
    fingerprint = cache.Fingerprint(job.settings(specs), cache.data_hashes(specs), vocabulary, RENDERER_VERSION)
    found = place.cached(fingerprint)
    if isinstance(found, RowCounter) and not (quarantine and found.bad):
        if quarantine is not None:
            quarantine.write_bytes(b"")
        return Prepared(found, made=False)
    with cache.folder_beside(out) as work:
        whole = _write(specs, work, job, fingerprint, workers, on_chunk)
        if quarantine is not None:
            shutil.copyfile(work / QUARANTINE, quarantine)
        (work / QUARANTINE).unlink()
        if cache.data_stamps(specs) != stamps:
            raise DataError(f"{_names(specs)}: changed while it was read: prepare it again when it is complete")
        _check(whole.report, specs, bad_rows_limit)
        statistics = {"report": whole.report.as_dict(), **whole.statistics.as_dict()}
        options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        (work / STATISTICS).write_bytes(orjson.dumps(statistics, option=options))
        page = statistics_page(whole.report, statistics, fingerprint, sources=[spec.path for spec in specs])
        cache.write_durably(work / PAGE, page)
        place.fill(work, fingerprint, whole.report)
    return Prepared(whole.report, made=True, why=found if isinstance(found, str) else "")


def _write(
    specs: Sequence[SourceSettings],
    work: Path,
    job: Job,
    fingerprint: cache.Fingerprint,
    workers: int,
    on_chunk: OnChunk | None,
) -> Chunk:
    """Writes examples and quarantine into `work`; returns the counts."""
    whole = Chunk()
    with ExitStack() as stack:
        quarantine = stack.enter_context((work / QUARANTINE).open("wb"))
        folder = ArrowFolder(work, SCHEMA) if job.output == "arrow" else None
        lines = stack.enter_context((work / LINES).open("wb")) if folder is None else None
        for chunk in _chunks_done(_chunks(weighted_rows(specs)), job, workers):
            for payload in chunk.payloads:
                if isinstance(payload, ExampleTree):
                    assert lines is not None
                    for example in payload.examples():
                        lines.write(json_lines([example]))
                elif folder is not None:
                    folder.write(payload)
                elif lines is not None:
                    lines.write(payload)
            for row in chunk.bad:
                quarantine.write(orjson.dumps(row.quarantined()) + b"\n")
            whole.report.merge(chunk.report)
            whole.statistics.merge(chunk.statistics)
            whole.read_bytes += chunk.read_bytes
            if on_chunk is not None:
                on_chunk(whole.report, whole.read_bytes)
        if folder is not None:
            folder.close(fingerprint.digest)
    return whole


def _chunks(rows: Iterable[tuple[AnyRow, str, int]]) -> Iterator[list[Numbered]]:
    chunk: list[Numbered] = []
    size = 0
    for number, (row, format, times) in enumerate(rows):
        chunk.append((number, row, format, times))
        size += len(row.raw)
        if size >= _CHUNK_BYTES or len(chunk) >= _CHUNK_ROWS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _chunks_done(chunks: Iterable[list[Numbered]], job: Job, workers: int) -> Iterator[Chunk]:
    """The chunks in order, each worked on by any of the processes; a limited number are in progress at once."""
    if workers <= 1:
        yield from map(_Worker(job), chunks)
        return
    under_way: deque[Future[Chunk]] = deque()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (job,))
    try:
        for chunk in chunks:
            under_way.append(pool.submit(_work, chunk))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise RunError(
            f"a worker process died, most likely for want of memory: prepare again with fewer than --workers {workers}"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Worker:
    """Converts and renders the rows of a chunk. One a process: vocabularies cannot be sent to another."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.vocabulary = job.vocabulary()
        self.renderer = Renderer(self.vocabulary, job.render)

    def __call__(self, rows: Sequence[Numbered]) -> Chunk:
        chunk = Chunk(read_bytes=sum(len(row.raw) for _, row, _, _ in rows))
        held: list[tuple[ExampleTree, RowKeys]] = []
        tokens, arrow = 0, self.job.output == "arrow"
        for number, row, format, times in rows:
            converted = converted_rows(row, format, times, self.job.options)
            rendered = render_rows(
                converted,
                self.renderer,
                chunk.report,
                max_tokens=self.job.max_tokens,
                cut=self.job.cut,
                on_bad=chunk.bad.append,
                raw=row.raw,
            )
            for copy, item in enumerate(rendered):
                chunk.report.add_examples(item.tree)
                chunk.report.row_tokens += len(item.tree.ids)
                chunk.statistics.add(item.conversation, item.tree, self.vocabulary, number, first=copy == 0)
                if not len(item.tree):
                    continue
                size = len(item.tree.ids) if arrow else int(item.tree.lengths.sum(dtype=np.int64))
                if not arrow and size > _BATCH_TOKENS:
                    self._close(chunk, held)
                    chunk.payloads.append(item.tree)
                    continue
                held.append((item.tree, item.keys))
                tokens += size
                if tokens >= _BATCH_TOKENS:
                    self._close(chunk, held)
                    tokens = 0
        self._close(chunk, held)
        return chunk

    def _close(self, chunk: Chunk, held: list[tuple[ExampleTree, RowKeys]]) -> None:
        """Adds what is held to the chunk, in the form that is written."""
        if held and self.job.output == "arrow":
            chunk.payloads.append(arrow_batch(held))
        elif held:
            chunk.payloads.append(json_lines(example for tree, _ in held for example in tree.examples()))
        held.clear()


_worker: _Worker | None = None


def _start_worker(job: Job) -> None:
    """Runs once in each process: loads the vocabulary, leaves Ctrl-C to the parent, and dies with it."""
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _worker = _Worker(job)


def _work(rows: list[Numbered]) -> Chunk:
    assert _worker is not None
    return _worker(rows)


def _check(report: RowCounter, specs: Sequence[SourceSettings], bad_rows_limit: float | None) -> None:
    if bad_rows_limit is not None:
        report.check_bad_rows(bad_rows_limit, _names(specs))
    if not report.examples:
        why = f" ({'; '.join(report.bad_messages[:3])})" if report.bad else ""
        if report.prompts and report.prompts == report.n_good:
            why = f" ({report.prompts:,} rows are prompts without an answer, as recipe grpo takes them)"
        raise DataError(f"{_names(specs)}: no row gives a training example{why}: look at it with `counterpoint show`")


def _names(specs: Sequence[SourceSettings]) -> str:
    return ", ".join(spec.path for spec in specs)
