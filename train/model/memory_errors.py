"""Too little memory has many names: the libraries below torch raise it as what they like."""

from __future__ import annotations

import errno

import torch

_TEXTS = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "bad_alloc", "os error 12")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what caused it, is that memory ran out, on a GPU or of this process."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in _TEXTS):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        error = error.__cause__ or error.__context__
    return False
