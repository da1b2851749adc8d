"""A process of its own in which groups are played, so that tools, rewards and requests take no time from the trainer.

It has neither a model nor a GPU. When it dies it is started again, and what it had not finished is played again, from
the same seeds. A group that is played while it dies a second time is given up: its rollouts are invalid.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from counterpoint.configs.errors import CounterpointError, RunError
from counterpoint.train.loop.group_journal import Journal
from counterpoint.train.loop.group_order import Share
from counterpoint.train.loop.group_player import EngineAt, ThreadPlayer
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.run.signals import CAUGHT

MOST_DEATHS = 2
"""Of a group, and of the process before it is ready."""
CLOSE_SECONDS = 5.0
LOOK_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_READY, _NO_GROUP = -1, -2
Parts = tuple[Rollouts, EngineAt]
Build = Callable[[ExitStack, Any], Parts]
"""What the process plays with, from what it is given: a function of a module, with what has to be closed."""


@dataclass
class _Group:
    version: int
    name: str
    deaths: int = 0
    sent: bool = False


class RolloutProcess:
    """A `Player`. build, given: called in the process, and pickled for it. rollouts: of this process, which writes down
    what was given up."""

    def __init__(self, build: Build, given: Any, rollouts: Rollouts, share: Share, journal: Journal) -> None:
        self.notices: list[str] = []
        self._start = build, given, share, journal
        self._rollouts, self._share, self._journal = rollouts, share, journal
        self._finished: queue.SimpleQueue[tuple[int, BaseException | None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._groups: dict[int, _Group] = {}
        self._pipe: Connection | None = None
        self._process: Any = None
        self._closed = self._ready = False
        self._deaths = 0
        threading.Thread(target=self._watch, name="rollout process", daemon=True).start()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def play(self, number: int, version: int, name: str) -> None:
        with self._lock:
            self._groups[number] = _Group(version, name)
            self._send()

    def wait(self) -> int:
        number, error = self._finished.get()
        if error is not None:
            raise error
        return number

    def close(self) -> None:
        with self._lock:
            self._closed = True
            pipe, process = self._pipe, self._process
            if pipe is not None:
                with suppress(OSError):
                    pipe.send(None)
        if process is not None:
            process.join(CLOSE_SECONDS)
            process.kill()
            process.join()

    def _send(self) -> None:
        """What is due, to the process. One that has seen a death is not played beside another such one, so that a
        second death is blamed on who did it."""
        if not self._ready or self._pipe is None:
            return
        alone = any(group.sent and group.deaths for group in self._groups.values())
        for number, group in self._groups.items():
            if group.sent or (group.deaths and alone):
                continue
            alone = alone or group.deaths > 0
            group.sent = True
            with suppress(OSError):  # it has died, which the other thread sees
                self._pipe.send((number, group.version, group.name))

    def _watch(self) -> None:
        """Starts the process, hears what it says, and starts it again. One thread for as long as this process lives:
        the process ends with the thread that started it."""
        context = multiprocessing.get_context("spawn")
        while not self._closed:
            ours: Any
            ours, theirs = context.Pipe()
            # Not a daemon: those may have no processes of their own, which tools and rewards need.
            process = context.Process(target=_main, args=(theirs, os.getpid(), *self._start), name="rollouts")
            with self._lock:
                if self._closed:
                    return
                process.start()
                self._process, self._pipe = process, ours
            theirs.close()
            self._hear(ours)
            process.join()
            with self._lock:
                if not self._closed:
                    self._has_died(process.exitcode)

    def _hear(self, pipe: Connection) -> None:
        with suppress(EOFError, OSError):
            while True:
                number, error = pipe.recv()
                with self._lock:
                    if number == _READY:
                        self._ready, self._deaths = True, 0
                    else:
                        self._groups.pop(number, None)
                        self._finished.put((number, error))
                    self._send()

    def _has_died(self, code: int | None) -> None:
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if not self._ready:
            self._deaths += 1
            if self._deaths >= MOST_DEATHS:
                what = f"the rollout process ended {self._deaths} times before it was ready ({how})"
                self._finished.put((_NO_GROUP, RunError(f"{what}: see what it printed")))
                self._closed = True
                return
        playing = {number: group for number, group in self._groups.items() if group.sent}
        self._ready = False
        self.notices.append(f"the rollout process ended ({how}): started again, {len(playing)} groups are played again")
        for number, group in playing.items():
            group.sent, group.deaths = False, group.deaths + 1
            if group.deaths >= MOST_DEATHS:
                del self._groups[number]
                items, *_ = self._share.of(number)
                why = f"the rollout process ended {group.deaths} times while it was played ({how})"
                given_up = self._rollouts.given_up(items, why)
                self._journal.write(number, group.version, group.name, given_up)
                self._finished.put((number, None))


def _main(pipe: Connection, parent: int, build: Build, given: Any, share: Share, journal: Journal) -> None:
    """The process. It ends when the trainer does, however that ends."""
    for number in CAUGHT:  # sent to the whole group; not ignored, which programs that are started here would inherit
        signal.signal(number, lambda *_: None)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    lock = threading.Lock()

    def say(number: int, error: BaseException | None) -> None:
        with lock, suppress(OSError):
            pipe.send((number, None if error is None else _portable(error)))

    with ExitStack() as stack:
        try:
            rollouts, engine_at = build(stack, given)
        except BaseException as error:
            say(_NO_GROUP, error)
            return
        player = ThreadPlayer(rollouts, share, journal, engine_at, say)
        say(_READY, None)
        with suppress(EOFError, OSError):
            while os.getppid() == parent:
                if not pipe.poll(LOOK_SECONDS):
                    continue
                if (asked := pipe.recv()) is None:
                    break
                player.play(*asked)
        player.close()
    os._exit(0)  # requests in progress are not waited for


def _portable(error: BaseException) -> BaseException:
    """The error as another process can read it: a user's mistake in its one line, any other with its traceback."""
    if isinstance(error, CounterpointError | OSError):
        with suppress(Exception):  # of a class that pickle does not make again
            return pickle.loads(pickle.dumps(error))
    if isinstance(error, CounterpointError):
        return RunError(str(error))
    return RuntimeError("in the rollout process:\n" + "".join(traceback.format_exception(error)))
