"""Prepared rows of any size as training reads them: time, and memory that belongs to the process.

    python benchmarks/rows.py [--tokens 1e9] [--row 2000] [--limit-gb 6] [--folder PLACE]

A folder of prepared rows is made of random ids, three examples a row that share their beginning; after 4 million
tokens the same come again. A process of its own
then does what training does: it checks and opens the folder, lays all rows out, draws an order, and collates rows in
that order. `--limit-gb` gives it no more address space (`ulimit -v`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from counterpoint.configs.schema import DataSettings
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.harmony.example_tree import TreeBuilder
from counterpoint.data.harmony.render import RENDERER_VERSION
from counterpoint.data.harmony.vocabulary import full_fingerprint, load_vocabulary
from counterpoint.data.prepared import cache
from counterpoint.data.prepared.files import ArrowFolder
from counterpoint.data.prepared.trees import SCHEMA, RowKeys, arrow_batch

BATCHES, DIFFERENT = 2_000, 4_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e9)
    parser.add_argument("--row", type=int, default=2000, help="tokens of a row")
    parser.add_argument("--limit-gb", type=float, help="address space of the process that reads")
    parser.add_argument("--folder", type=Path, help="where the rows are made")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read:
        read(args.read, args.row)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        folder = Path(place) / "rows"
        started = time.monotonic()
        make(folder, int(args.tokens), args.row)
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"made: {args.tokens:,.0f} tokens, {size / 1e9:.2f} GB, {time.monotonic() - started:.0f} s", flush=True)
        limit = round(args.limit_gb * 1e9) if args.limit_gb else resource.RLIM_INFINITY

        def limited() -> None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

        subprocess.run(
            [sys.executable, __file__, "--read", str(folder), "--row", str(args.row)], check=True, preexec_fn=limited
        )


def make(folder: Path, tokens: int, row: int) -> None:
    """A folder as `counterpoint prepare` writes it, of at least so many tokens."""
    folder.mkdir()
    out, rng, report = ArrowFolder(folder, SCHEMA), np.random.default_rng(0), RowCounter()
    part, held = row // 4, []
    while len(held) * row < DIFFERENT:
        builder = TreeBuilder()
        ids = rng.integers(0, 190_000, row, dtype=np.int32)
        for turn in range(3):
            start = part * (turn + 1)
            new = ids[: 2 * part] if turn == 0 else ids[start : start + part]
            builder.add(turn, 0, 0 if turn == 0 else start, new, [(start, start + part, 1.0, 3)])
        tree = builder.tree(f"made.jsonl:{len(held) + 1}", ())
        held.append((tree, RowKeys(*rng.integers(0, 2**63, 3).tolist())))
    size = max(1, 250_000 // row)
    batches = [held[at : at + size] for at in range(0, len(held), size)]
    written = [(arrow_batch(batch), len(batch)) for batch in batches]
    for batch, rows in itertools.cycle(written):
        if report.rows * 4 * part >= tokens:
            break
        out.write(batch)
        report.rows += rows
    out.close("made")
    data = DataSettings.model_validate({"train": str(folder)})
    made_from = cache.Fingerprint(cache.settings_of(data, data), {}, full_fingerprint(), RENDERER_VERSION)
    files = {file.name: cache.sha256_of(file) for file in sorted(folder.iterdir())}
    cache.Manifest(made_from, files, report.as_dict()).write(folder / cache.MANIFEST)


def read(folder: Path, row: int) -> None:
    import torch

    from counterpoint.data.dataset.build import build_training_sets
    from counterpoint.data.layout.collate import Collator
    from counterpoint.train.loop.row_dataset import ROW, RowCollator, row_numbers

    tell("libraries loaded")
    vocabulary = load_vocabulary()
    started = time.process_time()
    data = DataSettings.model_validate({"train": str(folder), "max_tokens": row})
    sets = build_training_sets(data, vocabulary, seed=0)
    rows = sets.train.rows
    tell(f"opened and laid out: {len(rows):,} rows, {sets.train.report.row_tokens:,} tokens", started)
    started = time.process_time()
    numbers = row_numbers(rows)
    order = torch.randperm(len(numbers)).tolist()
    tell("order drawn", started)
    started = time.process_time()
    collate = RowCollator(rows, Collator())
    tokens = sum(collate([{ROW: number}])["n_tokens"] for number in order[:BATCHES])
    tell(f"{BATCHES:,} batches of a row in a drawn order, {tokens:,} tokens", started)
    print(json.dumps({"fingerprint": sets.train.fingerprint[:16]}))


def tell(what: str, started: float | None = None) -> None:
    """A line with the CPU time, and the anonymous memory now and the resident peak."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    anonymous = int(fields["Anonymous"].split()[0]) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = "" if started is None else f"{time.process_time() - started:.1f} s of CPU, "
    print(f"{what}: {seconds}anonymous {anonymous:.2f} GB, peak of all resident pages {peak:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
