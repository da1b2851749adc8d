"""The process that `preloaded.Preloaded` starts: it loads users' code once, and forks a process for each object.

It has one thread, so that a fork copies no lock that another thread holds, and imports nothing heavy by itself. Its
standard output goes to standard error, since the program's own output is read by others.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

HEAD = struct.Struct("<Q")
LONGEST = 64 << 20
"""Bytes of one message: more is a fault of the process that sends it."""
_MORE_TIME = 0.5
"""Seconds after its own limit at which a coroutine that does not end is interrupted like any other call."""


class OutOfTimeError(BaseException):
    """Raised inside a call whose time is over. No `Exception`: code that catches those must not go on with it."""


class Pipe:
    """Messages over a socket. EOFError where the other side is gone or sends too much."""

    def __init__(self, own: socket.socket) -> None:
        self.own = own

    def send(self, message: Any) -> None:
        data = pickle.dumps(message)
        self.own.sendall(HEAD.pack(len(data)) + data)

    def receive(self) -> Any:
        (size,) = HEAD.unpack(self._read(HEAD.size))
        if size > LONGEST:
            raise EOFError("too long")
        return pickle.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.own.recv(min(size - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


class Caller:
    """The program as the object sees it: `ask` lets the program do something in the middle of a call.

    forked: whether the object has this process for itself. Its calls are then interrupted at their limit.
    """

    def __init__(self, pipe: Pipe | None, forked: bool) -> None:
        self._pipe, self.forked = pipe, forked
        self._asked = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seconds: float | None = None

    @classmethod
    def alone(cls) -> Caller:
        """Of an object that no program calls: while a worker loads."""
        return cls(None, forked=False)

    @property
    def pipe(self) -> Pipe:
        assert self._pipe is not None
        return self._pipe

    def ask(self, what: str, *args: Any) -> Any:
        """RuntimeError with what the program says of a request that failed."""
        self._asked += 1
        self.pipe.send(("ask", self._asked, what, args))
        while True:
            number, failure, value = self.pipe.receive()
            if number == self._asked:  # an older one is the answer to a call that ran out of time
                break
        if failure is not None:
            raise RuntimeError(failure)
        return value

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The value of a function or of a coroutine."""
        value = function(*args, **kwargs)
        if not inspect.isawaitable(value):
            return value
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        if self.forked and self._seconds is not None:  # only where it blocks the loop
            signal.setitimer(signal.ITIMER_REAL, self._seconds + _MORE_TIME)
        return self._loop.run_until_complete(_bounded(value, self._seconds))

    def serve(self, target: Any) -> None:
        """Answer calls until the program closes the pipe."""
        while True:
            try:
                method, args, seconds = self.pipe.receive()
            except (EOFError, OSError):
                return
            self._seconds = seconds
            answer = self._called(target, method, args, seconds)
            try:
                self.pipe.send(answer)
            except OSError:
                return
            except Exception as error:
                self.pipe.send(("raised", f"its value cannot be sent ({type(error).__name__}: {error})"[:300], ""))

    def _called(self, target: Any, method: str, args: Any, seconds: float) -> tuple[Any, ...]:
        try:
            try:
                if self.forked:
                    signal.signal(signal.SIGALRM, _out_of_time)
                    signal.setitimer(signal.ITIMER_REAL, seconds)
                return ("value", getattr(target, method)(*args))
            finally:
                if self.forked:
                    signal.setitimer(signal.ITIMER_REAL, 0)
        except OutOfTimeError:
            return ("hung", f"no answer within {seconds:g} s", traceback.format_exc())
        except Exception as error:
            return ("raised", f"{type(error).__name__}: {error}"[:300], traceback.format_exc())


async def _bounded(value: Awaitable[Any], seconds: float | None) -> Any:
    task = asyncio.ensure_future(value)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if not done:
        task.cancel()
        raise OutOfTimeError
    return task.result()


def _out_of_time(*_: Any) -> None:
    raise OutOfTimeError


def main(control_descriptor: int, make: str, args: tuple[Any, ...], shared: bool) -> None:
    """Load, say so, and serve `open` and `kill` until the program ends."""
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    control = socket.socket(fileno=control_descriptor)
    pipe = Pipe(control)
    try:
        from counterpoint.data.user_code.loader import resolve

        loaded = resolve(make)(*args)
        told = ("value", loaded.described())
    except BaseException as error:
        named = type(error).__name__
        pipe.send(("raised", f"{named}: {error}", "" if named == "ConfigError" else traceback.format_exc()))
        return
    gc.freeze()  # a collection in a forked process would copy every page of what is loaded
    pipe.send(told)
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([control], [], [], 1.0)
        _reap(children)
        if not ready:
            continue
        try:
            order, descriptors = _order(control)
        except (EOFError, OSError):
            break
        if order == b"o" and shared:
            _start_thread(loaded, descriptors[0])
            control.sendall(HEAD.pack(0))
        elif order == b"o":
            child = os.fork()
            if child == 0:
                control.close()
                _serve_forked(loaded, descriptors[0])
            os.close(descriptors[0])
            children.add(child)
            control.sendall(HEAD.pack(child))
        else:
            (child,) = HEAD.unpack(order[1:])
            if child in children:
                os.kill(child, signal.SIGKILL)
    for child in children:
        os.kill(child, signal.SIGKILL)
    os._exit(0)  # threads of shared objects do not keep it


def _order(control: socket.socket) -> tuple[bytes, list[int]]:
    order, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not order:
        raise EOFError
    while order[:1] == b"k" and len(order) < 1 + HEAD.size:
        part = control.recv(1 + HEAD.size - len(order))
        if not part:
            raise EOFError
        order += part
    return order, list(descriptors)


def _reap(children: set[int]) -> None:
    for child in list(children):
        if os.waitpid(child, os.WNOHANG)[0]:
            children.discard(child)


def _serve_forked(loaded: Any, descriptor: int) -> None:
    """The life of a forked process; it ends here, without the exit handlers that belong to its parent."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it does not outlive the worker
        caller = Caller(Pipe(socket.socket(fileno=descriptor)), forked=True)
        caller.serve(loaded.new(caller))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(0)


def _start_thread(loaded: Any, descriptor: int) -> None:
    caller = Caller(Pipe(socket.socket(fileno=descriptor)), forked=False)
    threading.Thread(target=lambda: caller.serve(loaded.new(caller)), daemon=True).start()
