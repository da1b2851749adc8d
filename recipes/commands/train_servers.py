"""vLLM servers on the GPUs that a run leaves free: started before it, started again when they die, ended with it.

GPUs 0 to p-1    the training processes
the next s x g   s servers of g GPUs each, on ports port, port + 1, ...
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.eval_section import ReadyTask
from counterpoint.configs.schema import GrpoRun

STARTED = "COUNTERPOINT_SERVERS_STARTED"
"""In the environment of the training processes: their servers run already."""
POLL_SECONDS, TELL_SECONDS, END_SECONDS = 1.0, 60.0, 30.0
MOST_DEATHS = 3
"""A server that dies as often without ever answering in between is left alone."""
VISIBLE = "CUDA_VISIBLE_DEVICES"


def needs_servers(settings: object, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process has to start them."""
    return isinstance(settings, GrpoRun) and settings.launch.serve.servers > 0 and STARTED not in environment


def devices_of(
    settings: GrpoRun, environment: Mapping[str, str], available: Callable[[], int]
) -> tuple[list[str], list[list[str]]]:
    """(GPUs of the training processes, GPUs of each server), as CUDA_VISIBLE_DEVICES names them. ConfigError where
    there are too few."""
    serve, processes = settings.launch.serve, settings.launch.processes
    named = environment.get(VISIBLE)
    devices = (
        [each.strip() for each in named.split(",") if each.strip()] if named else list(map(str, range(available())))
    )
    needed = processes + serve.servers * serve.gpus
    if len(devices) < needed:
        raise ConfigError(
            f"launch: {processes} processes and {serve.servers} servers of {serve.gpus} GPUs need {needed} GPUs, and "
            f"this machine has {len(devices)}: lower launch.processes or launch.serve"
        )
    at = [processes + number * serve.gpus for number in range(serve.servers)]
    return devices[:processes], [devices[first : first + serve.gpus] for first in at]


def server_command(settings: GrpoRun, program: str, port: int) -> list[str]:
    """`vllm serve` with what learning from rewards needs: adapters that come later, the probabilities that tokens were
    drawn with, no sampling settings of the model's own, and room for the longest prompt and completion."""
    from counterpoint.train.sampling.vllm_engine import vllm_rank

    serve, lora, rollout = settings.launch.serve, settings.lora, settings.rollout
    rank = max(lora.rank, (lora.experts and lora.expert_rank) or 0)
    command = [program, "serve", settings.model.name, "--host", "127.0.0.1", "--port", str(port)]
    if settings.model.revision is not None:
        command += ["--revision", settings.model.revision]
    command += ["--enable-lora", "--max-lora-rank", str(vllm_rank(rank)), "--max-loras", str(rollout.staleness + 2)]
    command += ["--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    command += ["--tensor-parallel-size", str(serve.gpus)]
    command += ["--max-model-len", str(settings.data.max_tokens + _longest(settings))]
    if rollout.routes == "replay":
        command += ["--enable-return-routed-experts"]
    return [*command, *serve.arguments]


def _longest(settings: GrpoRun) -> int:
    """Most tokens after a prompt, of rollouts and of evaluations."""
    from counterpoint.train.scoring.ready_tasks import settled

    hook = settings.eval
    tasks = [settled(task) if isinstance(task, ReadyTask) else task for task in hook.tasks]
    own = [getattr(task, "completion_tokens", None) or 0 for task in tasks]
    actions = [task.max_new_tokens or 0 for task in tasks]
    tools = hook.completion_tokens if hook.tools is not None and hook.tools.any else 0
    return max(settings.rollout.completion_tokens, hook.max_new_tokens, tools, *own, *actions)


@dataclass
class _Server:
    command: list[str]
    environment: dict[str, str]
    url: str
    log: Path
    process: subprocess.Popen[bytes] | None = None
    answered: bool = False
    deaths: int = 0

    def start(self) -> None:
        with self.log.open("ab") as log:
            # A group of its own: a Ctrl-C of the terminal reaches the run, which ends this one after its checkpoint.
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_end_with_parent,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def answers(self) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError, urllib.error.URLError), opener.open(f"{self.url}/models", timeout=5):
            self.answered, self.deaths = True, 0
            return True
        return False

    def end(self, signum: int) -> None:
        if self.alive and self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signum)

    def last_line(self) -> str:
        lines = (
            self.log.read_bytes()[-4000:].decode("utf-8", "replace").strip().splitlines() if self.log.exists() else []
        )
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "it wrote nothing")


@dataclass
class TrainServers:
    """The servers of a run and the process that trains; `run` returns its exit code.

    say: told of what happens, a line each.
    """

    servers: list[_Server]
    say: Callable[[str], None] = field(default=lambda line: print(line, file=sys.stderr, flush=True))
    signalled: int | None = None
    _trainer: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str], signals: Sequence[str]) -> int:
        """Start the servers, then `command` once all answer. RunError for a server that ends before."""
        for name in signals:
            signal.signal(getattr(signal, name), self._forward)
        try:
            for server in self.servers:
                server.start()
            if not self._all_answer():
                return 128 + (self.signalled or 0)
            self._trainer = subprocess.Popen(
                list(command), env={**environment, STARTED: "1"}, start_new_session=True,
                preexec_fn=partial(_end_with_parent, signal.SIGTERM),
            )  # fmt: skip
            if self.signalled is not None:  # it came between the two
                self._forward(self.signalled, None)
            while (code := self._trainer.poll()) is None:
                self._start_again()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._trainer.wait(POLL_SECONDS)
            return code if code >= 0 else 128 - code
        finally:
            self._end()

    def _all_answer(self) -> bool:
        began = told = time.monotonic()
        waiting = list(self.servers)
        self.say(f"servers     {len(waiting)} of vLLM are starting, their logs in {self.servers[0].log.parent}")
        while waiting:
            if self.signalled is not None:
                return False
            for server in waiting:
                if not server.alive:
                    raise RunError(
                        f"launch.serve: a server ended before it answered ({server.log}): {server.last_line()}"
                    )
            waiting = [server for server in waiting if not server.answers()]
            if waiting and time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                self.say(f"servers     {len(waiting)} do not answer yet after {told - began:.0f} s")
            if waiting:
                time.sleep(POLL_SECONDS)
        self.say(f"servers     all answer after {time.monotonic() - began:.0f} s")
        return True

    def _start_again(self) -> None:
        for server in self.servers:
            if server.alive:
                if not server.answered or server.deaths:
                    server.answers()
                continue
            if server.deaths >= MOST_DEATHS:
                continue
            server.deaths += 1
            then = "it is started again" if server.deaths < MOST_DEATHS else "it is left alone"
            self.say(f"warning: the server at {server.url} died ({server.last_line()}): {then}")
            if server.deaths < MOST_DEATHS:
                server.start()

    def _forward(self, signum: int, frame: FrameType | None) -> None:
        self.signalled = signum
        if self._trainer is not None and self._trainer.poll() is None:
            self._trainer.send_signal(signum)

    def _end(self) -> None:
        for server in self.servers:
            server.end(signal.SIGTERM)
        until = time.monotonic() + END_SECONDS
        while any(server.alive for server in self.servers) and time.monotonic() < until:
            time.sleep(0.1)
        for server in self.servers:
            server.end(signal.SIGKILL)


def train_with_servers(
    settings: GrpoRun, arguments: Sequence[str], environment: Mapping[str, str], signals: Sequence[str]
) -> int:
    """Start the servers of `launch.serve`, then `counterpoint` with `arguments` on the other GPUs; its exit code.
    ConfigError for a program that is not there and for too few GPUs."""
    serve = settings.launch.serve
    program = shutil.which(serve.command)
    if program is None:
        raise ConfigError(
            f"launch.serve.command: there is no program `{serve.command}`: install vLLM (extra `vllm`, or an "
            "environment of its own, and name its program by path)"
        )
    own, theirs = devices_of(settings, environment, _gpus)
    logs = Path(settings.output) / "servers"
    logs.mkdir(parents=True, exist_ok=True)
    servers = [
        _Server(
            server_command(settings, program, serve.port + number),
            {**environment, VISIBLE: ",".join(devices), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
            url,
            logs / f"{settings.name or 'grpo'}-{number}.log",
        )
        for number, (devices, url) in enumerate(zip(theirs, serve.urls, strict=True))
    ]
    for server in servers:
        server.log.unlink(missing_ok=True)
    command = [sys.executable, "-m", "counterpoint.recipes.cli", *arguments]
    return TrainServers(servers).run(command, {**environment, VISIBLE: ",".join(own)}, signals)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _end_with_parent(signum: int = signal.SIGKILL) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signum)  # PR_SET_PDEATHSIG
