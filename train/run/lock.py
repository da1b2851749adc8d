"""One run folder, one run: a lock that a dead process cannot hold."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import RunError

LOCK_FILE = "lock"


@dataclass
class FolderLock:
    """Held while the process lives; `stale` names who held it before and died, None where nobody did."""

    path: Path
    file: Any
    stale: str | None

    def release(self) -> None:
        """Let go. The empty file stays: removing it would let two processes lock two files of that name."""
        if not self.file.closed:
            self.file.truncate(0)
            self.file.close()


def lock_folder(folder: Path) -> FolderLock:
    """Lock a run folder for this process. RunError with pid and host where another one holds it.

    The kernel's lock distinguishes living from dead owners on this machine; the host in the file does so where the
    folder is shared and the file system does not pass locks on.
    """
    path = folder / LOCK_FILE
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(file)
        file.close()
        raise RunError(
            f"{folder}: another run is using it ({_owner(holder)}): wait for it, stop it, or start a new run"
        ) from None
    except OSError:
        # A file system without locks: only the content of the file is left.
        pass
    holder = _holder(file)
    if holder is not None and holder.get("host") != socket.gethostname():
        file.close()
        raise RunError(
            f"{folder}: a run on another machine is using it ({_owner(holder)}): if that run is dead, remove {path}"
        )
    file.seek(0)
    file.truncate(0)
    json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
    file.flush()
    return FolderLock(path, file, _owner(holder) if holder is not None else None)


def _holder(file: Any) -> dict[str, Any] | None:
    file.seek(0)
    try:
        value = json.loads(file.read())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _owner(holder: dict[str, Any] | None) -> str:
    return f"pid {holder.get('pid', '?')} on {holder.get('host', '?')}" if holder else "pid unknown"
