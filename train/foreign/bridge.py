"""The process in another virtual environment that runs a package's rollouts, and what becomes of its faults."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.foreign_section import ForeignType, PackageSettings
from counterpoint.train.episodes.tools import InvalidRolloutError

SCRIPTS = Path(__file__).parents[1] / "bridges"
_OURS = frozenset({"PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONSTARTUP", "VIRTUAL_ENV"})
_HERE = "127.0.0.1,localhost"
_LIST = "import importlib.metadata as m; print(sorted({f'{d.name} {d.version}' for d in m.distributions()}))"


@dataclass(frozen=True, slots=True)
class Played:
    """What the package gave a rollout. reward: None where it gives none. sessions: of its requests, those of the model
    that is to learn; None for all."""

    reward: float | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    sessions: frozenset[str] | None = None


class PackageFailedError(InvalidRolloutError):
    """The package itself says that a rollout failed; the bridge goes on."""


class Bridge:
    """One process of a package. ConfigError where it cannot be loaded. Close it.

    key: of the endpoint, which the process finds as OPENAI_API_KEY. tasks: how many of the package's tasks it is to
    list first, None for none. ready: the packages that it has loaded.
    """

    def __init__(self, kind: ForeignType, settings: PackageSettings, key: str = "", tasks: int | None = None) -> None:
        self.name = f"{kind} `{settings.id}`"
        self.retired = False
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[Played]] = {}
        self._why: str | None = None
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [_python(settings.python), "-u", str(_script(kind, settings.id))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(settings.python, key),
            start_new_session=True,  # Ctrl-C is for this program, which closes it
        )
        try:
            with suppress(BrokenPipeError):  # it died, and what it says of that is read next
                self._send({"id": settings.id, "settings": settings.settings, "tasks": tasks})
            first = self._first(settings.seconds)
        except BaseException:
            self.close()
            raise
        if "ready" not in first:
            self.close()
            raise ConfigError(f"environment {self.name}: {first['failed']}")
        self.ready, self.tasks = str(first["ready"]), list(first["tasks"])
        self._reader = threading.Thread(target=self._read, name=f"bridge {self.name}", daemon=True)
        self._reader.start()

    @property
    def gone(self) -> bool:
        return self._why is not None or self._process.poll() is not None

    @property
    def busy(self) -> int:
        """Rollouts in progress."""
        return len(self._waiting)

    def play(self, job: Mapping[str, Any]) -> Future[Played]:
        """InvalidRolloutError in the future where the package fails, and where the process dies."""
        answer: Future[Played] = Future()
        with self._lock:
            self._waiting[job["rollout"]] = answer
        try:
            self._send(job)
        except OSError:
            self._died()
        return answer

    def drop(self, rollout: str) -> None:
        """Nobody waits for this rollout any more."""
        with self._lock:
            self._waiting.pop(rollout, None)

    def close(self) -> None:
        """The process and what it has started end."""
        self._why = self._why or "it was closed"
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def tail(self, size: int = 2000) -> str:
        """The end of what it wrote to its standard error."""
        with suppress(OSError, ValueError):
            end = self._said.seek(0, os.SEEK_END)
            return os.pread(self._said.fileno(), size, max(0, end - size)).decode("utf-8", "replace").strip()
        return ""

    def _send(self, value: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        data = json.dumps(value, default=str).encode() + b"\n"
        with self._lock:
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _first(self, seconds: float) -> dict[str, Any]:
        """What it says of itself once it has loaded the package."""
        found: list[bytes] = []
        assert self._process.stdout is not None
        out = self._process.stdout
        reader = threading.Thread(target=lambda: found.append(out.readline()), daemon=True)
        reader.start()
        reader.join(seconds)
        if not found:
            raise ConfigError(
                f"environment {self.name}: it was not loaded within {seconds:g} s (`seconds`)\n{self.tail()}".rstrip()
            )
        try:
            return json.loads(found[0])
        except ValueError:
            said = self.tail() or f"exit code {self._process.wait()}"
            raise ConfigError(f"environment {self.name}: its process died while it was loaded: {said}") from None

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):  # closed
            for line in self._process.stdout:
                with suppress(ValueError, KeyError, TypeError, AttributeError):
                    self._answered(json.loads(line))
        self._died()

    def _answered(self, told: Mapping[str, Any]) -> None:
        with self._lock:
            answer = self._waiting.pop(told["rollout"], None)
        if answer is None:
            return
        if told.get("error"):
            answer.set_exception(PackageFailedError(f"{self.name}: {told['error']}", str(told.get("trace") or "")))
        else:
            reward = told.get("reward")
            sessions = told.get("sessions")
            metrics, own = dict(told.get("metrics") or {}), None if sessions is None else frozenset(sessions)
            answer.set_result(Played(None if reward is None else float(reward), metrics, own))

    def _died(self) -> None:
        self._why = self._why or f"its process died (exit code {self._process.wait()})"
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
        for answer in waiting:
            answer.set_exception(InvalidRolloutError(f"{self.name}: {self._why}", self.tail()))


def listed_tasks(kind: ForeignType, settings: PackageSettings, most: int) -> list[dict[str, Any]]:
    """Rows of the package's first tasks, at most so many. ConfigError where it cannot be loaded, or has none."""
    bridge = Bridge(kind, settings, tasks=most)
    bridge.close()
    if not bridge.tasks:
        raise ConfigError(f"environment {bridge.name}: it lists no tasks: give it rows of your own (`path`)")
    return bridge.tasks


@lru_cache(maxsize=32)
def installed(python: str) -> str:
    """Every distribution that a Python has, with its version. ConfigError where it cannot be run."""
    try:
        done = subprocess.run(
            [_python(python), "-c", _LIST],
            capture_output=True,
            text=True,
            env=_environment(python, ""),
            timeout=120,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"python: {python}: cannot be run ({error})") from None
    return done.stdout


def code_of(kind: ForeignType, settings: PackageSettings) -> str:
    """The bridge's own source, with the file of the user's that it loads."""
    own = Path(settings.id.partition("@")[0]).expanduser()
    files = [_script(kind, settings.id), *([own] if kind == "inspect" and own.is_file() else [])]
    return "".join(file.read_text(encoding="utf-8") for file in files)


def _python(place: str) -> str:
    path = Path(place).expanduser()
    if not path.is_file() or not os.access(path, os.X_OK):
        raise ConfigError(f"python: {place}: there is no such program: give the bin/python of a virtual environment")
    return str(path.absolute())  # never resolved: a virtual environment is where its link lies


def _script(kind: ForeignType, id: str) -> Path:
    path = Path(id).expanduser() if kind == "script" else SCRIPTS / f"for_{kind}.py"
    if not path.is_file():
        raise ConfigError(f"environment: id: {id}: there is no such file: give the script of your bridge")
    return path.absolute()


def _environment(python: str, key: str) -> dict[str, str]:
    """Of the process: this one's, without what belongs to our Python, the package's own commands first."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    no_proxy = ",".join(filter(None, (kept.get("NO_PROXY") or kept.get("no_proxy"), _HERE)))
    path = os.pathsep.join(filter(None, (str(Path(_python(python)).parent), kept.get("PATH"))))
    paths = {"COUNTERPOINT_BRIDGES": str(SCRIPTS), "PATH": path}
    return {**kept, **paths, "OPENAI_API_KEY": key, "NO_PROXY": no_proxy, "no_proxy": no_proxy}
