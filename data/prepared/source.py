"""A folder that `counterpoint prepare` wrote, as a source of training examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import DataError
from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.harmony.example_tree import ExampleTree
from counterpoint.data.harmony.render import RENDERER_VERSION, Renderer
from counterpoint.data.harmony.serving import FIRST_FORM
from counterpoint.data.harmony.spans import Example
from counterpoint.data.prepared import cache
from counterpoint.data.prepared.cache import MANIFEST, Manifest
from counterpoint.data.prepared.files import examples_of, read_batches
from counterpoint.data.prepared.location import PAGE, STATISTICS
from counterpoint.data.prepared.trees import PreparedTrees, holds_trees

TOO_LONG = "data.too_long"
"""In the settings of a manifest where conversations were cut."""


def is_prepared(path: str) -> bool:
    """Whether `path` is a folder that `counterpoint prepare` wrote."""
    return Manifest.read(Path(path) / MANIFEST) is not None


def read_prepared(path: str | Path) -> Iterator[Example]:
    """The examples of a prepared folder in order; memory stays flat. Raises DataError where it is damaged."""
    folder = Path(path)
    manifest = Manifest.read(folder / MANIFEST)
    if manifest is None:
        raise DataError(f"{folder}: not a folder of prepared data: write one with `counterpoint prepare`")
    check_files(folder, manifest)
    if holds_trees(folder):
        for tree in PreparedTrees(folder):
            yield from tree.examples()
    else:
        yield from _examples(folder)


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raises DataError where a file of the folder is missing or damaged; its statistics may be gone."""
    read = {name: checksum for name, checksum in manifest.files.items() if name not in (PAGE, STATISTICS)}
    if damaged := cache.damaged_file(folder, read):
        raise DataError(f"{folder}: {damaged} is damaged: prepare it again")


def check_prepared(path: str, options: ConversionSettings, renderer: Renderer, max_tokens: int) -> RowCounter:
    """The outcome of the rows of a prepared folder when they were prepared, without the counts of examples.

    Raises DataError where the folder is damaged, or was prepared with other settings or another vocabulary.
    """
    manifest = Manifest.read(Path(path) / MANIFEST)
    assert manifest is not None
    _check(path, manifest, options, renderer, max_tokens)
    check_files(Path(path), manifest)
    before = RowCounter.from_dict(manifest.report)
    before.examples = before.tokens = before.row_tokens = 0
    before.trained.clear()
    return before


def older_trees(folder: Path) -> Iterator[ExampleTree]:
    """The rows of a folder that holds a row for each example, as older versions wrote it."""
    return map(ExampleTree.of, _by_row(_examples(folder)))


def _examples(folder: Path) -> Iterator[Example]:
    for batch in read_batches(folder):
        yield from examples_of(batch)


def _by_row(examples: Iterable[Example]) -> Iterator[list[Example]]:
    row: list[Example] = []
    for example in examples:
        # A row that was taken several times comes again with its first turn and action.
        place = example.turn, example.action
        if row and (example.source != row[-1].source or place <= (row[-1].turn, row[-1].action)):
            yield row
            row = []
        row.append(example)
    if row:
        yield row


def _check(path: str, manifest: Manifest, options: ConversionSettings, renderer: Renderer, max_tokens: int) -> None:
    made_from = manifest.fingerprint
    wanted = cache.settings_of(renderer.settings, options)
    if made_from.renderer == 1:  # it knew no other way of serving
        wanted = {name: value for name, value in wanted.items() if name in made_from.settings}
    known = {name: made_from.settings[name] for name in wanted if name in made_from.settings}
    again = "prepare it again with --config and this run file"
    if changed := cache.difference(known, wanted):
        raise DataError(f"{path}: was prepared with other settings ({changed}): {again}, or change the run's")
    if made_from.vocabulary != renderer.vocabulary.fingerprint:
        raise DataError(
            f"{path}: was prepared with vocabulary {made_from.vocabulary}, the model has "
            f"{renderer.vocabulary.fingerprint}: {again}"
        )
    if made_from.renderer != RENDERER_VERSION and (made_from.renderer, renderer.form.name) != (1, FIRST_FORM):
        keep = f", or set data.serving: {FIRST_FORM} to train what it holds" if made_from.renderer == 1 else ""
        raise DataError(f"{path}: was prepared by another version of the renderer: {again}{keep}")
    limit = made_from.settings.get("data.max_tokens")
    cuts, was_cut = getattr(options, "too_long", "drop") == "cut", made_from.settings.get(TOO_LONG) == "cut"
    if cuts != was_cut or (cuts and limit != max_tokens):
        how = f"with data.too_long: cut at {limit} tokens" if was_cut else "without data.too_long: cut"
        now = f"cut at {max_tokens}" if cuts else "not cut"
        raise DataError(f"{path}: was prepared {how}, and the run's are {now}: {again}")
    if limit is not None and limit < max_tokens and manifest.report.get("too_long"):
        raise DataError(
            f"{path}: examples of more than {limit} tokens were left out, but data.max_tokens is {max_tokens}: {again}"
        )
