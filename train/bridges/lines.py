"""What every bridge has in common: it runs in the virtual environment of another package, and speaks JSON lines.

The first line in names what to load, and `{"ready": ...}` or `{"failed": ...}` answers. Every later line is a rollout,
answered by `{"rollout", "reward", "metrics", "error"}` when it is over; they run beside each other. The end of the
input is the end of the program.

    from lines import main
    main(load)        # load(id, settings) -> an object with
                      #   tasks(most) -> list of rows, each with a `task`
                      #   play(job) -> reward, (reward, metrics), or (reward, metrics, sessions): those, by their
                      #       header X-Session-ID, of the model that is to learn; sync (in a thread) or async

Standard library alone, for Python 3.10 and later. What the package prints goes to standard error.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import threading
import traceback
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any

MOST = 512
"""Rollouts at a time."""


class Job(SimpleNamespace):
    """One rollout. rollout: its id; task: the row, whose field `task` is what `tasks` gave; seed: the same for all
    samples of a row; base_url, api_key, model: the endpoint of the model; user: the same three of a user who is played.
    """

    rollout: str
    task: dict[str, Any]
    seed: int
    base_url: str
    api_key: str
    model: str
    user: SimpleNamespace


def versions(*packages: str) -> str:
    """`name version` of those that are installed."""
    found = []
    for name in packages:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


def chat(place: Any, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The message that the model of a job, or of its user, answers with. Blocks until it is sampled."""
    body = json.dumps({"model": place.model, "messages": messages, **more}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {place.api_key}"}
    request = urllib.request.Request(f"{place.base_url.rstrip('/')}/chat/completions", body, headers)
    with urllib.request.urlopen(request, timeout=3600) as reply:
        return json.load(reply)["choices"][0]["message"]


def main(load: Any, *packages: str) -> None:
    """Serves until standard input ends. packages: whose versions are told."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    lock = threading.Lock()

    def say(**value: Any) -> None:
        with lock:
            out.write(json.dumps(value) + "\n")
            out.flush()

    asyncio.run(_served(load, packages, say))
    os._exit(0)  # threads of packages, and rollouts that nobody waits for, end with it


async def _served(load: Any, packages: tuple[str, ...], say: Any) -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(MOST))
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        loop.call_soon_threadsafe(lines.put_nowait, "")

    threading.Thread(target=read, daemon=True).start()
    try:
        first = json.loads(await lines.get())
        loaded = await _of(load(first["id"], first["settings"]))
        tasks = [] if first.get("tasks") is None else await _of(loaded.tasks(first["tasks"]))
        say(ready=versions(*packages, first["id"]), tasks=tasks)
    except BaseException as error:
        say(failed=_told(error), trace=traceback.format_exc())
        return
    running: set[Any] = set()
    while line := await lines.get():
        task = asyncio.ensure_future(_play(loaded, json.loads(line), say))
        running.add(task)
        task.add_done_callback(running.discard)


async def _play(loaded: Any, given: dict[str, Any], say: Any) -> None:
    job = Job(**{**given, "user": SimpleNamespace(**given["user"])})
    try:
        run = loaded.play(job) if inspect.iscoroutinefunction(loaded.play) else asyncio.to_thread(loaded.play, job)
        reward = await run
        value, *more = reward if isinstance(reward, tuple) else (reward,)
        metrics: dict[str, Any] = more[0] if more else {}
        sessions = more[1] if len(more) > 1 else None
        numbers = {str(name): float(each) for name, each in metrics.items() if isinstance(each, (int, float))}
        given = {"reward": None if value is None else float(value), "metrics": numbers, "sessions": sessions}
        say(rollout=job.rollout, error=None, **given)
    except BaseException as error:
        say(rollout=job.rollout, reward=None, metrics={}, error=_told(error), trace=traceback.format_exc())


async def _of(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:2000]
