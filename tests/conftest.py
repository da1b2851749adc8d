"""What every test shares: patience with a busy machine, and a word about tests whose tools are not installed."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: threads of several processes on the same cores wait for each other in busy loops.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from forks import Forks
from hypothesis import settings

# A busy machine must not fail a property.
settings.register_profile("counterpoint", deadline=None)
settings.load_profile("counterpoint")

NEEDS = {
    "tests/browser/": (("chromium", "chromium-browser", "google-chrome"), "chromium"),
    "test_sandbox.py": (("bwrap",), "bubblewrap"),
    "test_code_reward.py": (("bwrap",), "bubblewrap"),
    "test_graders.py": (("bwrap",), "bubblewrap"),
}
"""Part of a test's path -> the programs of which it needs one, and the Debian package that brings it."""


PACKAGES = {
    "[bitsandbytes": "bitsandbytes",
    "[torchao": "torchao",
    "test_real_vllm_": "vllm",
    "test_real_vllm.py": "vllm",
    "test_vllm_resolver": "vllm",
    "test_tensorboard": "tensorboard",
    "test_mlflow": "mlflow",
    "test_similarity.py": "rapidfuzz",
}
"""Part of a test's id -> the package that it needs; extras that are not among those of `dev`, since transformers loads
them wherever they are, or that are heavy."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run; begin with what may take longest, so that no process ends alone."""
    missing = [*missing_programs(), *missing_packages()]
    gone = {item for item in items if any(part in item.nodeid for part in missing)}
    if gone:
        config.hook.pytest_deselected(items=list(gone))
        items[:] = [item for item in items if item not in gone]
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    if "counterpoint.train.run.folder" in sys.modules:
        hold_run_folders_to_their_tables()
    # Trainers collect garbage at every end; what the imports made is not looked through each time.
    gc.collect()
    gc.freeze()


def hold_run_folders_to_their_tables() -> None:
    """Every test that trains fails where a number or a file of its run has no meaning in the reference."""
    from counterpoint.train.run.contents import FILES, METRICS, meaning_of
    from counterpoint.train.run.folder import RunFolder

    write, close = RunFolder.metrics, RunFolder.close

    def metrics(folder: RunFolder, values: Mapping[str, Any]) -> None:
        assert all(meaning_of(name, METRICS) for name in values), f"not in METRICS: {sorted(values)}"
        write(folder, values)

    def closed(folder: RunFolder) -> None:
        close(folder)
        found = (path.relative_to(folder.path).as_posix() for path in folder.path.glob("*"))
        unknown = [name for name in found if not any(re.match(_start_of(path), name) for path in FILES)]
        assert not unknown, f"not in FILES: {unknown}"

    RunFolder.metrics, RunFolder.close = metrics, closed


def _start_of(path: str) -> str:
    first = re.escape(path.partition("/")[0])
    return re.sub(r"<\w+>", r"[\\w.-]+", first) + r"$"


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes that need not import anything (tests/forks.py)."""
    made = Forks(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for part, package in missing_programs().items():
        terminalreporter.write_line(f"NOT RUN: {part} needs {package} (apt-get install {package})", yellow=True)
    if "COUNTERPOINT_FOREIGN" not in os.environ:
        told = "NOT RUN: tests of packages with environments need COUNTERPOINT_FOREIGN (docs/foreign-environments.md)"
        terminalreporter.write_line(told, yellow=True)
    for package in missing_packages().values():
        extra = "graders" if package == "rapidfuzz" else package
        terminalreporter.write_line(f"NOT RUN: tests of {package} need it (pip install '.[{extra}]')", yellow=True)


def missing_packages() -> dict[str, str]:
    """Part of a test's id -> the package that it needs and that is not installed."""
    gone = {part: name for part, name in PACKAGES.items() if importlib.util.find_spec(name) is None}
    if "COUNTERPOINT_VLLM" in os.environ:  # the Python of an environment that has vLLM
        gone.pop("test_real_vllm_", None)  # test_real_vllm.py has it in its own process
    return gone


def missing_programs() -> dict[str, str]:
    """Of `NEEDS`, what is not installed: part of a test's path -> package. Where CI is set it must run all the same."""
    if os.environ.get("CI"):
        return {}
    return {part: package for part, (names, package) in NEEDS.items() if not any(map(shutil.which, names))}
