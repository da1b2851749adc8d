"""Faults are injected into real runs (tests/faulty.py)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from faulty import Place, lay_out
from forks import Forks


@pytest.fixture
def place(tmp_path: Path, forks: Forks) -> Place:
    return lay_out(tmp_path, forks)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Place:
    """A finished run, unbroken: what others are compared with, and copied from. Nothing writes to it."""
    made = lay_out(tmp_path_factory.mktemp("whole"), forks)
    made("train", "my.yaml")
    return made


@pytest.fixture
def finished(whole: Place, place: Place) -> Place:
    """A copy of the finished run, to be damaged."""
    shutil.copytree(whole.folder / "runs", place.folder / "runs")
    return place
