"""Bridge to verifiers: environments of 0.1 (`load_environment`), and tasksets with their environments from 0.2 on.

id: of 0.1 the environment's module; else the taskset. settings: what `load_environment` is given; else parts of the
environment's config (`id` of an environment to pair the taskset with, `taskset`, agents by name). Agents run in the
`null` harness in this process's machine unless they name a harness and a runtime; a harness that lets the model run
commands needs a container.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lines import Job, main

sys.path.pop(0)


class Environments:
    """An environment of verifiers 0.1."""

    def __init__(self, env):
        self.env = env
        rows = env.get_dataset() if env.dataset is not None or getattr(env, "build_dataset", None) else None
        self.rows = rows if rows is not None else env.get_eval_dataset()

    def tasks(self, most):
        return [{"task": n} for n in range(min(most, len(self.rows)))]

    async def play(self, job: Job):
        from verifiers.types import ClientConfig

        row = dict(self.rows[int(job.task["task"])])
        asked = {key: row[key] for key in ("prompt", "example_id", "task", "answer", "info") if key in row}
        client = ClientConfig(api_base_url=job.base_url, api_key_var="OPENAI_API_KEY", timeout=3600.0, max_retries=0)
        out = await self.env.run_rollout(asked, client, job.model, {})
        if out.get("error"):
            raise RuntimeError(str(out["error"]))
        return out["reward"], dict(out.get("metrics") or {})


class Tasksets:
    """A taskset of verifiers 0.2 and later in an environment, alone or paired."""

    def __init__(self, config):
        from verifiers.v1.utils.loaders import load_environment

        self.env = load_environment(config)
        self.listed = {}

    async def served(self):
        from contextlib import AsyncExitStack

        self.stack = AsyncExitStack()
        await self.stack.enter_async_context(self.env.serving())
        self.source = iter(self.env.taskset)
        return self

    def task(self, number):
        """Tasks may be made without end, so they are kept as they come."""
        while number not in self.listed:
            self.listed[len(self.listed)] = next(self.source)
        return self.listed[number]

    def tasks(self, most):
        found = []
        try:
            for number in range(most):
                self.task(number)
                found.append({"task": number})
        except StopIteration:
            pass
        return found

    async def play(self, job: Job):
        from verifiers.v1.clients import EvalClientConfig, ModelContext

        try:
            task = self.task(int(job.task["task"]))
        except StopIteration:
            raise IndexError(f"the taskset has no task {job.task['task']}") from None
        client = EvalClientConfig(base_url=job.base_url, api_key_var="OPENAI_API_KEY")
        episode = await self.env.run_episode(task, ModelContext(model=job.model, client=client))
        traces = [trace for trace in episode.traces if trace.agent.trainable]
        if not episode.ok or not traces:
            errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
            raise RuntimeError("; ".join(f"{e.type}: {e.message}" for e in errors) or "no agent of it was to learn")
        metrics = {name: value for trace in traces for name, value in trace.metrics.items() if value is not None}
        parts = {name: r.score for trace in traces for name, r in trace.rewards.items() if r is not None}
        # The client names the trace in every request: agents that are not to learn ask the same endpoint.
        return sum(trace.reward for trace in traces) / len(traces), {**metrics, **parts}, [trace.id for trace in traces]


def load(id, settings):
    import verifiers

    if hasattr(verifiers, "load_environment"):
        return Environments(verifiers.load_environment(id, **settings))
    return Tasksets(_config(id, settings)).served()


def _config(id, settings):
    from verifiers.v1.configs.agent import AgentConfig, agent_config_fields
    from verifiers.v1.configs.env import EnvConfig
    from verifiers.v1.env import Env
    from verifiers.v1.utils.generic import concrete_type
    from verifiers.v1.utils.loaders import environment_class, harness_class

    kind = concrete_type(environment_class(id, settings.get("id", "")), EnvConfig, origin=Env) or EnvConfig
    agents = [name for name, field in kind.model_fields.items() if isinstance(field.default, AgentConfig)]
    given = {**settings, "taskset": {"id": id, **settings.get("taskset", {})}}
    for name in agents:
        given[name] = {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}, **given.get(name, {})}
    config = kind.model_validate(given)
    for name, agent in agent_config_fields(config).items():
        if agent.runtime.type == "subprocess" and harness_class(agent.harness.id).EXECUTES_CODE:
            raise ValueError(
                f"agent `{name}`: the harness `{agent.harness.id}` runs the model's commands, and runtime `subprocess` "
                f"runs them on this machine: set settings.{name}.runtime.type to docker or podman"
            )
    return config


if __name__ == "__main__":
    main(load, "verifiers")
