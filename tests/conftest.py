"""What every test shares: patience with a busy machine, and a word about tests whose tools are not installed."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import settings

# A busy machine must not fail a property.
settings.register_profile("counterpoint", deadline=None)
settings.load_profile("counterpoint")

NEEDS = {
    "tests/browser/": (("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "test_sandbox.py": (("bwrap",), "bubblewrap"),
}
"""Part of a test's path -> the programs of which it needs one, and the Debian package that brings it."""

_left_out: dict[str, int] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, and say so at the end, what a bare machine cannot run; where CI is set it must run."""
    if os.environ.get("CI"):
        return
    missing = {part: package for part, (names, package) in NEEDS.items() if not any(map(shutil.which, names))}
    gone = {item: package for item in items for part, package in missing.items() if part in item.nodeid}
    for package in gone.values():
        _left_out[package] = _left_out.get(package, 0) + 1
    if gone:
        config.hook.pytest_deselected(items=list(gone))
        items[:] = [item for item in items if item not in gone]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for package, count in _left_out.items():
        terminalreporter.write_line(f"NOT RUN: {count} tests need {package} (apt-get install {package})", yellow=True)
