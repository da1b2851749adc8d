"""The built-in `python` tool: code that a model wrote, run in isolation.

bubblewrap gives each session its own namespaces: no network, no host files but a read-only Python, own process ids, a
cleared environment, a small scratch folder in memory. Limits on memory, processes, CPU and file size are set inside, on
time and output outside. Without bubblewrap the tool is refused; model code never runs on the host.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError

_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_READ = 1 << 16
_WATCH_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """seconds: wall time of a call. memory_mb: of each process. output_chars: of a result."""

    seconds: float = 10.0
    memory_mb: int = 512
    processes: int = 32
    scratch_mb: int = 64
    output_chars: int = 8_000


@dataclass(frozen=True, slots=True)
class Ran:
    """What a piece of code printed; `failed` is `raised`, `hung`, `died`, or None."""

    output: str
    failed: str | None = None


class PythonSandbox:
    """One stateful Python session, as gpt-oss's `python` tool promises; started at the first call.

    A call that hangs or dies ends the session, and the next call begins a new one. Close it, or use it as a context
    manager. ConfigError where bubblewrap is missing or not allowed to create namespaces.
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._command = _command(self.limits)

    def run(self, code: str) -> Ran:
        """Run `code`; the value of a last expression is printed, as in a notebook."""
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps({"code": code}).encode() + b"\n")
            process.stdin.flush()
            line = self._line(process)
        except OSError:
            line = b""
        if line is None:
            self.close()
            what = f"stopped after {self.limits.seconds:g} seconds or {self.limits.processes} processes"
            return Ran(f"{what}; the session was started anew", "hung")
        answer = _parsed(line)
        if answer is None:
            self.close()
            return Ran("the session died (memory, or it ended itself) and was started anew", "died")
        return Ran(self._capped(str(answer["output"])), "raised" if answer.get("raised") else None)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> PythonSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}
            )
        return self._process

    def _line(self, process: subprocess.Popen[bytes]) -> bytes | None:
        """One line of the runner; None after its time limit."""
        assert process.stdout is not None
        stream = process.stdout.fileno()
        deadline = time.monotonic() + self.limits.seconds
        buffer = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(stream, selectors.EVENT_READ)
            while not buffer.endswith(b"\n"):
                left = deadline - time.monotonic()
                if left <= 0 or _descendants(process.pid) > self.limits.processes + 2:
                    return None
                if not selector.select(min(left, _WATCH_SECONDS)):
                    continue
                chunk = os.read(stream, _READ)
                if not chunk or len(buffer) > 16 * self.limits.output_chars + _READ:
                    return bytes(buffer)
                buffer += chunk
        return bytes(buffer)

    def _capped(self, output: str) -> str:
        limit = self.limits.output_chars
        return output if len(output) <= limit else f"{output[:limit]}\n[{len(output) - limit} more characters cut]"


def _command(limits: SandboxLimits) -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise ConfigError(
            "tools: the built-in python tool needs bubblewrap, which is not installed, and never runs on the host: "
            "install the package `bubblewrap`, or take `python` out of the tools"
        )
    python = Path(os.path.realpath(sys.executable))
    prefix = str(Path(sys.base_prefix).resolve())
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for folder in ("/usr", "/lib", "/lib64", "/bin"):
        path = Path(folder)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), folder]
        elif path.is_dir():
            command += ["--ro-bind", folder, folder]
    if not prefix.startswith("/usr"):
        command += ["--ro-bind", prefix, prefix]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.scratch_mb << 20), "--tmpfs", "/tmp"]
    command += ["--ro-bind", str(_RUNNER), "/runner.py", "--chdir", "/tmp", "--setenv", "HOME", "/tmp"]
    settings = json.dumps(
        {
            "memory": limits.memory_mb << 20,
            "processes": limits.processes,
            "file": limits.scratch_mb << 20,
            "chars": limits.output_chars,
        }
    )
    return [*command, str(python), "-I", "-S", "/runner.py", settings]


def _descendants(pid: int) -> int:
    """Processes below `pid`. The kernel enforces RLIMIT_NPROC for everyone but root, so they are counted as well."""
    count, stack = 0, [pid]
    while stack:
        try:
            children = Path(f"/proc/{stack[-1]}/task/{stack.pop()}/children").read_text().split()
        except OSError:
            continue
        count += len(children)
        stack.extend(map(int, children))
    return count


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) and "output" in answer else None
