"""Prepared training examples as files: JSON lines, or a folder of Arrow shards that `datasets.load_from_disk` opens.

A JSON line is one example: source ("file:line"), turn, action (of the turn), input_ids, weights (0 = context),
channel_of (channel of each trained token, null for context), warnings ("kind: field: detail" of the row's notices).
A folder has the columns of `trees.py`; older ones have those of the JSON lines (`examples_of`), the first no action.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from counterpoint.configs.errors import DataError
from counterpoint.data.conversation import Notice
from counterpoint.data.harmony.spans import CHANNEL_CODES, CHANNEL_NAMES, Example

INFO_FILE, STATE_FILE = "dataset_info.json", "state.json"
_SHARD_BYTES = 500 << 20
_NAMES = np.array([None, *CHANNEL_NAMES[1:]], dtype=object)


def json_lines(examples: Iterable[Example]) -> bytes:
    """One JSON object a line and example."""
    lines = []
    for example in examples:
        row = {
            "source": plain_text(example.source),
            "turn": example.turn,
            "action": example.action,
            "input_ids": example.ids,
            "weights": example.weights,
            "channel_of": _NAMES[_trained_channels(example)].tolist(),
            "warnings": warnings_of(example.notices),
        }
        lines.append(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
    return b"".join(lines)


class ArrowFolder:
    """Writes serialised record batches to shards in a folder, one at a time."""

    def __init__(self, folder: Path, schema: pa.Schema, shard_bytes: int = _SHARD_BYTES) -> None:
        self.folder = folder
        self._columns = schema
        self._shard_bytes = shard_bytes
        self._shards: list[Path] = []
        self._file: Any = None
        self._writer: Any = None

    def write(self, batch: bytes) -> None:
        self._open_writer().write_batch(pa.ipc.read_record_batch(pa.py_buffer(batch), self._columns))

    def close(self, fingerprint: str) -> None:
        """Ends the last shard and writes the two files by which `datasets` knows the folder."""
        self._open_writer()
        self._close_shard()
        names = []
        for n, shard in enumerate(self._shards):
            name = f"data-{n:05d}-of-{len(self._shards):05d}.arrow"
            os.replace(shard, self.folder / name)
            names.append({"filename": name})
        state = {
            "_data_files": names,
            "_fingerprint": fingerprint[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        (self.folder / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
        info = {"citation": "", "description": "", "features": _features(self._columns), "homepage": "", "license": ""}
        (self.folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n")

    def _open_writer(self) -> Any:
        """The writer of the shard that is being filled."""
        if self._writer is not None and self._file.tell() >= self._shard_bytes:
            self._close_shard()
        if self._writer is None:
            self._shards.append(self.folder / f"shard-{len(self._shards)}")
            self._file = pa.OSFile(str(self._shards[-1]), "wb")
            self._writer = pa.ipc.new_stream(self._file, self._columns)
        return self._writer

    def _close_shard(self) -> None:
        self._writer.close()
        self._file.close()
        self._writer = None


def shard_names(folder: Path) -> list[str]:
    """The shards of a prepared folder in order."""
    return [entry["filename"] for entry in json.loads((folder / STATE_FILE).read_bytes())["_data_files"]]


def read_batches(folder: Path) -> Iterator[pa.RecordBatch]:
    """Record batches of a prepared folder in order; memory stays flat. Raises DataError where it is damaged."""
    try:
        for name in shard_names(folder):
            with pa.OSFile(str(folder / name), "rb") as file:
                yield from pa.ipc.open_stream(file)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{folder}: damaged prepared data ({error}): prepare it again") from None


def examples_of(batch: pa.RecordBatch) -> Iterator[Example]:
    """The examples of a record batch; the arrays are views on it."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    offsets = columns["input_ids"].offsets.to_numpy().tolist()
    ids = columns["input_ids"].values.to_numpy()
    weights = columns["weights"].values.to_numpy()
    coded = columns["channel_of"].values.dictionary_encode()
    codes = np.array([CHANNEL_CODES[name] for name in coded.dictionary.to_pylist()] + [0], dtype=np.uint8)
    channels = codes[coded.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)]
    sources, turns, warnings = (columns[name].to_pylist() for name in ("source", "turn", "warnings"))
    actions = columns["action"].to_pylist() if "action" in columns else [0] * len(turns)
    for n, (start, stop) in enumerate(pairwise(offsets)):
        notices = tuple(notice_of(text) for text in warnings[n])
        row = slice(start, stop)
        yield Example(sources[n], turns[n], ids[row], weights[row], channels[row], notices, actions[n])


def _trained_channels(example: Example) -> np.ndarray:
    return np.where(example.weights > 0, example.channels, 0)


# Arrow arrays from buffers: `pa.array` would import pandas, half a second in each process.


def number_array(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def list_offsets(lengths: Iterable[int]) -> pa.Array:
    return number_array(pa.int32(), np.cumsum([0, *lengths], dtype=np.int32))


def string_array(texts: Sequence[str]) -> pa.Array:
    encoded = [text.encode() for text in texts]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def warnings_of(notices: Iterable[Notice]) -> list[str]:
    """Notices as prepared rows hold them."""
    return [plain_text(f"{notice.kind}: {notice.field}: {notice.detail}") for notice in notices]


def plain_text(text: str) -> str:
    """File names may hold bytes that are no UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def notice_of(text: str) -> Notice:
    """A notice out of `warnings_of`."""
    kind, field, detail = [*text.split(": ", 2), "", ""][:3]
    return Notice(kind, field, detail)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The columns as `datasets` describes them."""

    def feature(kind: pa.DataType) -> dict[str, Any]:
        if pa.types.is_list(kind):
            return {"feature": feature(kind.value_type), "_type": "List"}
        return {"dtype": str(kind).replace("float", "float32"), "_type": "Value"}

    return {field.name: feature(field.type) for field in schema}
