"""Sources -> rows of tokens that a trainer takes, in one step."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from counterpoint.configs.schema import DataSettings, SourceSettings
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.dataset.rows_on_disk import Progress, ReadRows, TrainingData, lay_out, load_rows, read_rows
from counterpoint.data.dataset.split import PROMPT, Side, by_share, share_line, without_overlap
from counterpoint.data.dataset.training_rows import Quarantine
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import Vocabulary

_TRAIN, _HELD_OUT, _TOLD = "train", "held-out", "told.json"


@dataclass(frozen=True, slots=True)
class TrainingSets:
    """What is trained and what is held out, by the name of its set ("" for one without). lines: how they were kept
    apart."""

    train: TrainingData
    held_out: Mapping[str, TrainingData] = field(default_factory=dict)
    lines: Sequence[str] = ()


def build_training_sets(
    data: DataSettings, vocabulary: Vocabulary, *, seed: int, evaluation: Mapping[int, str] | None = None
) -> TrainingSets:
    """`data.train` and `data.valid` with all that is to be told of them; errors as of `build_training_rows`."""
    with temporary_folder() as folder:
        write_training_sets(folder, data, vocabulary, seed=seed, evaluation=evaluation)
        return load_training_sets(folder)


def write_training_sets(
    folder: Path,
    data: DataSettings,
    vocabulary: Vocabulary,
    *,
    seed: int,
    evaluation: Mapping[int, str] | None = None,
    quarantine: Path | None = None,
    held_out_quarantine: Path | None = None,
) -> ReadRows:
    """Writes what `load_training_sets` reads into `folder`; returns what was trained on, with its tools.

    evaluation: `RowKeys.asked` of each prompt that the evaluation samples -> its name. Errors as of
    `build_training_rows`.
    """
    with Quarantine(quarantine) as bad:
        train = read_rows(data.train, data, Renderer(vocabulary, data), folder / _TRAIN, on_bad=bad.add)
    held_out: dict[str, ReadRows] = {}
    lines: list[str] = []
    if data.valid_share is not None:
        (name,) = data.valid_sets
        held = by_share(train.keys()[:, PROMPT], data.valid_share, seed)
        once = np.array([*dict.fromkeys(train.taken[held].tolist())], dtype=np.int64)
        lines.append(share_line(int(held.sum()), len(held), data.valid[0].path, seed))
        held_out[name] = ReadRows(train.trees, once, RowCounter(rows=len(once)))
        train.taken = train.taken[~held]
    else:
        with Quarantine(held_out_quarantine) as bad:
            for number, (name, sources) in enumerate(data.valid_sets.items()):
                renderer, own = Renderer(vocabulary, data), folder / f"{_HELD_OUT}-{number}"
                held_out[name] = read_rows(sources, data, renderer, own, on_bad=bad.add)
    if held_out or evaluation:
        sides = {name: _side(rows) for name, rows in held_out.items()}
        kept = without_overlap(_side(train), sides, evaluation or {}, data.overlap)
        train.taken = train.taken[kept.train]
        for name, rows in held_out.items():
            rows.taken = rows.taken[kept.held_out[name]]
        lines += kept.lines
    lay_out(train, data, _names(data.train), folder / _TRAIN)
    for number, (name, rows) in enumerate(held_out.items()):
        lay_out(rows, data, _names(data.valid_sets[name]), folder / f"{_HELD_OUT}-{number}")
    (folder / _TOLD).write_text(json.dumps({"sets": [*held_out], "lines": lines}))
    return train


def load_training_sets(folder: Path) -> TrainingSets:
    """What `write_training_sets` wrote; the files may be removed afterwards, since they stay open."""
    told = json.loads((folder / _TOLD).read_text())
    held_out = {name: load_rows(folder / f"{_HELD_OUT}-{number}") for number, name in enumerate(told["sets"])}
    return TrainingSets(load_rows(folder / _TRAIN), held_out, told["lines"])


def _side(rows: ReadRows) -> Side:
    return Side(rows.keys(), lambda n: rows.trees.source(int(rows.taken[n])))


def _names(sources: Sequence[SourceSettings]) -> str:
    return ", ".join(source.path for source in sources)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of the system's place for temporary files, removed in the end."""
    folder = Path(tempfile.mkdtemp(prefix="counterpoint-rows-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def build_training_rows(
    sources: Sequence[SourceSettings],
    data: DataSettings,
    vocabulary: Vocabulary,
    *,
    quarantine: Path | None = None,
    progress: Progress | None = None,
) -> TrainingData:
    """Rows of tokens of `sources` (`data.train` or `data.valid`). A source may be a prepared folder.

    What is rendered is in files without a name, in the system's folder for temporary files. Bad rows are written to
    `quarantine` as JSON lines. Raises DataError where their share passes `data.bad_rows_limit`, where nothing is left
    to train, or with `too_long: error` for a long example.
    """
    with temporary_folder() as folder:
        with Quarantine(quarantine) as bad:
            read = read_rows(sources, data, Renderer(vocabulary, data), folder, on_bad=bad.add, progress=progress)
        lay_out(read, data, _names(sources), folder)
        return load_rows(folder, read.tools)
