"""One run folder, one run: a lock that neither a dead process nor a lost machine can hold.

On one machine the kernel's lock tells the living from the dead. A folder that several machines see may be on a file
system that does not pass locks on; there the holder's heartbeat does: it touches the file every few seconds, and who
finds it untouched for a minute takes it over. A holder that stood still meanwhile notices, and ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import RunError

LOCK_FILE = "lock"
BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
RACE_SECONDS = 2.0


@dataclass
class FolderLock:
    """Held while the process lives. stale: who held it before and died, None where nobody did. moved: whether that was
    known by its missing heartbeat alone, as of a lost machine."""

    path: Path
    file: Any
    mine: dict[str, Any]
    stale: str | None
    moved: bool
    _end: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """RunError where another process took the folder over: this one must write nothing more there."""
        with suppress(OSError):  # a file system that is away for a while
            holder = _read(self.path)
            if holder != self.mine:
                raise RunError(
                    f"{self.path.parent}: taken over by {_owner(holder)} while this process stood still: its run goes "
                    "on there, and this one ends"
                )

    def release(self) -> None:
        """Let go. The empty file stays: removing it would let two processes lock two files of that name."""
        self._end.set()
        if not self.file.closed:
            with suppress(RunError):  # then it is another's
                self.check()
                self.file.truncate(0)
            self.file.close()

    def beat(self, seconds: float) -> None:
        """Touch the file until `release`, from a thread of its own."""

        def work() -> None:
            while not self._end.wait(seconds):
                with suppress(OSError):
                    if _read(self.path) != self.mine:
                        return
                    os.utime(self.path)

        threading.Thread(target=work, name="heartbeat", daemon=True).start()


def lock_folder(folder: Path, beat: float = BEAT_SECONDS, stale: float = STALE_SECONDS) -> FolderLock:
    """Lock a run folder for this process. RunError with pid and host where another one holds it.

    beat: seconds between two touches of the file. stale: how long it is untouched when its holder, on another machine,
    counts as dead; where that is not known yet, this waits for it.
    """
    path = folder / LOCK_FILE
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        has_locks = True
    except BlockingIOError:
        holder = _read(path)
        file.close()
        raise RunError(
            f"{folder}: another run is using it ({_owner(holder)}): wait for it, stop it, or start a new run"
        ) from None
    except OSError:
        has_locks = False
    holder = _read(path)
    unsure = holder is not None and (holder.get("host") != socket.gethostname() or not has_locks)
    if unsure and _beats(path, _owner(holder), stale):
        file.close()
        raise RunError(f"{folder}: a run on another machine is using it ({_owner(holder)}): wait for it, or stop it")
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "token": os.urandom(8).hex()}
    file.truncate(0)
    json.dump(mine, file)
    file.flush()
    os.fsync(file.fileno())
    if unsure:
        time.sleep(RACE_SECONDS)
        if (found := _read(path)) != mine:  # two machines took over at once; the last to write has it
            file.close()
            raise RunError(f"{folder}: another run has just taken it ({_owner(found)}): wait for it")
    lock = FolderLock(path, file, mine, _owner(holder) if holder is not None else None, unsure)
    lock.beat(beat)
    return lock


def _beats(path: Path, owner: str, stale: float) -> bool:
    """Whether the holder touches the file; waits until that is known."""
    first, told = _touched(path), False
    while (age := _now(path) - _touched(path)) < stale:
        if _touched(path) != first:
            return True
        if not told:
            left = f"{stale - age:.0f} s"
            print(f"{path.parent}: was used by {owner}: waiting {left} to see whether it lives", flush=True)
            told = True
        time.sleep(min(1.0, stale / 10))
    return False


def _touched(path: Path) -> float:
    """Seconds; opened, since a network file system asks its server then, and otherwise may answer from memory."""
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_mtime_ns / 1e9


def _now(path: Path) -> float:
    """Seconds, by the clock of the file system: those of two machines may differ."""
    probe = path.with_name(f"{LOCK_FILE}.{os.urandom(8).hex()}")
    try:
        probe.touch()
        return _touched(probe)
    finally:
        probe.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _owner(holder: dict[str, Any] | None) -> str:
    return f"pid {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
