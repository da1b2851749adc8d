"""The tests of a row whose answer is a program, by the names and in the shapes that data sets use.

    test_cases, tests, input_output, verification_info, ground_truth, reward_model.ground_truth, test_list, test,
    public_tests with private_tests and generated_tests (CodeContests), public_test_cases (LiveCodeBench)

    {"inputs": [...], "outputs": [...], "fn_name"}        APPS, TACO, verl, DeepCoder; of CodeContests `input`, `output`
    [{"input", "output", "fn_name" | "type" | "testtype"}]   open-r1, SYNTHETIC-1, rllm, LiveCodeBench
    ["assert ...", ...], {"assert_case": [...]}           MBPP, AceCode, verl
    Python with `check(candidate)`, `test_...()` or unittest classes   HumanEval, LeetCodeDataset, KodCode, BigCodeBench

Each may be JSON text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMES = (
    "test_cases",
    "tests",
    "input_output",
    "verification_info",
    "reward_model.ground_truth",
    "ground_truth",
    "test_list",
    "test",
    "public_test_cases",
)
_CONTESTS = ("public_tests", "private_tests", "generated_tests")
_INPUTS, _OUTPUTS = ("inputs", "input"), ("outputs", "output", "expected_output", "expected")
_PYTHON = ("", "python", "py", "python3", "cpython")


@dataclass(frozen=True, slots=True)
class ProgramCase:
    """A program that reads `given` and is to print `printed`; None: what the row's reference code prints."""

    given: str
    printed: str | None


@dataclass(frozen=True, slots=True)
class CallCase:
    """A call with these JSON values that is to return `value`. known: false where the reference code says it."""

    arguments: tuple[Any, ...]
    value: Any = None
    known: bool = True


@dataclass(frozen=True, slots=True)
class AssertCase:
    """Python that raises unless the names it uses, which are those of the judged program, do what is asked."""

    code: str


Case = ProgramCase | CallCase | AssertCase


@dataclass(frozen=True, slots=True)
class CodeTests:
    """What a program must pass.

    entry: the function that calls and `check` are about, as `add` or `Solution().add`. setup: Python that asserts are
    preceded by. stub: the start of a program that the row shows (imports, helpers, signatures). reference: a right
    program.
    """

    cases: tuple[Case, ...]
    entry: str | None = None
    setup: str = ""
    stub: str = ""
    reference: str | None = None


def code_tests(row: Mapping[str, Any], asked: str) -> CodeTests | None:
    """The tests of a row; None where it has none that we can read. asked: the prompt, of which HumanEval's is code."""
    reference = row.get("reference_code")
    reader = _Reader(_entry(row), isinstance(reference, str) and bool(reference.strip()))
    for name in _NAMES:
        cases = reader.cases(_at(row, name))
        if cases:
            break
    else:
        cases = [case for name in _CONTESTS for case in reader.cases(row.get(name))]
    if not cases:
        return None
    starter = row.get("starter_code")
    stub = asked if "test" in row or "input_output" in row else ""
    return CodeTests(
        cases=tuple(cases),
        entry=reader.entry,
        setup=_setup(row),
        stub=next((text for text in (stub, starter) if isinstance(text, str) and text.strip() and _parses(text)), ""),
        reference=reference if reader.has_reference else None,
    )


def holds_tests(value: Any) -> bool:
    """Whether a value that stands where answers do holds tests, also as JSON text."""
    if isinstance(value, str):
        value = _json(value) if value.lstrip()[:1] in ("{", "[") else None
    return isinstance(value, Mapping | list) and bool(_Reader(None, False).cases(value))


@dataclass
class _Reader:
    """Reads one row. entry: of the row, or of the first test that names one. has_reference: outputs may be missing."""

    entry: str | None
    has_reference: bool

    def cases(self, value: Any) -> list[Case]:
        if isinstance(value, str):
            parsed = _json(value)
            return self._python(value) if parsed is None else self.cases(parsed)
        if isinstance(value, Mapping):
            return self._object(value)
        if not isinstance(value, Sequence) or not value:
            return []
        if all(isinstance(each, str) for each in value):
            return [AssertCase(each) for each in value] if all(_asserts(each) for each in value) else []
        if all(isinstance(each, Mapping) for each in value):
            each_case = [self._pair(each) for each in value]
            return [case for case in each_case if case is not None] if None not in each_case else []
        return []

    def _object(self, value: Mapping[str, Any]) -> list[Case]:
        if str(value.get("language") or "").lower() not in _PYTHON:
            return []
        for name in ("test_cases", "assert_case", "tests", "unit_tests"):
            if value.get(name):
                self._named(value)
                return self.cases(value[name])
        inputs, outputs = _first(value, _INPUTS), _first(value, _OUTPUTS)
        if not isinstance(inputs, list) or not inputs:
            return []
        if outputs is None and self.has_reference:
            outputs = [None] * len(inputs)
        if not isinstance(outputs, list) or len(inputs) != len(outputs):
            return []
        self._named(value)
        called = bool(value.get("fn_name"))
        return [self._case(given, wanted, called) for given, wanted in zip(inputs, outputs, strict=True)]

    def _pair(self, value: Mapping[str, Any]) -> Case | None:
        given, wanted = _first(value, _INPUTS), _first(value, _OUTPUTS)
        if given is None or (wanted is None and not self.has_reference):
            return None
        self._named(value)
        kind = str(value.get("type") or value.get("testtype") or "")
        named = bool(value.get("fn_name") or (value.get("metadata") or {}).get("func_name"))
        return self._case(given, wanted, named if kind == "" else kind in ("functional", "function_call", "call"))

    def _named(self, value: Mapping[str, Any]) -> None:
        about = value.get("metadata")
        name = value.get("fn_name") or (about.get("func_name") if isinstance(about, Mapping) else None)
        if self.entry is None and isinstance(name, str):
            self.entry = name

    def _case(self, given: Any, wanted: Any, called: bool) -> Case:
        if not called:
            return ProgramCase(_lines(given), None if wanted is None else _lines(wanted))
        if isinstance(given, str):  # an argument a line
            parsed = [_json(line, line) for line in given.split("\n") if line.strip()]
        else:
            parsed = list(given) if isinstance(given, list) else [given]
        value = _json(wanted, wanted) if isinstance(wanted, str) and isinstance(given, str) else wanted
        return CallCase(tuple(parsed), value, wanted is not None)

    def _python(self, text: str) -> list[Case]:
        """A text of Python: one case for `check` or for plain asserts, and one for each test function or class."""
        tree = _parsed(text)
        if tree is None:
            return []
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if "check" in functions and self.entry is not None:
            return [AssertCase(f"{text}\n\ncheck(candidate)\n")]
        classes = [
            node.name
            for node in tree.body
            if isinstance(node, ast.ClassDef) and any("TestCase" in ast.unparse(base) for base in node.bases)
        ]
        found: list[Case] = [AssertCase(f"{text}\n\n{name}()\n") for name in functions if name.startswith("test")]
        found += [AssertCase(f"{text}\n\n{_UNITTEST.format(name=name)}") for name in classes]
        if not found and any(isinstance(node, ast.Assert) for node in tree.body):
            found.append(AssertCase(text))
        return found


_UNITTEST = """import unittest as _unittest, io as _io
_run = _unittest.TextTestRunner(_io.StringIO()).run(_unittest.defaultTestLoader.loadTestsFromTestCase({name}))
assert _run.testsRun and _run.wasSuccessful(), [text for _, text in (*_run.failures, *_run.errors)][:1]
"""


def _entry(row: Mapping[str, Any]) -> str | None:
    about = _json(row.get("metadata"), row.get("metadata"))
    about = about if isinstance(about, Mapping) else {}
    found = (row.get("entry_point"), row.get("fn_name"), about.get("func_name"), about.get("fn_name"))
    return next((name for name in found if isinstance(name, str) and name), None)


def _setup(row: Mapping[str, Any]) -> str:
    """MBPP's `test_setup_code` and `test_imports`."""
    imports = row.get("test_imports")
    lines = [str(line) for line in imports] if isinstance(imports, list) else []
    return "\n".join(filter(None, [str(row.get("test_setup_code") or ""), *lines]))


def _lines(value: Any) -> str:
    """Text of a program's input or output, which some write as a list of lines."""
    if isinstance(value, list):
        return "\n".join(str(line) for line in value)
    return value if isinstance(value, str) else json.dumps(value)


def _first(value: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((value[name] for name in names if value.get(name) is not None), None)


def _json(text: Any, otherwise: Any = None) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return otherwise


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parses(text: str) -> bool:
    return _parsed(text) is not None


def _asserts(text: str) -> bool:
    tree = _parsed(text)
    return tree is not None and any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def _at(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
