"""Processes of their own without the price of starting: importing takes longer than most tests train.

`Forks` starts one server, which imports torch, transformers and the recipes once, and forks for each job. A fork has its
own folder, environment, output files and exit code, so it can be killed, and several can be the processes of one run.
What only a new interpreter shows (launchers, console encodings, broken pipes) is no work for a fork.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

CLI = "counterpoint.recipes.cli:main"
TINY_RUN = str(Path(__file__).parent / "unit" / "train" / "tiny_run.py")
# Forks of a process whose threads hold locks would wait for them for ever.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WARM = ("sft", "dpo", "grpo", "distill", "commands.evaluate", "commands.export", "commands.check", "commands.show")


class Forks:
    """The server and its jobs; a job's function is `module:name` or `file.py:name`, its arguments are JSON."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count, self._buffer = folder, 0, b""
        self._codes: dict[int, int] = {}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **ONE_THREAD}
        )
        assert self._line() == "ready"

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start(self, function: str, *arguments: Any, folder: Path, **environment: str | None) -> Fork:
        """One process that calls `function` from `folder`; a variable that is None is not set in it."""
        self._count += 1
        out, err = (self._folder / f"{name}{self._count}" for name in ("out", "err"))
        whole: dict[str, str | None] = {**os.environ, **ONE_THREAD, **environment}
        known = {name: value for name, value in whole.items() if value is not None}
        job = {
            "function": function,
            "arguments": arguments,
            "folder": str(folder),
            "out": str(out),
            "err": str(err),
            "environment": known,
        }
        for file in (out, err):
            file.touch()  # the job opens them itself, maybe after they are first looked for
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()
        while not (line := self._line()).startswith("started "):
            self._note(line)
        return Fork(self, int(line.split()[1]), out, err)

    def group(self, function: str, *arguments: Any, folder: Path, processes: int = 2) -> list[Fork]:
        """The processes of one run, as a cluster's scheduler starts them; no launcher looks after them."""
        if processes == 1:
            return [self.start(function, *arguments, folder=folder)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return [
            self.start(function, *arguments, folder=folder, RANK=str(rank), LOCAL_RANK=str(rank), **world)
            for rank in range(processes)
        ]

    def command(
        self, *arguments: str | Path, folder: Path, **environment: str | None
    ) -> subprocess.CompletedProcess[str]:
        """`counterpoint ARGUMENTS`, from `folder`."""
        fork = self.start(CLI, [str(argument) for argument in arguments], folder=folder, **environment)
        return subprocess.CompletedProcess(arguments, fork.wait(), fork.out.read_text(), fork.err.read_text())

    def code(self, pid: int, wait: bool) -> int | None:
        """How a job has ended; None where it has not and `wait` is False."""
        assert self._process.stdout is not None
        while pid not in self._codes:
            if not wait and b"\n" not in self._buffer and not select.select([self._process.stdout], [], [], 0)[0]:
                return None
            self._note(self._line())
        return self._codes[pid]

    def _note(self, line: str) -> None:
        _, pid, code = line.split()
        self._codes[int(pid)] = int(code)

    def _line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            more = os.read(self._process.stdout.fileno(), 65536)
            assert more, "the server of forks has ended"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


@dataclass
class Fork:
    """A running job: its process id and the files that its output goes to."""

    server: Forks
    pid: int
    out: Path
    err: Path

    def poll(self) -> int | None:
        return self.server.code(self.pid, wait=False)

    def wait(self) -> int:
        """Exit code; minus the signal that ended it."""
        code = self.server.code(self.pid, wait=True)
        assert code is not None
        return code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def until(self, text: str) -> None:
        """Wait until `text` is in its output."""
        while text not in self.out.read_text():
            assert self.poll() is None, self.told()
            time.sleep(0.01)

    def told(self) -> str:
        return self.out.read_text() + self.err.read_text()


def wait_for(forks: list[Fork]) -> list[int]:
    """Exit codes of a group, whose others are ended when one fails, as launchers do."""
    while None in (codes := [fork.poll() for fork in forks]):
        if any(codes):
            for fork in forks:
                fork.send(signal.SIGTERM)
            break
        time.sleep(0.05)
    return [fork.wait() for fork in forks]


def serve() -> None:
    """Fork for each line of standard input; say `started PID` at once and `ended PID CODE` when it is so."""
    warm_up()
    assert threading.active_count() == 1
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    children: set[int] = set()
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for pid in list(children):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    children.remove(pid)
                    print("ended", pid, os.waitstatus_to_exitcode(status), flush=True)
        if 0 in ready:
            # A client sends its next line only when the last is answered, so nothing stays behind in a buffer.
            line = sys.stdin.readline()
            if not line:
                break
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.close(woken)
                os.close(wake)
                work(json.loads(line))
            children.add(pid)
            print("started", pid, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def work(job: dict[str, Any]) -> None:
    """Do a job in this process, and end it."""
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for path, number in ((job["out"], 1), (job["err"], 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, encoding="utf-8", closefd=False) for n in (1, 2))
        os.chdir(job["folder"])
        os.environ.clear()
        os.environ.update(job["environment"])
        code = function_of(job["function"])(*job["arguments"])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0 if isinstance(code, int | None) else 1)


def function_of(name: str) -> Any:
    place, _, function = name.rpartition(":")
    return getattr(load(place) if place.endswith(".py") else importlib.import_module(place), function)


def load(file: str) -> ModuleType:
    name = Path(file).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def warm_up() -> None:
    """What every job would do again; no backward pass, after which torch refuses one in a fork."""
    for name in WARM:
        importlib.import_module(f"counterpoint.recipes.{name}")
    from counterpoint.data.harmony.vocabulary import load_vocabulary

    load_vocabulary()
    load(TINY_RUN).tiny_model()
    gc.collect()
    # What stands now is neither looked through again nor copied to be so.
    gc.freeze()


if __name__ == "__main__":
    serve()
