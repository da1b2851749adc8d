"""The built-in `python` tool: code that a model wrote, run in isolation.

bubblewrap gives each session its own namespaces: no network, no host files but a read-only Python, own process ids, a
cleared environment. A session is one process, so that the kernel's limits of a process are those of the session as a
whole, on every machine and inside containers, where no cgroup can be made. What else could hold memory is sized (the
scratch folder), read-only (the rest), or refused by a system-call filter (memory files, shared memory, child
processes). Time, threads and files are watched from outside, and between two calls the session is stopped.

Nothing that the code does or writes can raise here: its answers are frames of bounded size, and anything else is a
fault of the tool. Without bubblewrap the tool is refused; model code never runs on the host.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from counterpoint.configs.errors import ConfigError
from counterpoint.train.episodes.system_calls import filter_program

_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_READ = 1 << 16
_WATCH_SECONDS = 0.05
_HEAD = struct.Struct("<8sI")
"""Of a frame in both directions: what the request drew, to tell its answer from any other; bytes that follow."""
_LONGEST_CODE = 1 << 20
_START_SECONDS = 60.0
_PROBE = """
import ctypes, os
def child():
    if os.fork() == 0: os._exit(0)
tries = {
    "child processes": child,
    "memory files": lambda: os.memfd_create("x"),
    "shared memory": lambda: 1 / (ctypes.CDLL(None).shmget(0, 4096, 0o1600) + 1),
    "files outside its scratch folder": lambda: [open(place + "/x", "w") for place in ("/", "/dev", "/usr")],
}
for what, attempt in tries.items():
    try: attempt()
    except (OSError, ZeroDivisionError): continue
    print(what)
"""


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """Of a session as a whole, but for seconds (wall time of a call) and output_chars (of a result).

    cpu_seconds: over all calls and threads. memory_mb: its address space; scratch_mb, files: in /tmp, in addition.
    """

    seconds: float = 10.0
    cpu_seconds: int = 120
    memory_mb: int = 512
    threads: int = 32
    scratch_mb: int = 64
    files: int = 4096
    output_chars: int = 8_000


@dataclass(frozen=True, slots=True)
class Ran:
    """What a piece of code printed; `failed` is `raised`, `hung`, `died`, or None."""

    output: str
    failed: str | None = None


class _EndedError(Exception):
    """The session cannot go on. hung: it used up its time, threads or files; else it died, or wrote no answer."""

    def __init__(self, hung: bool) -> None:
        self.hung = hung


class PythonSandbox:
    """One stateful Python session, as gpt-oss's `python` tool promises; started at the first call.

    A call that hangs or dies ends the session, and the next call begins a new one. Close it, or use it as a context
    manager. ConfigError where bubblewrap is missing.
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()
        self._process: subprocess.Popen[bytes] | None = None
        self._runner: _Runner | None = None
        self._command = _command(self.limits)

    def run(self, code: str) -> Ran:
        """Run `code`; the value of a last expression is printed, as in a notebook."""
        request = code.encode("utf-8", "replace")
        if len(request) > _LONGEST_CODE:
            return Ran(f"error: the code is longer than {_LONGEST_CODE:,} bytes", "raised")
        drawn = os.urandom(8)
        try:
            process = self._started()
            self._signal(signal.SIGCONT)
            answer = self._exchange(process, _HEAD.pack(drawn, len(request)) + request, drawn)
            self._pause(process)
        except (OSError, _EndedError) as error:
            self.close()
            if isinstance(error, _EndedError) and error.hung:
                what = f"stopped after {self.limits.seconds:g} seconds, {self.limits.threads} threads or "
                return Ran(f"{what}{self.limits.files} files; the session was started anew", "hung")
            return Ran("the session died (memory, CPU time, or it ended itself) and was started anew", "died")
        return Ran(self._capped(answer[1:].decode("utf-8", "replace")), "raised" if answer[0] else None)

    def close(self) -> None:
        process, self._process = self._process, None
        runner, self._runner = self._runner, None
        if runner is not None:
            os.close(runner.handle)
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()

    def __enter__(self) -> PythonSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        with _filtered(self._command) as (command, passed):
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                pass_fds=passed,
            )
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        return self._process

    def _exchange(self, process: subprocess.Popen[bytes], request: bytes, drawn: bytes) -> bytes:
        """Write a request and read its answer (a flag and text), both before the time limit of a call."""
        assert process.stdin is not None
        assert process.stdout is not None
        deadline, left = time.monotonic() + self.limits.seconds, memoryview(request)
        answer, longest = bytearray(), _HEAD.size + 1 + 4 * self.limits.output_chars + 4
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while True:
                seconds = deadline - time.monotonic()
                if seconds <= 0 or self._exceeds(process):
                    raise _EndedError(hung=True)
                for key, _ in selector.select(min(seconds, _WATCH_SECONDS)):
                    if key.fileobj is process.stdin:
                        left = left[os.write(key.fd, left[:_READ]) :]
                        if not left:
                            selector.unregister(process.stdin)
                        continue
                    chunk = os.read(key.fd, _READ)
                    answer += chunk
                    wanted = _HEAD.unpack_from(answer)[1] if len(answer) >= _HEAD.size else longest - _HEAD.size
                    whole = _HEAD.size + wanted
                    if not chunk or not 1 <= wanted <= longest - _HEAD.size or len(answer) > whole:
                        raise _EndedError(hung=False)
                    if len(answer) == whole and not left:
                        if bytes(answer[:8]) != drawn:
                            raise _EndedError(hung=False)
                        return bytes(answer[_HEAD.size :])

    def _exceeds(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether there are more threads or files than allowed, which no limit of the kernel's counts for root."""
        runner = self._found(process)
        if runner is None:
            return False
        try:
            threads = len(os.listdir(f"/proc/{runner.pid}/task"))
            inside = Path("/proc", str(runner.pid), "root")
            places = [os.statvfs(inside / name) for name in ("tmp", "dev/shm", "output")]
        except OSError:  # it has just ended, or this user may not look into it: the folders' sizes hold all the same
            return False
        return threads > self.limits.threads or sum(p.f_files - p.f_ffree for p in places) > self.limits.files

    def _pause(self, process: subprocess.Popen[bytes]) -> None:
        """Between calls it gets no CPU time: threads that a call left behind wait for the next one."""
        self._found(process)
        self._signal(signal.SIGSTOP)

    def _found(self, process: subprocess.Popen[bytes]) -> _Runner | None:
        if self._runner is None:
            self._runner = _Runner.below(process.pid)
        return self._runner

    def _signal(self, number: int) -> None:
        if self._runner is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._runner.handle, number)

    def _capped(self, output: str) -> str:
        limit = self.limits.output_chars
        return output if len(output) <= limit else f"{output[:limit]}\n[more characters cut]"


@dataclass(frozen=True, slots=True)
class _Runner:
    """The one process of a session. handle: a descriptor by which no other process of its id can be meant."""

    pid: int
    handle: int

    @classmethod
    def below(cls, pid: int) -> _Runner | None:
        """The last of the chain that bubblewrap makes (its own, the first of the namespace, ours); None before."""
        for _ in range(2):
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                return None
            if not children:
                return None
            pid = int(children[0])
        try:
            return cls(pid, os.pidfd_open(pid))
        except OSError:
            return None


def unbounded(limits: SandboxLimits) -> tuple[str, ...]:
    """What a session on this machine can do although it should not: tried in one, since kernels and containers differ.

    ConfigError where no session starts.
    """
    with PythonSandbox(replace(limits, seconds=max(limits.seconds, _START_SECONDS))) as sandbox:
        ran = sandbox.run(_PROBE)
        if ran.failed is not None:
            with _filtered(sandbox._command) as (command, passed):
                told = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, env={}, pass_fds=passed, check=False
                ).stderr
            reason = " ".join((told.decode("utf-8", "replace") or ran.output).split())[:300]
            raise ConfigError(
                f"tools: the sandbox of the built-in python tool does not start here ({reason}): allow bubblewrap to "
                "make namespaces, or take `python` out of the tools"
            )
    return tuple(ran.output.splitlines())


@contextmanager
def _filtered(command: Sequence[str]) -> Iterator[tuple[list[str], list[int]]]:
    """The command with its system-call filter, and the descriptors to pass on; none on an unknown processor."""
    program = filter_program()
    if program is None:
        yield list(command), []
        return
    read, write = os.pipe()
    os.write(write, program)
    os.close(write)
    try:
        yield [command[0], "--seccomp", str(read), *command[1:]], [read]
    finally:
        os.close(read)


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
    command += ["--proc", "/proc", "--dev", "/dev"]
    output = 4 * limits.output_chars + (1 << 20)
    for place, size in (("/tmp", limits.scratch_mb << 20), ("/dev/shm", 1 << 20), ("/output", output)):
        command += ["--size", str(size), "--tmpfs", place]
    command += ["--ro-bind", str(_RUNNER), "/runner.py", "--chdir", "/tmp", "--setenv", "HOME", "/tmp"]
    command += ["--remount-ro", "/dev", "--remount-ro", "/"]
    settings = json.dumps(
        {
            "memory": limits.memory_mb << 20,
            "threads": limits.threads,
            "file": limits.scratch_mb << 20,
            "cpu": limits.cpu_seconds,
            "chars": limits.output_chars,
        }
    )
    return [*command, str(python), "-I", "-S", "/runner.py", settings]
