"""Users' functions by name: `module:function`, or `path/file.py:function`.

A file is run once in a process, however many of its functions are named and however often; again when it has changed.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from counterpoint.configs.errors import ConfigError

_FIX = "write module:function or path/file.py:function"
_loaded: dict[str, tuple[int, ModuleType]] = {}
"""Absolute path of a file -> the time of its last change (ns) and its module."""


def is_function(name: str) -> bool:
    """Whether a setting names a user's function, and not a built-in."""
    return ":" in name


def resolve(function: str) -> Callable[..., Any]:
    """The function of that name. ConfigError where there is none."""
    place, name = _parts(function)
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        found = getattr(module, name, None)
        if found is None:
            raise AttributeError(f"module '{Path(place).stem}' has no attribute '{name}'")
    except Exception as error:
        raise ConfigError(f"function `{function}`: {type(error).__name__}: {error}: {_FIX}") from None
    if not callable(found):
        raise ConfigError(f"function `{function}`: is of type {type(found).__name__}: {_FIX}")
    return found


def exists(function: str) -> bool:
    """True, or ConfigError where `resolve` finds no such function: checked in the child, without calling it."""
    return callable(resolve(function))


def file_of(function: str) -> Path:
    """The file that holds a function, for its hash. ConfigError where there is none, or the module has no file."""
    place, _ = _parts(function)
    if place.endswith(".py"):
        return Path(place)
    resolve(function)
    file = getattr(sys.modules[place], "__file__", None)
    if file is None:
        raise ConfigError(f"function `{function}`: its module has no file: {_FIX}")
    return Path(file)


def _parts(function: str) -> tuple[str, str]:
    place, _, name = function.rpartition(":")
    if not place or not name:
        raise ConfigError(f"function `{function}`: {_FIX}")
    return place, name


def _module_of_file(path: Path) -> ModuleType:
    path = path.absolute()
    changed = path.stat().st_mtime_ns
    known = _loaded.get(str(path))
    if known is not None and known[0] == changed:
        return known[1]
    # A name of its own: a user's `json.py` must not replace Python's. Dataclasses and pickle look it up.
    name = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    loader = SourceFileLoader(name, str(path))
    # Compiled here: bytecode on the disk counts as current by its time in whole seconds and its size.
    code = loader.source_to_code(path.read_bytes(), str(path))
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__loader__ = loader
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    _loaded[str(path)] = changed, module
    return module
