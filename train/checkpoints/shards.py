"""The weights of a model that was trained in full under FSDP2: a checkpoint's shards, all read by one process."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict_loader import load

from counterpoint.configs.errors import ModelError

SHARDS = "pytorch_model_fsdp_0"
"""accelerate's folder of shards in a checkpoint."""
_RECORDS = {
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
            "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
        )
    ),
}  # fmt: skip


def load_shards(model: torch.nn.Module, folder: Path) -> None:
    """Load the shards of checkpoint `folder` into an unsharded model. ModelError where they are not this model's."""
    try:
        reader = _Reader(folder / SHARDS)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load({"model": model.state_dict()}, storage_reader=reader, no_dist=True)
    except Exception as error:
        # torch ends a list of tracebacks with what went wrong.
        why = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        raise ModelError(f"{folder / SHARDS}: cannot be read ({why}): take another checkpoint of the run") from error


class _Reader(FileSystemReader):
    """torch's reader, whose index is a pickle; it reads the tensors themselves without."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))
        with (folder / ".metadata").open("rb") as file:
            self.index: Metadata = _Records(file).load()
        self.index.storage_meta = self.index.storage_meta or StorageMeta()
        self.index.storage_meta.load_id = self.load_id

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.index


class _Records(pickle.Unpickler):
    """Makes only the plain records of such an index: a checkpoint runs no code."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        number = module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        if not number and (module_name, global_name) not in _RECORDS:
            raise ModelError(f"its index asks for {module_name}.{global_name}")
        return super().find_class(module_name, global_name)
