"""Model-written code in the sandbox: stateful, limited, and without a way out. Needs bubblewrap (CI installs it)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.train.episodes import sandbox as module
from counterpoint.train.episodes.sandbox import PythonSandbox, SandboxLimits


@pytest.fixture(scope="module")
def session() -> Iterator[PythonSandbox]:
    with PythonSandbox(SandboxLimits(seconds=30)) as first:  # a first start reads the interpreter from disk
        assert first.run("1 + 1").output == "2\n"
    with PythonSandbox(SandboxLimits(seconds=15, output_chars=2000)) as made:
        made.run("import os, socket, time")
        yield made


def test_it_is_a_session_that_prints_last_values(session: PythonSandbox) -> None:
    assert session.run("x = 20\nx * 2 + 2").output == "42\n"
    assert session.run("print('a'); x").output == "a\n20\n"


def test_errors_are_output(session: PythonSandbox) -> None:
    ran = session.run("1 / 0")
    assert ran.failed == "raised"
    assert ran.output.endswith("ZeroDivisionError: division by zero\n")
    assert "runner.py" not in ran.output
    assert session.run("def f(:").failed == "raised"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("socket.create_connection(('192.0.2.1', 80), timeout=1)", "Network is unreachable"),
        ("open('/usr/escape', 'w')", "Read-only file system"),
        ("open('/etc/passwd')", "No such file"),
        ("bytearray(1 << 30)", "MemoryError"),
        ("open('/tmp/big', 'wb').write(bytes(100 << 20))", "File too large"),
        ("os.kill(1, 9); os.kill(os.getppid(), 9); 1/0", ""),
    ],
)
def test_nothing_is_reached(code: str, error: str) -> None:
    with PythonSandbox(SandboxLimits(seconds=30)) as fresh:
        ran = fresh.run("import os, socket\n" + code)
        assert ran.failed in ("raised", "died")
        assert error in ran.output
        assert fresh.run("1 + 1").output == "2\n"


def test_the_environment_is_empty_and_the_host_unseen(session: PythonSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hf_secret")
    with PythonSandbox() as fresh:
        assert "hf_secret" not in fresh.run("import os; print(dict(os.environ))").output
        assert fresh.run("os.path.exists('/home') or os.path.exists('/etc')").output == "False\n"
        assert fresh.run("len([p for p in os.listdir('/proc') if p.isdigit()]) < 6").output == "True\n"


def test_hanging_ends_the_session_and_a_new_one_begins() -> None:
    with PythonSandbox(SandboxLimits(seconds=10)) as fresh:
        fresh.run("x = 1")
        patient, fresh.limits = fresh.limits, SandboxLimits(seconds=1)
        assert fresh.run("while True: pass").failed == "hung"
        fresh.limits = patient
        assert fresh.run("x").output.endswith("NameError: name 'x' is not defined\n")


def test_a_fork_bomb_is_stopped() -> None:
    with PythonSandbox(SandboxLimits(seconds=30)) as fresh:
        ran = fresh.run("import os, time\nfor _ in range(500):\n    if os.fork() == 0:\n        time.sleep(60)")
        assert ran.failed is not None
        assert fresh.run("1 + 1").output == "2\n"


def test_a_flood_is_cut(session: PythonSandbox) -> None:
    ran = session.run("print('y' * 5000)")
    assert len(ran.output) < 2100
    assert "more characters cut" in ran.output
    assert session.run("while True: print('z' * 10000)").failed is not None


def test_without_bubblewrap_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="never runs on the host"):
        PythonSandbox()
