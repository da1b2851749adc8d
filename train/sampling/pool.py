"""Several servers as one engine: they join and leave meanwhile, and a sample does not depend on which one drew it.

A server is judged by the work it does: a request that is refused, fails or is late takes it out, as do two polls in a
row without an answer (a hung engine still answers `/health`). Its requests go to the others with the same seeds. One
that is out is asked again and again, and joins once it has done some work.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError, CounterpointError, RunError
from counterpoint.configs.schema import ServerSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.sampling.expert_routes import ExpertRoutes, joined
from counterpoint.train.sampling.member import Member, listed_in
from counterpoint.train.sampling.priority_lock import PriorityLock
from counterpoint.train.sampling.sample import Sampled, SamplingStoppedError, sample_seed
from counterpoint.train.sampling.server import BUSY, Server, ServerFailedError, Wanted, completion_body
from counterpoint.train.sampling.truncation import WHOLE, Truncation

POLL_SECONDS = 5.0
POLL_TIMEOUT = 10.0
FAILED_POLLS = 2
MOST_PAUSE = 60.0
MOST_THREADS = 256
STOP_SECONDS = 0.2
_REFUSED = frozenset({401, 403, 404})


class NoServerError(RunError):
    """No server has been left for `server.wait` seconds."""


class ServerPool:
    """An `Engine` over the servers of `settings`; thread-safe.

    admit: what a server has to pass before it counts, beside answering; RunError where it does not. tell, warn: of
    servers that join and leave. logprobs, truncation, routes: as of `VllmEngine`. each_alone: what waits for samples
    asks for each by itself (sampling_desk.py). With `routes` a server has to tell them before it counts.
    """

    each_alone = True

    def __init__(
        self,
        settings: ServerSettings,
        *,
        admit: Callable[[Member], None] = lambda member: None,
        ready: Callable[[Member], bool] = lambda member: True,
        tell: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
        logprobs: bool = False,
        truncation: Truncation = WHOLE,
        routes: bool = False,
        poll: float = POLL_SECONDS,
        pause: float = 1.0,
    ) -> None:
        self.settings, self.poll, self.pause = settings, poll, pause
        self.wanted = Wanted(truncation, logprobs, routes)
        self.admit, self.ready, self._tell, self._warn = admit, ready, tell, warn
        self.only: set[str] | None = None
        self._changed = threading.Condition(threading.RLock())
        self._members: dict[str, Member] = {}
        self._tried: dict[str, str] = {}
        self._door, self._arrivals = PriorityLock(), itertools.count()
        self._empty_since = time.monotonic()
        self._last_failure = ""
        self._closed = threading.Event()
        self._alone = settings.url_file is None and len(settings.url) == 1

    @classmethod
    def connected(cls, settings: ServerSettings, **options: object) -> ServerPool:
        """The pool, once a server has joined. RunError where none answers, ConfigError for a file that is not there."""
        pool = cls(settings, **options)  # type: ignore[arg-type]
        pool.start()
        return pool

    def start(self) -> None:
        """Try all servers; returns with the first that joins. Errors as of `connected`."""
        urls: Sequence[str] = self.settings.url
        if self.settings.url_file is not None:
            path = Path(self.settings.url_file)
            try:
                urls = listed_in(path)
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"server.url_file: {path}: cannot be read ({error}): name a file of addresses"
                ) from None
            if not urls:
                raise ConfigError(f"server.url_file: {path}: holds no address: write one a line, up to /v1")
        for url in urls:
            self._begin(url)
        with self._changed:
            self._changed.wait_for(lambda: self._live() or all(url in self._tried for url in urls))
            reasons = [] if self._live() else list(self._tried.values())
        if reasons:
            self.close()
            raise RunError(reasons[0] if len(reasons) == 1 else f"none of {len(reasons)} servers: {'; '.join(reasons)}")
        if self.settings.url_file is not None:
            threading.Thread(target=self._read_again, name="servers", daemon=True).start()

    def close(self) -> None:
        """Forget all servers; requests in progress end, and none is begun any more."""
        self._closed.set()
        with self._changed:
            members = list(self._members.values())
            self._changed.notify_all()
        for member in members:
            member.woken.set()
            member.server.close()

    # ---- sampling

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
        adapter: str | None = None,
        turn: int = 0,
        wanted: Wanted | None = None,
        stops: Callable[[], bool] | None = None,
    ) -> list[Sampled]:
        """See `Engine`. adapter: the name of one that is loaded on every server; None samples the servers' own model.
        turn: where all servers are full, completions of the lowest go first, and of those the earliest. wanted: in
        place of the pool's own. stops: SamplingStoppedError once it is true; no request is waited for.

        NoServerError once no server has been left for `wait` seconds, RunError for a request that every server refuses,
        ModelError for answers whose ids cannot be known.
        """
        seeds = [sample_seed(seed, i) for i in range(len(prompts))] if isinstance(seed, int) else list(seed)
        wanted, over = wanted or self.wanted, threading.Event()

        def one(n: int) -> Sampled:
            body = completion_body("", prompts[n], max_new_tokens, temperature, seeds[n], stop_ids, wanted)
            return self._completion(body, wanted, adapter, (turn, next(self._arrivals)), over)

        if len(prompts) == 1 and stops is None:
            return [one(0)]
        threads = ThreadPoolExecutor(min(MOST_THREADS, max(1, len(prompts))), "request")
        futures = [threads.submit(one, number) for number in range(len(prompts))]
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, None if stops is None else STOP_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                if waiting and stops is not None and stops():
                    raise SamplingStoppedError
        finally:
            over.set()
            threads.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]

    def _completion(
        self, body: dict[str, Any], wanted: Wanted, adapter: str | None, place: tuple[int, int], over: threading.Event
    ) -> Sampled:
        """One completion, a chunk at a time; the first has the seed of `body` itself. over: nobody waits for it."""
        prompt, max_new_tokens, seed = body["prompt"], body["max_tokens"], body["seed"]
        ids: list[int] = []
        logprobs: list[float | None] = []
        routes: ExpertRoutes | None = None
        before: Member | None = None
        chunk = 0
        while True:
            most = min(self.settings.chunk_tokens, max_new_tokens - len(ids))
            own = seed if chunk == 0 else sample_seed(seed, "chunk", chunk)
            asked = {**body, "prompt": [*prompt, *ids], "max_tokens": most, "seed": own}
            found, before = self._answer(asked, wanted.routes, adapter, before, place, over)
            ids += found.ids
            logprobs += found.logprobs or ()
            routes = joined(routes, found.routes)
            if found.finish_reason == "stop" or len(found.ids) < most or len(ids) >= max_new_tokens:
                return Sampled(ids, found.finish_reason, logprobs if wanted.logprobs else None, routes)
            chunk += 1

    def _answer(
        self,
        body: dict[str, Any],
        routes: bool,
        adapter: str | None,
        before: Member | None,
        place: tuple[int, int],
        over: threading.Event,
    ) -> tuple[Sampled, Member]:
        """What a server samples, and which; `before` is preferred, since it has computed the prefix."""
        tries = 0  # that may have failed by the request itself
        while True:
            with self._slot(before, place) as member:
                if over.is_set():
                    raise SamplingStoppedError
                try:
                    return member.server.completed({**body, "model": adapter or member.model}, routes), member
                except ServerFailedError as error:
                    failed = error
            before, status = None, failed.status
            unknown = status == 404 and adapter is not None  # it was started again: it joins anew, and is given all
            tries += self._alone or failed.late or (status is not None and not unknown)
            refused = status in _REFUSED and not unknown
            if refused or (tries > self.settings.retries and (failed.late or (status is not None and not unknown))):
                raise failed  # wherever it is asked
            again = self._alone and tries <= self.settings.retries and not failed.late and not unknown
            if again or status in BUSY:
                time.sleep(self.pause * 2 ** (tries - 1))
            else:
                self.take_out(member, failed)

    @contextmanager
    def _slot(self, before: Member | None, place: tuple[int, int]) -> Iterator[Member]:
        """A server with room for a request, the one with the fewest; the lowest place has the next. NoServerError where
        none is left."""
        with self._door.held(place), self._changed:
            while True:
                room = [each for each in self.wait_for_one() if each.in_progress < self.settings.parallel]
                if room:
                    break
                self._changed.wait()
            member = before if before is not None and before in room else min(room, key=lambda each: each.in_progress)
            member.in_progress += 1
        try:
            yield member
        finally:
            with self._changed:
                member.in_progress -= 1
                self._changed.notify_all()

    # ---- servers that join and leave

    def wait_for_one(self) -> list[Member]:
        """The servers that count, once there is one. NoServerError once there has been none for `wait` seconds."""
        with self._changed:
            while not (live := self._live()):
                left = self._empty_since + self.settings.wait - time.monotonic()
                if left <= 0 or self._closed.is_set():
                    reason = self._last_failure or "none has joined"
                    raise NoServerError(f"no server is left, for {self.settings.wait:g} s (`server.wait`): {reason}")
                self._changed.wait(left)
            return live

    @property
    def members(self) -> list[Member]:
        """The servers that count."""
        with self._changed:
            return self._live()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No server joins or leaves meanwhile."""
        with self._changed:
            yield

    def take_out(self, member: Member, error: CounterpointError) -> None:
        """The server is asked no more until it has joined again."""
        late = getattr(error, "late", False)
        with self._changed:
            self._last_failure = str(error)
            if not member.counts or self._closed.is_set():
                return
            member.counts = False
            member.registered, member.base_scores, member.proven = set(), None, ""
            left = len(self._live())
            if not left:
                self._empty_since = time.monotonic()
            self._changed.notify_all()
        if member.listed:
            self._warn(f"server {member.name} is out, {left} left: {error}")
        if late:
            member.server.cut()
        member.woken.set()

    def _live(self) -> list[Member]:
        return [
            member
            for member in self._members.values()
            if member.counts
            and member.listed
            and not self._closed.is_set()
            and (self.only is None or member.server.url in self.only)
        ]

    def wake(self) -> None:
        """Who waits for a server looks again."""
        with self._changed:
            self._changed.notify_all()

    def _begin(self, url: str) -> None:
        with self._changed:
            if url in self._members:
                return
            member = self._members[url] = Member(Server(url, self.settings.timeout))
        threading.Thread(target=self._watch, args=(member,), name=f"server {member.name}", daemon=True).start()

    def _watch(self, member: Member) -> None:
        """A server's own thread: has it join, polls it, and has it join again."""
        failed, told, pause = 0, "", self.poll
        while member.listed and not self._closed.is_set():
            member.woken.clear()
            if not member.counts:
                why = self._join(member)
                if why and why != told and (member.was_in or not self._alone) and not self._closed.is_set():
                    self._warn(f"server {member.name} does not count: {why}")
                failed, told, pause = 0, why, min(MOST_PAUSE, 2 * pause) if why else self.poll
            elif self._answers(member):
                failed = 0
            elif (failed := failed + 1) >= FAILED_POLLS:
                self.take_out(member, ServerFailedError(f"{failed} polls in a row had no answer", late=True))
                continue
            member.woken.wait(pause)

    def _answers(self, member: Member) -> bool:
        """Whether anything answers; that it works is for requests to show."""
        try:
            member.server.asked("models", None, timeout=POLL_TIMEOUT)
        except ServerFailedError as error:
            return error.status is not None and error.status < 500
        except RunError:
            return True
        return True

    def _join(self, member: Member) -> str:
        """The join procedure; why it failed, empty where the server counts from now on."""
        server = member.server
        try:
            member.model = self.settings.model or self._listed(member)
            if member.was_in or self.wanted.routes:  # what answers and samples nothing is still hung
                body = completion_body(member.model, [STOP_IDS[0]], 1, 0.0, 0, STOP_IDS)
                server.completed(body, self.wanted.routes)
            while True:  # a version may come out meanwhile
                self.admit(member)
                with self._changed:
                    if not self.ready(member):
                        continue
                    member.counts = member.was_in = True
                    self._tried.setdefault(server.url, "")
                    n, of = len(self._live()), sum(each.listed for each in self._members.values())
                    self._changed.notify_all()
                    break
        except CounterpointError as error:
            return self._refused(member, str(error))
        except Exception as error:  # in a thread of its own it would be lost
            return self._refused(member, f"{type(error).__name__}: {error}")
        if not self._alone:
            self._tell(f"server {member.name} counts ({n} of {of})")
        return ""

    def _listed(self, member: Member) -> str:
        """The first model of a server. At the start it is asked again where it does not answer."""
        for tried in range(self.settings.retries):
            try:
                return member.server.models()[0]
            except ServerFailedError as error:
                if member.was_in or error.late or error.status in _REFUSED:
                    raise
            self._closed.wait(self.pause * 2**tried)
        return member.server.models()[0]

    def _refused(self, member: Member, why: str) -> str:
        with self._changed:
            self._tried[member.server.url] = why
            self._last_failure = why
            self._changed.notify_all()
        return why

    def _read_again(self) -> None:
        """The file of addresses: a new one joins at once, one that is gone in two readings leaves."""
        assert self.settings.url_file is not None
        path, missing = Path(self.settings.url_file), set[str]()
        while not self._closed.wait(self.poll):
            try:
                urls = set(listed_in(path))
            except (OSError, UnicodeDecodeError) as error:
                self._warn(f"server.url_file: {path}: {error}: the servers stay as they were")
                continue
            with self._changed:
                gone = {url for url in self._members if url not in urls}
                leaving = [self._members.pop(url) for url in gone & missing]
                for member in leaving:
                    member.listed = False
                if leaving and not self._live():
                    self._empty_since = time.monotonic()
                self._changed.notify_all()
            missing = gone - missing
            for member in leaving:
                member.woken.set()
                self._tell(f"server {member.name} leaves: it is not in {path} any more")
            for url in urls:
                self._begin(url)
