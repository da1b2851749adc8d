from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[1] / "tiny_run.py"


@pytest.fixture(scope="session")
def tiny_run() -> ModuleType:
    """The module tests/unit/train/tiny_run.py."""
    if "tiny_run" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tiny_run", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["tiny_run"] = module
        spec.loader.exec_module(module)
    return sys.modules["tiny_run"]
