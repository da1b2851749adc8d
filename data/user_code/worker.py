"""Run a function that may raise, hang, or return nonsense, and always get a plain answer back.

The work is done in one child process that is kept; a call that outlives its time kills the child, and the next call
starts a new one. Arguments and results travel by pickle, between this program and its own child only.
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

from counterpoint.data.user_code.loader import resolve

Failure = Literal["raised", "hung", "not_a_number"]


@dataclass(frozen=True, slots=True)
class Guarded:
    """`value` in [0, 1], or None with the `failure` and a line of `detail`."""

    value: float | None
    failure: Failure | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a function returned; with a `failure`, nothing and a line of `detail`."""

    value: Any
    failure: Failure | None = None
    detail: str = ""


class Worker:
    """Calls functions named `module:function` or `path/file.py:function` in a child process.

    `seconds` is the limit for one call. Close it, or use it as a context manager.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._process: Any = None
        self._pipe: Any = None

    def call(self, function: str, *args: Any, **kwargs: Any) -> Answer:
        """The function's value, whatever it is, as long as it can be pickled."""
        pipe = self._started()
        try:
            pipe.send((function, args, kwargs))
            if not pipe.poll(self.seconds):
                self.close()
                return Answer(None, "hung", f"no answer within {self.seconds:g} s")
            kind, value = pipe.recv()
        except (EOFError, OSError) as error:
            self.close()
            return Answer(None, "raised", f"its process died ({type(error).__name__})")
        except Exception as error:  # unpickling: a class of the user's file is known in the child only
            return Answer(None, "raised", f"its value cannot be read ({type(error).__name__})")
        return Answer(None, "raised", value) if kind == "raised" else Answer(value)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> Any:
        if self._pipe is not None and self._process is not None and self._process.is_alive():
            return self._pipe
        self.close()
        # Not forked: the parent holds threads of torch, which a forked child could wait for forever.
        context = multiprocessing.get_context("spawn")
        self._pipe, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child,), daemon=True)
        self._process.start()
        child.close()
        return self._pipe


class Guard(Worker):
    """A worker whose functions are scorers."""

    def __call__(self, function: str, *args: Any) -> Guarded:
        """The function's value as a number between 0 and 1 (True and False count as 1 and 0)."""
        answer = self.call(function, *args)
        return as_score(answer.value) if answer.failure is None else Guarded(None, answer.failure, answer.detail)


def as_score(value: Any) -> Guarded:
    """A scorer's return value, or why it is none."""
    if isinstance(value, bool):
        return Guarded(float(value))
    if isinstance(value, (int, float)) and math.isfinite(value):
        return Guarded(min(1.0, max(0.0, float(value))))
    return Guarded(None, "not_a_number", f"returned {value!r}"[:200])


def _serve(pipe: Any) -> None:
    functions: dict[str, Callable[..., Any]] = {}
    while True:
        try:
            name, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            if name not in functions:
                functions[name] = resolve(name)
            answer = ("value", functions[name](*args, **kwargs))
        except Exception as error:
            answer = ("raised", f"{type(error).__name__}: {error}"[:200])
        try:
            pipe.send(answer)
        except Exception as error:
            pipe.send(("raised", f"its value cannot be sent ({type(error).__name__})"))
