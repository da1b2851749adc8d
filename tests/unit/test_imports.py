"""Which room imports which: one table of the arrows that rooms may have, and no cycle between rooms or files.

Imports inside functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tree import LAYERS, MODULES, SOURCES, imports, module_name, top

EVERYWHERE = {"configs", "data/conversation"}
"""Rooms that every room above them may import; `configs` imports nothing of ours."""

ARROWS = {
    "configs": "",
    "data/conversation": "configs",
    "data/intervals": "",
    "data/notices": "",
    "data/user_code": "",
    "data/examples": "",
    "data/rows": "",
    "data/harmony": "",
    "data/layout": "harmony",
    "data/pages": "harmony",
    "data/counts": "rows harmony",
    "data/formats": "user_code rows harmony",
    "data/prepared": "user_code rows harmony counts",
    "data/dataset": "rows harmony layout counts formats prepared",
    "data/prepare": "rows harmony pages counts formats prepared dataset",
    "data/show": "rows harmony pages counts",
    "train/kernels": "",
    "train/model": "harmony kernels",
    "train/adapters": "kernels model",
    "train/checkpoints": "model adapters",
    "train/run": "prepared model checkpoints",
    "train/sampling": "harmony model checkpoints",
    "train/episodes": "user_code rows formats harmony sampling",
    "train/scoring": "user_code rows formats harmony sampling episodes",
    "train/endpoint": "formats harmony model adapters sampling episodes scoring",
    "train/bridges": "",
    "train/foreign": "harmony sampling episodes endpoint",
    "train/serving": "formats harmony sampling",
    "train/evals": "intervals user_code formats harmony pages model adapters checkpoints run sampling episodes scoring "
    "foreign",
    "train/export": "formats harmony dataset model adapters checkpoints sampling scoring serving evals",
    "train/loop": "harmony layout dataset model adapters checkpoints run sampling episodes scoring endpoint foreign",
    "train/parity": "model adapters loop",
    "train/plan": "model adapters loop",
    "recipes": "intervals rows formats harmony layout dataset model adapters checkpoints run sampling episodes scoring "
    "foreign serving evals loop",
    "recipes/commands": "intervals rows formats harmony layout pages counts prepared dataset prepare show "
    "model checkpoints run sampling episodes scoring endpoint serving evals export loop parity plan recipes",
}
"""Room: the rooms that it imports, without their layer and without those of EVERYWHERE; from the bottom to the top."""

SHORT = {room.rpartition("/")[2]: room for room in ARROWS}


def room_of(module: str) -> str:
    """`counterpoint.data.rows.tables` is in `data/rows`; files of a layer that lie in no folder are a room each."""
    _, layer, *rest = module.split(".")
    if layer == "configs" or not rest:
        return layer
    if layer == "recipes":
        return "recipes" if len(rest) == 1 and rest[0] != "commands" else f"recipes/{rest[0]}"
    return f"{layer}/{rest[0]}"


def ours(path: Path) -> Iterator[str]:
    """The files of the package that a file imports."""
    yield from (module for module in imports(path) if module in MODULES and MODULES[module].name != "__init__.py")


def test_the_table_goes_from_the_bottom_to_the_top() -> None:
    rooms = list(ARROWS)
    for room, names in ARROWS.items():
        below = [SHORT[name] for name in names.split()]
        assert all(rooms.index(other) < rooms.index(room) for other in below), room
        assert LAYERS.index(top(room.replace("/", "."))) >= max(
            (LAYERS.index(other.partition("/")[0]) for other in below), default=0
        )


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_a_file_imports_only_what_its_room_may(path: Path) -> None:
    room = room_of(module_name(path))
    if path.name == "__init__.py" and room not in ARROWS:
        assert room in LAYERS
        return
    allowed = {room, *(SHORT[name] for name in ARROWS[room].split())}
    allowed |= EVERYWHERE if room not in EVERYWHERE else set()
    for module in ours(path):
        assert room_of(module) in allowed, f"{path} imports {module}: {room} may import {sorted(allowed - {room})}"


def test_every_arrow_of_the_table_is_there() -> None:
    found: dict[str, set[str]] = {room: set() for room in ARROWS}
    for path in SOURCES:
        room = room_of(module_name(path))
        found.setdefault(room, set()).update(room_of(module) for module in ours(path))
    for room, names in ARROWS.items():
        assert {SHORT[name] for name in names.split()} <= found[room], f"{room} has an arrow that no import needs"


def test_no_two_files_import_each_other() -> None:
    graph = {module_name(path): set(ours(path)) - {module_name(path)} for path in SOURCES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_are_absolute_and_pass_by_the_front_door(path: Path) -> None:
    for module in imports(path):
        assert top(module) not in (*LAYERS, "tests"), f"{path} imports {module}, which only lies in the source tree"
        if top(module) == "counterpoint" and module != "counterpoint":
            assert module.split(".")[1] in LAYERS, f"{path} imports {module}: name the module that holds it"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    modules = {top(module) for module in imports(path)}
    folder = path.parent.as_posix()
    if not (folder == "train/loop" or path.parts[0] == "recipes"):
        assert "trl" not in modules
    if folder != "data/harmony":
        assert "openai_harmony" not in modules
    if path.parts[0] == "configs":
        assert not modules & {"torch", "transformers", "numpy"}
