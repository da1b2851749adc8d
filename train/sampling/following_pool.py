"""vLLM servers that sample from the weights that are being trained, each version under a name of its own.

A server counts once it has every version that is kept, and is seen to sample with the newest one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError, CounterpointError, RunError
from counterpoint.configs.schema import RolloutServerSettings
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.sampling.adapter_files import AdapterFiles, token
from counterpoint.train.sampling.adapter_proof import OwnScores, own_scores, why_refused
from counterpoint.train.sampling.member import Member
from counterpoint.train.sampling.pinned import PinnedEngine
from counterpoint.train.sampling.pool import ServerPool
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.server import ServerFailedError, completion_body
from counterpoint.train.sampling.vllm_resolver import FILES, TOKEN_VARIABLE, URL_VARIABLE, digest_of

ACCEPTED = "servers.txt"
"""File of the addresses of those that count, where there are several."""
_FOLDER_FIX = (
    "start vLLM with --enable-lora, a --max-lora-rank, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, on a disk that both "
    "see (or rollout.server.adapters: http)"
)
_HTTP_FIX = (
    "start vLLM with this package installed, --enable-lora, a --max-lora-rank, VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, "
    f"{URL_VARIABLE}=http://HOST:%d of the first training process, and its {TOKEN_VARIABLE}"
)


@dataclass(frozen=True)
class _Version:
    name: str
    folder: Path


class FollowingPool:
    """The engine of `rollout.engine: server`.

    folder: where adapters are written. run: what the run's adapters are named after. loaded, probes: token ids whose
    scores prove that an adapter acts; None and none prove nothing. keep: versions that stay loaded, the newest among
    them. tell, warn: of servers that join and leave. options: of `ServerPool`.
    """

    each_alone = True

    def __init__(
        self,
        settings: RolloutServerSettings,
        folder: Path,
        run: str,
        loaded: LoadedModel | None = None,
        probes: Sequence[Sequence[int]] = (),
        *,
        keep: int = 1,
        tell: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
        **options: Any,
    ) -> None:
        self.settings, self.folder, self.keep = settings, folder, keep
        self.run = hashlib.sha256(run.encode()).hexdigest()[:8]
        self._loaded, self._probes, self._tell = loaded, probes, tell
        self._versions: dict[int, _Version] = {}
        self._own: OwnScores | None = None
        self._newest: int | None = None
        self._published = False
        self._files: AdapterFiles | None = None
        options = {"logprobs": True, "tell": self._noted(tell), "warn": self._noted(warn), **options}
        self.pool = ServerPool(settings, admit=self._bring, ready=self._is_ready, **options)
        self.pool.start()

    def _noted(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Writes down which servers count whenever something is said of one, for processes that sample beside this."""

        def noted(text: str) -> None:
            with self.pool.held():
                self.folder.mkdir(parents=True, exist_ok=True)
                partial = self.folder / f"{ACCEPTED}.new"
                partial.write_text("".join(f"{member.server.url}\n" for member in self.pool.members), encoding="utf-8")
                partial.replace(self.folder / ACCEPTED)
            say(text)

        return noted

    # ---- versions

    def follow(
        self,
        model: Any,
        write_adapter: Callable[[Path], None],
        version: int,
        *,
        lead: bool = True,
        wait: Callable[[], None] = lambda: None,
        share: Callable[[Any], Any] = lambda value: value,
    ) -> None:
        """Sample from these weights from now on. Called by every process; lead: the one that updates the servers.

        write_adapter: writes the adapter into a folder. wait: a barrier over all processes. share: what the leading
        process gives it, in all of them. ConfigError where no server takes the first adapter, NoServerError where none
        is left.
        """
        fresh = self.folder / f"adapter-{version}.new"
        write_adapter(fresh)
        wait()  # collective: read when all have written it
        own = None if self._loaded is None or not self._probes else own_scores(model, self._loaded, self._probes)
        found: tuple[str, list[str], CounterpointError | None] = ("", [], None)
        if lead:
            try:
                name = self._taken(fresh, version)
                self._publish(version, own)
                found = name, [member.server.url for member in self.pool.members], None
            except CounterpointError as error:
                found = "", [], error
        name, urls, problem = share(found)
        if problem is not None:
            raise problem
        if not lead:
            self._versions[version], self._newest = _Version(name, self._place(version)), version
            self.pool.only = set(urls)
            self.pool.wake()

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        """See `Engine`; with the newest version, and every sample has its log-probabilities."""
        assert self._newest is not None, "follow comes first"
        return self.at(self._newest).sample(prompts, max_new_tokens, temperature, seed, stop_ids)

    def at(self, version: int | None) -> PinnedEngine:
        """Samples with that version, which is one of the last `keep`; None without an adapter, from the base."""
        return PinnedEngine(self.pool, None if version is None else self.version_name(version))

    def version_name(self, version: int) -> str:
        """What the version is called on the servers."""
        return self._versions[version].name

    def adapter_folder(self, version: int) -> Path:
        """Where the files of the version lie."""
        return self._versions[version].folder

    def adopt(self, version: int, folder: Path) -> None:
        """Take a version back that a checkpoint has kept; servers get it with the next one, or when they join."""
        fresh = self.folder / f"adapter-{version}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in FILES:
            try:
                os.link(folder / name, fresh / name)
            except OSError:
                shutil.copyfile(folder / name, fresh / name)
        self._taken(fresh, version)

    def close(self) -> None:
        self.pool.close()
        if self._files is not None:
            self._files.close()

    def _place(self, version: int) -> Path:
        return (self.folder / f"adapter-{version}").absolute()

    def _taken(self, fresh: Path, version: int) -> str:
        """The version in `fresh` is moved to its place and has its name."""
        target = self._place(version)
        try:
            name = f"counterpoint-{self.run}-{version}-{digest_of(fresh)}"
        except OSError as error:
            raise RunError(f"{fresh}: no adapter was written there ({error.strerror}: {error.filename})") from None
        with self.pool.held():
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
            self._versions[version] = _Version(name, target)
        return name

    def _publish(self, version: int, own: OwnScores | None) -> None:
        if self.settings.adapters == "http" and self._files is None:
            self._files = AdapterFiles(self._served, token(), self.settings.adapters_port)
            self._tell(f"adapters are served on port {self._files.port}")
        with self.pool.held():
            self._newest, self._own = version, own
            members = self.pool.members
        failed: list[CounterpointError] = []

        def bring(member: Member) -> None:
            try:
                self._bring(member)
            except CounterpointError as error:
                failed.append(error)
                self.pool.take_out(member, error)

        with ThreadPoolExecutor(max(1, len(members))) as threads:
            list(threads.map(bring, members))
        if len(failed) == len(members) and failed and not self._published:
            raise (
                failed[0] if isinstance(failed[0], ConfigError) else ConfigError(f"rollout.engine: server: {failed[0]}")
            )
        self.pool.wait_for_one()
        self._published = True
        self._drop_old()

    def _bring(self, member: Member) -> None:
        """A server is given what it lacks, and has to show that it samples with it. RunError else."""
        with self.pool.held():
            if self._newest is None:
                return
            newest, own = self._kept()[self._newest].name, self._own
            names = {each.name: each.folder for each in self._kept().values()}
        for name, folder in names.items():
            if name not in member.registered:
                self._register(member, name, folder)
        self._unload(member, member.given - set(names))  # of a version that came out while this server was away
        if own is None or member.proven == newest:
            member.proven = newest
            return
        if member.base_scores is None:
            member.base_scores = self._scores(member, member.model, own)
        if why := why_refused(own, self._scores(member, newest, own), member.base_scores):
            for name in names:  # so that nobody samples with it there
                with suppress(RunError):
                    member.server.unload_adapter(name)
            member.registered = set()
            raise RunError(f"{member.name}: {why}")
        member.proven = newest

    def _unload(self, member: Member, names: set[str]) -> None:
        for name in names:
            with suppress(RunError):
                member.server.unload_adapter(name)
        member.registered -= names
        member.given -= names

    def _register(self, member: Member, name: str, folder: Path) -> None:
        fix = _FOLDER_FIX
        member.given.add(name)
        try:
            if self.settings.adapters == "folder":
                member.server.load_adapter(name, folder)
            else:
                fix = _HTTP_FIX % (self._files.port if self._files else self.settings.adapters_port)
                member.server.completed(completion_body(name, [STOP_IDS[0]], 1, 0.0, 0, STOP_IDS))
        except RunError as error:
            if isinstance(error, ServerFailedError) and error.status is None:
                raise  # it is not there: how it was started is not to blame
            raise RunError(f"it does not load the adapter ({error}): {fix}") from None
        member.registered.add(name)

    def _scores(self, member: Member, model: str, own: OwnScores) -> list[list[float | None]]:
        return [member.server.scores(model, ids)[1:] for ids in own.probes]

    def _is_ready(self, member: Member) -> bool:
        if self._newest is None:
            return True
        kept = self._kept()
        return (
            all(each.name in member.registered for each in kept.values()) and member.proven == kept[self._newest].name
        )

    def _kept(self) -> dict[int, _Version]:
        return {version: self._versions[version] for version in sorted(self._versions)[-self.keep :]}

    def _served(self) -> dict[str, Path]:
        with self.pool.held():
            return {each.name: each.folder for each in self._versions.values()}

    def _drop_old(self) -> None:
        """Older versions are unloaded, and their files go one version later: a server may have to read them again."""
        with self.pool.held():
            kept = {each.name for each in self._kept().values()}
            gone = sorted(self._versions)[: -self.keep - 1]
            dropped = [self._versions.pop(version) for version in gone]
            members = self.pool.members
        for member in members:
            self._unload(member, member.given - kept)
        for each in dropped:
            shutil.rmtree(each.folder, ignore_errors=True)
        known = {each.folder.name for each in self._versions.values()}
        for path in self.folder.glob("adapter-*"):  # of a run that was killed
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
