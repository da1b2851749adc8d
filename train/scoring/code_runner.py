"""Whether a program passes the tests of its row: every test in fresh sandboxes, where the program cannot read it.

A program that reads and prints is given its input and nothing else; what it printed is compared outside. A function is
given its arguments, and what it returned is compared outside as plain data. Asserts run in a sandbox of their own
(`sandboxed_code.py`). So there is nothing to read, and the verdict is made where the program's code never is.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.train.episodes.sandbox import PythonSandbox, Ran, SandboxLimits, unbounded
from counterpoint.train.scoring import sandboxed_code
from counterpoint.train.scoring.code_truths import AssertCase, CallCase, Case, CodeTests, ProgramCase

_SIDE = Path(__file__).with_name("sandboxed_code.py").read_text(encoding="utf-8")
_FENCE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^\n`]*\n"
    r"(?P<code>.*?)(?:^ {0,3}(?P=fence)[`~]*[ \t]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_PYTHON = frozenset({"python", "py", "python3"})
_PART = 200_000
"""Characters of a text that is sent to a sandbox at a time."""


@dataclass(frozen=True, slots=True)
class Tested:
    """passed of n tests; detail: why the first of the others failed. broken: why a test cannot be run at all."""

    passed: int
    n: int
    detail: str = ""
    broken: str | None = None


def program_in(final: str) -> str | None:
    """The last fenced block that is Python, or, where no block names a language, the last one; None without."""
    blocks = [(found["language"].lower(), found["code"]) for found in _FENCE.finditer(final)]
    named = [code for language, code in blocks if language in _PYTHON]
    bare = [code for language, code in blocks if not language]
    found = named or bare
    return found[-1] if found and found[-1].strip() else None


class CodeRunner:
    """Runs tests, at most `parallel` at a time over all threads. seconds: of one test, starting left out.

    notes: what a user should know before. ConfigError where bubblewrap is missing, or starts nothing.
    """

    def __init__(self, seconds: float = 10.0, memory_mb: int = 1024, parallel: int = 8) -> None:
        self.limits = SandboxLimits(seconds=seconds, memory_mb=memory_mb, cpu_seconds=math.ceil(seconds) + 10)
        self.notes = sandbox_notes(self.limits, "programs")
        self._free = threading.Semaphore(parallel)
        self._lock = threading.Lock()
        self._outputs: dict[tuple[str, str], Case | None] = {}

    def run(self, program: str, tests: CodeTests, until_failed: bool = False) -> Tested:
        """The program on the tests in their order. until_failed: the rest does not count once one has failed."""
        passed, detail = 0, ""
        for case in tests.cases:
            known = self._known(case, tests)
            if known is None:
                return Tested(passed, len(tests.cases), broken="the row's reference code fails on a test of its own")
            with self._free:
                failed, broken = self._failed(program, known, tests)
            if broken:
                return Tested(passed, len(tests.cases), broken=failed)
            passed += failed is None
            detail = detail or failed or ""
            if failed is not None and until_failed:
                break
        return Tested(passed, len(tests.cases), detail)

    def _failed(self, program: str, case: Case, tests: CodeTests) -> tuple[str | None, bool]:
        """Why the program fails a case, and whether that is the case's own fault."""
        if isinstance(case, AssertCase):
            return self._asserted(program, case, tests)
        if isinstance(case, ProgramCase):
            ran = self._printed(program, case)
            if ran.failed is not None:
                return _told(ran), False
            return (None if same_output(ran.output, case.printed or "") else "another output", False)
        sent, why = self._returned(program, case, tests)
        if sent is None:
            return why, False
        try:
            right = _equal(_plain(json.loads(sent)), case.value)
        except Exception as error:  # whatever a program writes in place of a value
            return f"no value ({type(error).__name__})", False
        return (None if right else "another value"), False

    def _known(self, case: Case, tests: CodeTests) -> Case | None:
        """The case with what the row's reference code gives, asked once; None where that fails."""
        if isinstance(case, AssertCase) or (case.known if isinstance(case, CallCase) else case.printed is not None):
            return case
        assert tests.reference is not None
        place = (tests.reference, json.dumps(case.arguments) if isinstance(case, CallCase) else case.given)
        with self._lock:
            if place in self._outputs:
                return self._outputs[place]
        with self._free:
            found = self._of_reference(tests.reference, case, tests)
        with self._lock:
            self._outputs[place] = found
        return found

    def _of_reference(self, reference: str, case: ProgramCase | CallCase, tests: CodeTests) -> Case | None:
        if isinstance(case, ProgramCase):
            ran = self._printed(reference, case)
            return None if ran.failed is not None else replace(case, printed=ran.output)
        sent, _ = self._returned(reference, case, tests)
        return None if sent is None else replace(case, value=_as_json(_plain(json.loads(sent))), known=True)

    def _printed(self, program: str, case: ProgramCase) -> Ran:
        most = max(1 << 16, 2 * len(case.printed or ""))
        with self._side(most) as side:
            side.give("code", program)
            side.give("given", case.given)
            return side.run("run_program(code, given)")

    def _returned(self, program: str, case: CallCase, tests: CodeTests) -> tuple[str | None, str]:
        """What a call returned, as it was sent, or why nothing was."""
        most = max(1 << 16, 64 * len(json.dumps(case.value, default=str)))
        with self._side(most) as side:
            arguments = json.dumps([sandboxed_code.Peer(False).encoded(each) for each in case.arguments])
            for name, text in (
                ("code", program),
                ("stub", tests.stub),
                ("entry", tests.entry or ""),
                ("sent", arguments),
            ):
                side.give(name, text)
            ran = side.run("called(load(code, stub, entry)[1], sent)")
        return (None, _told(ran)) if ran.failed is not None else (_last(ran), "")

    def _asserted(self, program: str, case: AssertCase, tests: CodeTests) -> tuple[str | None, bool]:
        with ExitStack() as stack:
            judged, asserts = stack.enter_context(self._side()), stack.enter_context(self._side())
            for name, text in (("code", program), ("stub", tests.stub), ("entry", tests.entry or "")):
                judged.give(name, text)
            ran = judged.run("peer = serve_module(code, stub, entry)\npeer.exchange()")
            said = _message(ran)
            if ran.failed is not None or said[0] != "names":
                return (_told(ran) if ran.failed is not None else str(said[-1])), False
            for name, text in (
                ("code", f"{tests.setup}\n{case.code}"),
                ("told", _last(ran)),
                ("entry", tests.entry or ""),
            ):
                asserts.give(name, text)
            own = own_names(case.code, tests.entry)
            ran = asserts.run(f"peer = serve_tests(code, told, entry, {own!r})\npeer.exchange()")
            other, self_ = judged, asserts
            while True:
                if ran.failed is not None:
                    return _told(ran), False
                said = _message(ran)
                if self_ is asserts and said[0] in ("done", "failed", "broken"):
                    return (None if said[0] == "done" else str(said[-1])), said[0] == "broken"
                spent = judged.spent + asserts.spent
                if spent > self.limits.seconds:
                    return f"more than {self.limits.seconds:g} seconds", False
                self_, other = other, self_
                self_.give("message", _last(ran))
                ran = self_.run("peer.exchange(message)", self.limits.seconds - spent)

    @contextmanager
    def _side(self, output_chars: int = 1 << 20) -> Iterator[_Side]:
        with PythonSandbox(replace(self.limits, output_chars=output_chars)) as sandbox:
            side = _Side(sandbox)
            side.run(_SIDE)  # starts it: not the program's time
            side.spent = 0.0
            yield side


def sandbox_notes(limits: SandboxLimits, what: str) -> tuple[str, ...]:
    """What a user should know of sandboxes on this machine, in which `what` run. ConfigError where none starts, so that
    nothing is judged by sandboxes that never were."""
    try:
        missing = unbounded(limits)
    except ConfigError as error:
        start = re.search(r"does not start here \((.*)\):", str(error), re.DOTALL)
        if start is not None:
            raise ConfigError(
                f"{what} run in bubblewrap, which does not start here ({start[1]}): allow it to make namespaces"
            ) from None
        raise ConfigError(
            f"{what} run in bubblewrap, which is not installed, and never on the host: install the package `bubblewrap`"
        ) from None
    told = f"{what}: on this machine the sandbox does not refuse {', '.join(missing)}: its bounds hold for one process"
    return (told,) if missing else ()


class _Side:
    """A sandbox that has loaded `sandboxed_code.py`. spent: seconds that it ran."""

    def __init__(self, sandbox: PythonSandbox) -> None:
        self.sandbox, self.spent = sandbox, 0.0

    def give(self, name: str, text: str) -> None:
        """Set a name to a text."""
        parts = [text[at : at + _PART] for at in range(0, len(text), _PART)] or [""]
        self.sandbox.run(f"{name} = {parts[0]!r}")
        for part in parts[1:]:
            self.sandbox.run(f"{name} += {part!r}")

    def run(self, code: str, seconds: float | None = None) -> Ran:
        if seconds is not None:
            self.sandbox.limits = replace(self.sandbox.limits, seconds=max(0.05, seconds))
        began = time.monotonic()
        ran = self.sandbox.run(code)
        self.spent += time.monotonic() - began
        return ran


def own_names(code: str, entry: str | None) -> list[str]:
    """Names of Python's own, such as `sum`, that a test means the program's function by: that of `entry`, or those of
    a test which names nothing else that a program could define."""
    if entry is not None:
        return [entry.partition("(")[0].partition(".")[0]]
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    read = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    made |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    made |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    made |= {
        each.asname or each.name
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for each in node.names
    }
    python = read & set(dir(builtins))
    return sorted(python) if not read - python - made - sys.stdlib_module_names else []


def same_output(printed: str, wanted: str) -> bool:
    """Whether a program printed what is wanted: white space at the ends of lines and of the whole aside; numbers with a
    point may differ by a millionth."""
    ours, theirs = ([line.split() for line in text.strip().splitlines()] for text in (printed, wanted))
    if ours == theirs:
        return True
    if [len(line) for line in ours] != [len(line) for line in theirs]:
        return False
    return all(
        _same_word(a, b) for mine, other in zip(ours, theirs, strict=True) for a, b in zip(mine, other, strict=True)
    )


def _same_word(printed: str, wanted: str) -> bool:
    if printed == wanted:
        return True
    if not re.fullmatch(r"[+-]?\d+\.\d+(?:[eE][+-]?\d+)?", wanted):
        return False
    try:
        return math.isclose(float(printed), float(wanted), rel_tol=1e-6, abs_tol=1e-6)
    except ValueError:
        return False


def same_value(value: Any, wanted: Any) -> bool:
    """Whether a returned value is the JSON value that is wanted: tuples are lists, floats are close."""
    if isinstance(value, tuple | deque):
        value = list(value)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, int | float) and isinstance(wanted, int | float):
        exact = isinstance(value, int) and isinstance(wanted, int)
        return value == wanted if exact else math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-9)
    if isinstance(value, list) and isinstance(wanted, list):
        return len(value) == len(wanted) and all(same_value(*pair) for pair in zip(value, wanted, strict=True))
    if isinstance(value, dict) and isinstance(wanted, dict):
        named = {key if isinstance(key, str) else json.dumps(key, default=str): each for key, each in value.items()}
        return named.keys() == wanted.keys() and all(same_value(named[key], wanted[key]) for key in wanted)
    return type(value) is type(wanted) and value == wanted


def _plain(sent: Any) -> Any:
    """What a call returned: an object that is no plain data equals nothing."""
    return sandboxed_code.Peer(True).decoded(sent)


def _equal(value: Any, wanted: Any) -> bool:
    """APPS and TACO put what a call returns into a list of one."""
    boxed = isinstance(wanted, list) and len(wanted) == 1
    return same_value(value, wanted) or (boxed and same_value(value, wanted[0]))


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value, default=list))


def _told(ran: Ran) -> str:
    return ran.output.strip().rpartition("\n")[2][:300] or str(ran.failed)


def _last(ran: Ran) -> str:
    return ran.output.rstrip("\n").rpartition("\n")[2]


def _message(ran: Ran) -> list:
    """The message that a side printed last."""
    try:
        said = json.loads(_last(ran))
    except (ValueError, RecursionError):
        said = None
    return said if isinstance(said, list) and said else ["failed", "it wrote no answer"]
