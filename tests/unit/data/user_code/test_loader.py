"""Functions named `file.py:function` or `module:function`: found, run once in a process, run anew when changed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.data.user_code.loader import file_of, resolve
from counterpoint.data.user_code.worker import Worker

COUNTS = """from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path

with Path(__file__).with_suffix(".log").open("a") as log:
    log.write("run ")

@dataclass
class Pair:
    left: int

def first(x):
    return Pair(x)

def second(x):
    return x + 1
"""


def test_a_file_is_run_once_however_often_its_functions_are_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(COUNTS)
    for _ in range(3):
        assert resolve(f"{file}:first")(1).left == 1
        assert resolve(f"{file}:second")(1) == 2
    assert resolve(f"{file}:first") is resolve(f"{file}:first")
    assert file.with_suffix(".log").read_text() == "run "
    assert pickle.loads(pickle.dumps(resolve(f"{file}:first")(7))).left == 7


def test_a_changed_file_is_run_again_within_the_same_second(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def f():\n    return 1\n")
    os.utime(file, ns=(0, 5_000_000_000))
    assert resolve(f"{file}:f")() == 1
    file.write_text("def f():\n    return 2\n")
    os.utime(file, ns=(0, 5_000_000_001))
    assert resolve(f"{file}:f")() == 2


def test_a_file_is_not_taken_for_a_module_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("def dumps(x):\n    return 'mine'\n")
    assert resolve(f"{tmp_path / 'json.py'}:dumps")(1) == "mine"
    assert resolve("json:dumps")(1) == "1"
    assert file_of("json:dumps").name == "__init__.py"
    assert file_of(f"{tmp_path / 'json.py'}:dumps") == tmp_path / "json.py"


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("f = 1", "mine.py:f", "is of type int"),
        ("f = 1", "mine.py:g", "AttributeError: module 'mine' has no attribute 'g'"),
        ("1/0", "mine.py:g", "ZeroDivisionError: division by zero"),
        ("f(", "mine.py:g", "SyntaxError: '(' was never closed (mine.py, line 1)"),
        ("", "other.py:g", "FileNotFoundError: [Errno 2] No such file or directory: '{}/other.py'"),
        ("", "no_such_module:g", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "mine.py:", ""),
        ("", ":f", ""),
    ],
)
def test_what_is_no_function_is_told_in_one_line(
    text: str, name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ConfigError) as error:
        resolve(name)
    middle = f"{told.format(tmp_path)}: " if told else ""
    assert str(error.value) == f"function `{name}`: {middle}write module:function or path/file.py:function"


def test_a_value_whose_class_only_the_child_knows_is_an_answer_too(tmp_path: Path) -> None:
    file = tmp_path / "child_only.py"
    file.write_text(COUNTS)
    with Worker(60) as worker:
        answer = worker.call(f"{file}:first", 1)
        assert (answer.failure, answer.detail) == ("raised", "its value cannot be read (ModuleNotFoundError)")
        assert worker.call(f"{file}:second", 1).value == 2
