"""Sources -> rows of tokens that a trainer takes, in one step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from counterpoint.configs.schema import DataSettings, SourceSettings
from counterpoint.data.dataset.rows_on_disk import Progress, TrainingData, lay_out, load_rows, read_rows
from counterpoint.data.dataset.training_rows import Quarantine
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import Vocabulary


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
    folder = Path(tempfile.mkdtemp(prefix="counterpoint-rows-"))
    try:
        with Quarantine(quarantine) as bad:
            read = read_rows(sources, data, Renderer(vocabulary, data), folder, on_bad=bad.add, progress=progress)
        lay_out(read, data, ", ".join(source.path for source in sources), folder)
        return load_rows(folder, read.tools)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
