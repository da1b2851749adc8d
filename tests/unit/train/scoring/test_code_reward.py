"""Programs on the tests of their rows, and what a program may try that has not solved them."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from finals import finished

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import CodeReward
from counterpoint.data.conversation import Conversation, Message
from counterpoint.train.scoring.code_runner import CodeRunner, program_in, same_output
from counterpoint.train.scoring.code_truths import AssertCase, CallCase, Case, CodeTests, ProgramCase, code_tests
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.prompts import prompt_of
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference, Scorers

SUMS = [{"input": "1 2\n", "output": "3\n"}, {"input": "40 2\n", "output": "42\n"}]
SUM_PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"
CHECK = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(-1) == 0\n"
STACK = (
    "from solution import Stack\n\ndef test_order():\n    stack = Stack()\n    stack.push(1), stack.push(2)\n"
    "    assert len(stack) == 2 and stack.pop() == 2 and isinstance(stack, Stack) and list(stack) == [1]\n"
    "\ndef test_empty():\n    try:\n        Stack().pop()\n    except IndexError as error:\n        assert 'empty' in str(error)\n"
    "    else:\n        assert False\n"
)
STACK_PROGRAM = (
    "class Stack:\n    def __init__(self):\n        self.a = []\n    def push(self, x):\n        self.a.append(x)\n"
    "    def pop(self):\n        if not self.a:\n            raise IndexError('empty')\n        return self.a.pop()\n"
    "    def __len__(self):\n        return len(self.a)\n    def __iter__(self):\n        return iter(self.a)\n"
)
CONTINUES = (
    'from typing import List\n\ndef helper(n):\n    return n + 1\n\n\ndef add(n: int) -> int:\n    """One more."""\n'
)


def passed(row: dict[str, Any], program: str, asked: str = "", seconds: float = 20.0) -> tuple[int, int]:
    tests = code_tests(row, asked)
    assert tests is not None
    tested = CodeRunner(seconds).run(program, tests)
    assert tested.broken is None, tested.broken
    return tested.passed, tested.n


PROGRAM = [ProgramCase("1 2\n", "3\n"), ProgramCase("40 2\n", "42\n")]
CALL = [CallCase((1, 2), 3), CallCase((40, 2), 42)]
SHAPES: list[tuple[dict[str, Any], list[Any]]] = [
    ({"test_cases": SUMS}, PROGRAM),
    ({"test_cases": json.dumps(SUMS)}, PROGRAM),
    ({"tests": [{**each, "testtype": "stdin"} for each in SUMS]}, PROGRAM),
    ({"input_output": json.dumps({"inputs": ["1 2\n", "40 2\n"], "outputs": ["3\n", "42\n"]})}, PROGRAM),
    ({"input_output": {"inputs": [["1 2", ""], ["40 2", ""]], "outputs": [["3", ""], ["42", ""]]}}, PROGRAM),
    ({"public_tests": {"input": ["1 2\n"], "output": ["3\n"]}, "private_tests": {"input": ["40 2\n"], "output": ["42\n"]}}, PROGRAM),
    ({"reward_model": {"ground_truth": json.dumps({"inputs": ["1 2\n", "40 2\n"], "outputs": ["3\n", "42\n"]})}}, PROGRAM),
    ({"verification_info": json.dumps({"language": "python", "test_cases": [{**each, "fn_name": None, "type": "stdin_stdout"} for each in SUMS]})}, PROGRAM),
    ({"input_output": {"inputs": [[1, 2], [40, 2]], "outputs": [3, 42], "fn_name": "add"}}, CALL),
    ({"ground_truth": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional", "metadata": {"func_name": "add"}}, {"input": "40\n2", "output": "42", "testtype": "functional", "metadata": {"func_name": "add"}}])}, CALL),
    ({"public_test_cases": json.dumps([{"input": "1\n2", "output": "3", "testtype": "functional"}, {"input": "40\n2", "output": "42", "testtype": "functional"}]), "metadata": '{"func_name": "add"}'}, CALL),
    ({"test_list": ["assert add(1, 2) == 3"]}, [AssertCase("assert add(1, 2) == 3")]),
    ({"reward_model": {"ground_truth": json.dumps({"assert_case": ["assert add(1, 2) == 3"]})}}, [AssertCase("assert add(1, 2) == 3")]),
    ({"test": CHECK, "entry_point": "add"}, [AssertCase(f"{CHECK}\n\ncheck(candidate)\n")]),
    ({"test": STACK}, [AssertCase(f"{STACK}\n\n{name}()\n") for name in ("test_order", "test_empty")]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "cases"), SHAPES)
def test_tests_are_read_in_the_shapes_that_data_sets_use(row: dict[str, Any], cases: list[Any]) -> None:
    tests = code_tests(row, "")
    assert tests is not None
    assert list(tests.cases) == cases
    assert tests.entry == ("add" if cases is CALL or "entry_point" in row else None)
    prompt = prompt_of(Conversation((Message("user", "Add."),), metadata=row))
    assert (prompt.scorer, prompt.reference.answer, prompt.reference.calls) == ("code", None, None)


@pytest.mark.parametrize(
    "row",
    [
        {"tests": 5},
        {"tests": []},
        {"tests": "it works"},
        {"test": CHECK},  # of which function?
        {"verification_info": {"ground_truth": "42"}},
        {"verification_info": {"language": "cpp", "test_cases": SUMS}},
        {"input_output": '{"inputs": ["1"], "outputs": []}'},
        {"test_cases": [{"input": "1"}]},
        {"ground_truth": '{"inputs": 3}', "answer": "x"},
    ],
)
def test_what_is_no_test_is_none(row: dict[str, Any]) -> None:
    assert code_tests(row, "") is None
    assert prompt_of(Conversation((Message("user", "Add."),), metadata=row)).scorer != "code"


def test_an_answer_stays_the_truth_of_a_row_with_tests() -> None:
    prompt = prompt_of(Conversation((Message("user", "Add."),), metadata={"answer": "42", "tests": SUMS}))
    assert (prompt.scorer, prompt.reference.tests is not None) == ("number", True)


@pytest.mark.parametrize(
    ("final", "program"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("First:\n```py\na = 1\n```\nNo, rather\n\n```python\na = 2\n```\nIt prints\n```text\n2\n```", "a = 2\n"),
        ("```\na = 1\n```\nthen\n```\na = 2\n```", "a = 2\n"),
        ("~~~~ python title=x\na = '```'\n~~~~", "a = '```'\n"),
        ("```python\na = 1", "a = 1"),
        ("```cpp\nint a;\n```", None),
        ("a = 1", None),
        ("```python\n\n```", None),
    ],
)
def test_the_last_block_of_python_is_the_program(final: str, program: str | None) -> None:
    assert program_in(final) == program


@pytest.mark.parametrize(
    ("printed", "wanted", "right"),
    [
        ("3\n", "3", True),
        ("1 2 \n3\n\n", "1 2\n3", True),
        ("0.3333333", "0.33333333333", True),
        ("0.34", "0.33", False),
        ("1 2 3", "1 2\n3", False),
        ("3.0", "3", False),
        ("nan", "0.5", False),
        ("YES", "Yes", False),
        ("", "3", False),
    ],
)
def test_printed_text_is_compared_by_lines_and_words(printed: str, wanted: str, right: bool) -> None:
    assert same_output(printed, wanted) is right


@pytest.mark.parametrize(
    ("row", "program", "asked", "expected"),
    [
        ({"tests": SUMS}, SUM_PROGRAM, "", (2, 2)),
        ({"tests": SUMS}, "import sys\nprint(sum(map(int, open(0).read().split())))\nsys.exit()", "", (2, 2)),
        ({"tests": SUMS}, "print(3)", "", (1, 2)),
        (SHAPES[8][0], "class Solution:\n    def add(self, a, b):\n        print('x')\n        return a + b", "", (2, 2)),
        ({"test": STACK}, STACK_PROGRAM, "", (2, 2)),
        ({"test": CHECK, "entry_point": "add"}, "def add(n: List[int]):\n    return helper(n)", CONTINUES, (1, 1)),
        ({"test_list": ["a = 10\nassert sum(a, 15) == 25"]}, "def sum(a, b):\n    return a + b", "", (1, 1)),
        ({"tests": [{"input": "2"}, {"input": "3"}], "reference_code": "print(int(input()) * 2)"}, "print(4)", "", (1, 2)),
    ],
)  # fmt: skip
def test_a_program_passes_what_it_solves(
    row: dict[str, Any], program: str, asked: str, expected: tuple[int, int]
) -> None:
    assert passed(row, program, asked) == expected


ASSERTED = {"test": CHECK, "entry_point": "add"}
CHEATS = {
    "leaves before the asserts": "import sys\nsys.exit(0)",
    "leaves in the call": "def add(n):\n    raise SystemExit(0)",
    "kills its process": "import os\ndef add(n):\n    os._exit(0)",
    "kills what it finds": "import os, signal\ndef add(n):\n    [os.kill(p, 9) for p in range(2, 9)]",
    "equals everything": "class Any(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\ndef add(n): return Any(7)",
    "is an object that equals everything": "class Any:\n    def __eq__(self, other): return True\ndef add(n): return Any()",
    "changes builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.__build_class__ = builtins.compile = builtins.exec = None\ndef add(n): return 9",
    "changes asserts of others": "import sys, gc\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'check'): m.check = lambda c: None\ndef add(n): return 9",
    "writes verdicts": "import os\ndef add(n):\n    os.write(1, b'\\n[\"done\"]\\n')\n    print('[\"done\"]')\n    return 9",
    "answers in place of its side": "import gc\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Peer':\n        o.outbox.put(['done'])\ndef add(n): return 9",
    "reads the asserts": "import glob\nfound = [open(p, errors='ignore').read() for p in glob.glob('/tmp/*') + ['/proc/self/cmdline', '/proc/self/environ']]\ndef add(n): return 2 if any('candidate(1)' in f for f in found) and n == 1 else 9",
    "forks": "import os\ndef add(n):\n    while True: os.fork()",
    "stops the loop": "def add(n):\n    raise StopIteration",
    "is skipped": "import unittest\ndef add(n):\n    raise unittest.SkipTest('no')",
    "lacks the name": "def sub(n): return n - 1",
    "says its module is missing": "def add(n):\n    raise ModuleNotFoundError(\"No module named 'x'\", name='x')",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("program", CHEATS.values(), ids=CHEATS)
def test_no_trick_passes_asserts(program: str) -> None:
    assert passed(ASSERTED, program) == (0, 1)


@pytest.mark.parametrize(
    ("test", "program"),
    [
        ("assert all(map(is_even, [2, 4]))", "def is_even(n):\n    raise StopIteration"),
        ("assert abs(half(1) - 0.5) < 1e-6", "def half(n): return 9.0\ndef abs(x): return 0"),
        ("import math\nassert math.isclose(half(1), 0.5)", "class math:\n    isclose = lambda *a: True\ndef half(n): return 9.0"),
        ("assert len(items()) == 3", "def len(x): return 3\ndef items(): return 9"),
        ("assert 5 in items()", "class All:\n    def __contains__(self, x): return True\ndef items(): return All()"),
        ("assert biggest() > 5", "class Top:\n    def __gt__(self, x): return True\ndef biggest(): return Top()"),
        ("assert f(lambda: 3) == 3", "def f(g):\n    return g.__globals__['f']"),
    ],
)  # fmt: skip
def test_what_asserts_are_written_with_is_not_the_program_s(test: str, program: str) -> None:
    assert passed({"test_list": [test]}, program) == (0, 1)


@pytest.mark.parametrize(
    "program",
    ["print('3\\n' * 10**7)", "while True: pass", "import time\ntime.sleep(99)", "import sys\nprint(3)\nsys.exit(1)"],
)
def test_a_program_that_floods_hangs_or_fails_earns_nothing(program: str) -> None:
    assert passed({"tests": SUMS[:1]}, program, seconds=0.5) == (0, 1)


def test_arguments_and_callbacks_go_both_ways() -> None:
    asserts = [
        "values = [3, 1]\nassert sort(values) is None and values == [1, 3]",
        "assert apply(lambda x: x * 2, (1, 2)) == [2, 4]",
        "assert list(count(3)) == [0, 1, 2]",
        "import datetime\nassert day(1) == datetime.date(2020, 1, 1)",
        "class Node:\n    def __init__(self, v, n=None):\n        self.v, self.n = v, n\nassert total(Node(1, Node(2))) == 3",
    ]
    program = (
        "import datetime\ndef sort(v): v.sort()\ndef apply(g, v): return [g(x) for x in v]\ndef count(n): yield from range(n)\n"
        "def day(n): return datetime.date(2020, 1, n)\ndef total(n):\n    s = 0\n    while n:\n        s, n = s + n.v, n.n\n    return s"
    )
    assert passed({"test_list": ["\n".join(asserts)]}, program) == (1, 1)


def outcome(final: str | None, row: dict[str, Any]) -> Outcome:
    tests = code_tests(row, "")
    return Outcome(finished(final), (), Reference(tests=tests), row=row)


@pytest.mark.slow
def test_the_reward_is_all_or_the_share_and_a_broken_test_is_no_zero() -> None:
    half = "```python\nprint(3)\n```"
    with Rewards([CodeReward(type="code"), CodeReward(type="code", score="share", name="share")]) as rewards:
        assert rewards.score(outcome(half, {"tests": SUMS})) == [0.0, 0.5]
        assert rewards.score(outcome(f"```python\n{SUM_PROGRAM}```", {"tests": SUMS})) == [1.0, 1.0]
        assert rewards.score(outcome("It is `print(3)`.", {"tests": SUMS})) == [0.0, 0.0]
        assert rewards.score(outcome(None, {"tests": SUMS})) == [0.0, 0.0]
        broken = outcome(
            "```python\ndef f(): return 1\n```", {"test_list": ["import numpy_is_not_here\nassert f() == 1"]}
        )
        begun = rewards.begin(broken)
        assert [each.value for each in begun] == [None, None]
        assert begun[0].failed is not None
        assert "No module named 'numpy_is_not_here'" in begun[0].failed
        assert rewards.unjudged([broken, outcome(None, {})]) == {"code": 1, "share": 1}


def test_the_scorer_of_evaluations_wants_every_test() -> None:
    with Scorers(20.0) as scorers:
        scorers.check("code")
        found = outcome("```python\nprint(3)\n```", {"tests": SUMS})
        score = scorers.score("code", found.completion, found.reference)
        assert (score.value, score.outcome, score.detail) == (0.0, "wrong", "another output")


def test_memory_and_tests_beside_each_other_are_bounded() -> None:
    tests = code_tests({"test_cases": [{"input": "", "output": "3"}]}, "")
    assert tests is not None
    program = "a = bytearray(300 << 20)\nprint(3)"
    assert CodeRunner(memory_mb=200).run(program, tests).passed == 0
    assert CodeRunner(memory_mb=600).run(program, tests).passed == 1

    class Counting(CodeRunner):
        most = now = 0
        meet: threading.Barrier | None = None

        def _failed(self, program: str, case: Case, tests: CodeTests) -> tuple[str | None, bool]:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.meet is not None:
                self.meet.wait(20)
            self.now -= 1
            return None, False

    for parallel in (1, 3):
        runner = Counting(parallel=parallel)
        runner.meet = threading.Barrier(3) if parallel == 3 else None
        with ThreadPoolExecutor(6) as pool:
            assert sum(found.passed for found in pool.map(runner.run, [""] * 6, [tests] * 6)) == 6
        assert runner.most == parallel


def test_without_bubblewrap_programs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcome("```python\nprint(3)\n```", {"tests": SUMS})
    monkeypatch.setenv("PATH", "")
    told = "programs run in bubblewrap, which is not installed, and never on the host"
    with pytest.raises(ConfigError, match=f"reward code: {told}"):
        Rewards([CodeReward(type="code")])
    with Scorers() as scorers:
        with pytest.raises(ConfigError, match=told):
            scorers.check("code")
        score = scorers.score("code", found.completion, found.reference)
    assert (score.value, score.outcome) == (0.0, "failed")


def test_a_sandbox_that_does_not_start_is_told_and_gives_no_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told = r"programs run in bubblewrap, which does not start here \(bwrap: No permissions to create new namespace\)"
    with pytest.raises(ConfigError, match=f"reward code: {told}"):
        Rewards([CodeReward(type="code")])
