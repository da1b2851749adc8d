"""The page on environments: its class and its test of it run as they are written."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "environments.md"


def test_the_class_of_the_page_passes_the_test_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    task, test = (next(block for block in blocks if text in block) for text in ("# my_task.py", "def test_"))
    (tmp_path / "my_task.py").write_text(task)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, object] = {}
    try:
        exec(test, names)
        tests = [value for name, value in names.items() if name.startswith("test_") and callable(value)]
        assert len(tests) == 1
        tests[0]()
    finally:
        sys.modules.pop("my_task", None)
