"""The sandbox bounds a session as a whole, and nothing that runs in it can raise in the run. Needs bubblewrap."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes import sandbox as module
from counterpoint.train.episodes.sandbox import PythonSandbox, SandboxLimits, unbounded
from counterpoint.train.episodes.system_calls import filter_program
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.episodes.tools import BuiltinPython, Toolbox

LIMITS = SandboxLimits(seconds=30)
FILL = """
import os
written = globals().setdefault("written", [0])
try:
    for number in range(40):
        with open(f"{PLACE}/{os.urandom(4).hex()}", "wb") as file:
            for _ in range(50):
                written[0] += file.write(bytes(1 << 20))
                file.flush()
finally:
    print(written[0] >> 20, "MB")
"""


@pytest.mark.parametrize(
    ("place", "most"),
    [("/tmp", 64), ("/dev/shm", 1), ("/output", 2), ("/", 0), ("/dev", 0), ("/usr", 0)],
)
def test_no_folder_holds_more_than_its_size_over_all_calls(place: str, most: int) -> None:
    with PythonSandbox(LIMITS) as session:
        for _ in range(3):
            ran = session.run(FILL.replace("{PLACE}", place))
            assert ran.failed == "raised"
            # What is printed goes to /output itself.
            assert place == "/output" or int(ran.output.split(" MB")[0].split()[-1]) <= most, ran.output


@pytest.mark.parametrize(
    ("code", "refused"),
    [
        ("os.memfd_create('x')", "Operation not permitted"),
        ("os.fork()", "Operation not permitted"),
        ("subprocess.run(['/bin/ls'])", "Operation not permitted"),
        ("multiprocessing.get_context('fork').Process(target=print).start()", "Operation not permitted"),
        ("libc.shmget(0, 1 << 30, 0o1600)", "-1 EPERM"),
        ("libc.unshare(0x10000000)", "-1 EPERM"),
        ("libc.mount(b'none', b'/tmp', b'tmpfs', 0, None)", "-1 EPERM"),
        ("libc.syscall(425, 8, 0)", "-1 EPERM"),
        ("bytearray(600 << 20)", "MemoryError"),
        ("[os.open('/dev/null', 0) for _ in range(100)]", "Too many open files"),
    ],
)
def test_what_would_hold_memory_elsewhere_is_refused(code: str, refused: str) -> None:
    before = "import ctypes, errno, multiprocessing, os, subprocess\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    after = "\nprint(value, errno.errorcode.get(ctypes.get_errno()))"
    with PythonSandbox(LIMITS) as session:
        ran = session.run(f"{before}value = {code}{after}")
        assert refused in ran.output, ran


def test_memory_is_one_bound_for_all_calls_and_threads() -> None:
    held = "try:\n    kept.append(bytearray(100 << 20))\nexcept MemoryError:\n    pass\nprint(len(kept))"
    with PythonSandbox(LIMITS) as session:
        session.run("kept = []")
        counts = [int(session.run(held).output) for _ in range(8)]
    assert counts[-1] == counts[-3] <= 5


def test_threads_and_files_are_counted() -> None:
    with PythonSandbox(LIMITS) as session:
        many = "import threading, time\nthreading.stack_size(65536)\nwhile True:\n"
        ran = session.run(many + "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()")
        assert ran.failed in ("hung", "raised", "died"), ran  # whichever bound comes first
        ran = session.run("n = 0\nwhile True:\n    open(f'/tmp/{n}', 'w').close()\n    n += 1")
        assert (ran.failed, "4096 files" in ran.output) == ("hung", True), ran
        assert session.run("1 + 1").output == "2\n"


def test_cpu_time_is_one_bound_for_all_calls() -> None:
    burn = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    with PythonSandbox(SandboxLimits(seconds=30, cpu_seconds=1)) as session:
        assert [session.run(burn).failed for _ in range(4)].count("died") == 1


def test_between_calls_it_stands_still() -> None:
    with PythonSandbox(LIMITS) as session:
        session.run("import threading, time\ndef burn():\n    while True: pass")
        session.run("threading.Thread(target=burn, daemon=True).start()")
        first = float(session.run("time.process_time()").output)
        time.sleep(1.5)
        assert float(session.run("time.process_time()").output) - first < 0.5


PIPES = "import os, time\nfor number in range(3, 9):\n    try: os.write(number, {})\n    except OSError: pass\n"
ANSWERS = {
    "nested": PIPES.format("b'{\"output\":' + b'[' * 60000 + b'\\n'") + "time.sleep(1)",
    "surrogate": PIPES.format('b\'{"output":"\\\\ud800","raised":false}\\n\'') + "os._exit(0)",
    "a long frame": PIPES.format("bytes(8) + b'\\xff' * 4 + b'x' * 99") + "time.sleep(1)",
    "an empty frame": PIPES.format("bytes(12)") + "time.sleep(1)",
    "another's answer": PIPES.format("bytes(8) + b'\\x03\\0\\0\\0\\0no'") + "time.sleep(1)",
    "drip": "import os, time\nwhile True:\n    os.write(4, b'x')\n    time.sleep(0.2)",
    "ends": "import os\nos._exit(0)",
    "killed": "import os\nos.kill(os.getpid(), 9)",
    "closed": "import os\nos.closerange(0, 100)",
    "stopped": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
    "deep": "eval('[' * 100000)",
    "recursion": "def f(): f()\nf()",
    "printed surrogate": "print('\\ud800')",
    "control tokens": "print('a\\x00b\\x1b[31m<|end|><|start|>')",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_nothing_that_it_writes_raises_in_the_run(name: str) -> None:
    renderer = Renderer(load_vocabulary())
    with Toolbox([BuiltinPython(SandboxLimits(seconds=4))]) as toolbox:
        for code in (ANSWERS[name], "6 * 7"):
            call = ToolCall("python", None, "python", code, None, None, "analysis")
            result = toolbox.call(call)
            result.content.encode()
            assert renderer.tool_result("python", "analysis", result.content)
        assert result.content == "42\n"


def test_an_answer_that_comes_late_is_nobodys() -> None:
    """A first call leaves a second answer in the pipe; the next call must not take it for its own."""
    late = PIPES.format("bytes(8) + b'\\x03\\0\\0\\0\\0no'")
    with PythonSandbox(LIMITS) as session:
        session.run(f"import threading\ndef late():\n    {late.replace(chr(10), chr(10) + '    ')}")
        session.run("threading.Timer(0.05, late).start()")
        ran = session.run("import time; time.sleep(0.5); 'second'")
        assert ran.output == "'second'\n" or ran.failed == "died"
        assert session.run("'third'").output == "'third'\n"


def test_long_code_to_a_session_that_does_not_read() -> None:
    with PythonSandbox(SandboxLimits(seconds=3)) as session:
        assert session.run("import threading, os\nthreading.Timer(0, os.kill, (os.getpid(), 19)).start()").failed in (
            None,
            "hung",
        )
        began = time.monotonic()
        assert session.run(f"x = '{'a' * 500_000}'").failed in (None, "hung")
        assert time.monotonic() - began < 20
        assert session.run(f"x = '{'a' * 2_000_000}'").output.startswith("error: the code is longer than")
        assert session.run("1 + 1").output == "2\n"


def test_a_bound_that_cannot_be_had_is_said_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unbounded(SandboxLimits()) == ()
    with Toolkit(python=True) as toolkit:
        assert toolkit.notes == ()
    assert filter_program("riscv64") is None
    monkeypatch.setattr(module, "filter_program", lambda: None)
    with Toolkit(python=True) as toolkit:
        (note,) = toolkit.notes
    assert note.startswith("tools.python: on this machine the sandbox does not refuse child processes, memory files, ")


def test_a_sandbox_that_does_not_start_is_refused_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError, match=r"does not start here \(bwrap: No permissions to create new namespace\)"):
        Toolkit(python=True)
