"""Objects of users' code, each in a process of its own that is forked from one that has loaded the code once.

The worker is a fresh Python without torch, so that a fork takes milliseconds and copies no threads. An object that
hangs, dies or floods harms no other. Messages travel by pickle, between this program and its own processes only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

from counterpoint.configs.errors import ConfigError
from counterpoint.data.user_code.fork_server import HEAD, Pipe

GRACE = 5.0
"""Seconds after its limit at which a process that cannot be interrupted is killed: a busy machine needs some."""
_SHARED_GRACE = 0.5
_CODE = (
    "import json, sys; given = json.loads(sys.argv[1]); sys.path[:] = given['path']; "
    "from counterpoint.data.user_code.fork_server import main; "
    "main(given['control'], given['make'], tuple(given['args']), given['shared'])"
)
Failure = Literal["raised", "hung", "died"]
Asked = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Returned:
    """What a call returned; with a `failure`, nothing, a line of `detail`, and the traceback where there is one.

    died: the object is gone, and every later call fails.
    """

    value: Any
    failure: Failure | None = None
    detail: str = ""
    trace: str = ""


class Served:
    """An object in another process. Calls of several threads go one after the other. Close it."""

    def __init__(self, owner: Preloaded, pipe: Pipe, child: int) -> None:
        self._owner, self._pipe, self._child = owner, pipe, child
        self._lock = threading.Lock()
        self._gone: str | None = None

    @property
    def gone(self) -> bool:
        return self._gone is not None

    def call(self, method: str, *args: Any, seconds: float, asked: Asked | None = None) -> Returned:
        """The value of a method. asked: does what the object asks for meanwhile, `asked(what, *args)`."""
        with self._lock:
            if self._gone is not None:
                return Returned(None, "died", self._gone)
            try:
                self._pipe.own.settimeout(seconds + GRACE)
                self._pipe.send((method, args, seconds))
                return self._answer(time.monotonic() + seconds, seconds, asked)
            except (EOFError, OSError) as error:
                hung = isinstance(error, TimeoutError)
                self._gone = f"no answer within {seconds:g} s" if hung else "its process died"
                self._kill(hung)
                return Returned(None, "died", self._gone)
            except Exception as error:  # unpickling: a class of the user's file is known in the other process only
                return Returned(None, "raised", f"its value cannot be read ({type(error).__name__}: {error})")

    def _answer(self, deadline: float, seconds: float, asked: Asked | None) -> Returned:
        while True:
            # A thread of a shared worker cannot be interrupted: only a coroutine still has something to say.
            left = deadline + (_SHARED_GRACE if self._owner.shared else GRACE) - time.monotonic()
            if not select.select([self._pipe.own], [], [], max(0.0, left))[0]:
                raise TimeoutError
            kind, *rest = self._pipe.receive()
            if kind == "value":
                return Returned(rest[0])
            if kind != "ask":
                return Returned(None, kind, rest[0], rest[1])
            number, what, args = rest
            try:
                self._pipe.send((number, None, asked(what, *args) if asked is not None else None))
            except (EOFError, OSError):
                raise
            except Exception as error:
                self._pipe.send((number, f"{type(error).__name__}: {error}", None))

    def _kill(self, hung: bool) -> None:
        self._pipe.own.close()
        if self._owner.shared:
            self._owner.retire(at_once=not hung)
        else:
            self._owner.kill(self._child)

    def abort(self) -> None:
        """A call in progress fails now, whatever time it was given, and its process is killed; from any thread."""
        with suppress(OSError):
            self._pipe.own.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Its process ends; a call in progress has the time it was given."""
        with self._lock:
            if self._gone is None:
                self._gone = "it was closed"
                self._pipe.own.close()


class Preloaded:
    """A worker that has loaded `make(*args)`, an object with `described()` and `new(caller)`, and forks from it.

    shared: objects are threads of the worker instead of processes of their own. A call that outlives its limit then
    ends the worker, `patience` seconds later, with all that it holds. ConfigError where the code cannot be loaded.
    Close it, or use it as a context manager.
    """

    def __init__(self, make: str, *args: Any, shared: bool = False, patience: float = 10.0) -> None:
        self.shared, self.patience = shared, patience
        self._made = (make, args)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._pipe: Pipe | None = None
        self._described: Any = None
        self._timer: threading.Timer | None = None

    def described(self) -> Any:
        """What the loaded object says of itself; waits until it is loaded."""
        with self._lock:
            self._started()
            return self._described

    def open(self) -> Served:
        """A new object. ConfigError where the worker cannot be started."""
        with self._lock:
            try:
                return self._opened()
            except (EOFError, OSError):  # the worker died: it was shared, or something killed it
                self._stop()
                return self._opened()

    def kill(self, child: int) -> None:
        with self._lock, suppress(OSError):
            if self._control is not None:
                self._control.sendall(b"k" + HEAD.pack(child))

    def retire(self, at_once: bool) -> None:
        """No new object in this worker; those it has are given `patience` seconds."""
        with self._lock:
            process, self._process = self._process, None
            control, self._control = self._control, None
        if process is not None:
            self._timer = threading.Timer(0 if at_once else self.patience, lambda: _end(process, control))
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.join()
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Served:
        control = self._started()
        own, its = socket.socketpair()
        with its:
            socket.send_fds(control, [b"o"], [its.fileno()])
        assert self._pipe is not None
        (child,) = HEAD.unpack(self._pipe._read(HEAD.size))
        return Served(self, Pipe(own), child)

    def _started(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._stop()
        make, args = self._made
        own, its = socket.socketpair()
        given = {"path": sys.path, "control": its.fileno(), "make": make, "args": list(args), "shared": self.shared}
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, json.dumps(given)],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                start_new_session=True,  # Ctrl-C is for this program, which closes it
            )
        self._control, self._pipe = own, Pipe(own)
        try:
            kind, *rest = self._pipe.receive()
        except (EOFError, OSError):
            self._stop()
            raise ConfigError(f"{shown(args)}: its worker died while it was loaded") from None
        if kind == "raised":
            self._stop()
            told, trace = rest
            raise ConfigError(f"{shown(args)}: {told}\n{trace}" if trace else told.removeprefix("ConfigError: "))
        self._described = rest[0]
        return own

    def _stop(self) -> None:
        process, self._process = self._process, None
        control, self._control = self._control, None
        self._pipe = None
        if process is not None:
            _end(process, control)


def shown(args: tuple[Any, ...]) -> str:
    """The user's code among the arguments."""
    names = args[0] if isinstance(args[0], list) else args[:1]
    return ", ".join(f"`{name}`" for name in names)


def _end(process: subprocess.Popen[bytes], control: socket.socket | None) -> None:
    if control is not None:
        control.close()
    try:
        process.wait(1.0)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
