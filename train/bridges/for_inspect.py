"""Bridge to inspect_ai: one sample of a task a rollout, each in a process that is forked from one with the package.

id: the task (`package/task` or `file.py@task`). settings: its arguments. Of its scores the first is the reward; the
roles `user` and `grader` are played by the model of `user`.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lines import Job, main

sys.path.pop(0)
# inspect_ai runs one evaluation at a time in a process, and takes seconds to import.
PROCESSES = multiprocessing.get_context("forkserver")


class Task:
    def __init__(self, id, settings):
        self.id, self.settings = id, settings
        PROCESSES.set_forkserver_preload(["inspect_ai", "openai", "inspect_ai.model._providers.openai_compatible"])
        self.samples = self._apart(_listed)

    def tasks(self, most):
        return [{"task": each} for each in self.samples[:most]]

    def play(self, job: Job):
        return self._apart(_played, vars(job) | {"user": vars(job.user)})

    def _apart(self, function, *args):
        here, there = PROCESSES.Pipe(duplex=False)
        process = PROCESSES.Process(target=_child, args=(there, function, self.id, self.settings, *args), daemon=True)
        process.start()
        there.close()
        try:
            error, value = here.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"the process of the sample died (exit code {process.exitcode})") from None
        finally:
            here.close()
        if error is not None:
            raise RuntimeError(error)
        return value


def _child(there, function, *args):
    try:
        there.send((None, function(*args)))
    except BaseException as error:
        there.send((f"{type(error).__name__}: {error}", None))


def _listed(id, settings):
    from inspect_ai import eval

    with tempfile.TemporaryDirectory() as folder:
        log = eval(id, model="mockllm/model", task_args=settings, run_samples=False, log_dir=folder, display="none")[0]
        if log.status == "error" or log.eval.dataset.sample_ids is None:
            raise RuntimeError(str(log.error.message if log.error else "the task names no samples"))
        return list(log.eval.dataset.sample_ids)


def _played(id, settings, job):
    from inspect_ai import eval
    from inspect_ai.model import GenerateConfig, get_model

    def model(place):
        return get_model(f"openai-api/counterpoint/{place['model']}", config=GenerateConfig(max_retries=0),
                         base_url=place["base_url"], api_key=place["api_key"] or "none", memoize=False)  # fmt: skip

    roles = {"user": model(job["user"]), "grader": model(job["user"])}
    with tempfile.TemporaryDirectory() as folder:
        log = eval(
            id, model=model(job), model_roles=roles, task_args=settings, sample_id=[job["task"]["task"]], epochs=1,
            log_dir=folder, display="none", fail_on_error=True, log_samples=True,
        )[0]  # fmt: skip
        return _scores(log)  # which reads its file


def _scores(log):
    """The first score, and all of them by name."""
    from inspect_ai.scorer import value_to_float

    sample = log.samples[0] if log.samples else None
    if sample is None or sample.error is not None or log.status == "error":
        error = sample.error if sample is not None and sample.error is not None else log.error
        raise RuntimeError(error.message if error is not None else "the task has no such sample")
    number, found = value_to_float(), {}
    for name, score in (sample.scores or {}).items():
        values = score.value if isinstance(score.value, dict) else {"": score.value}
        found |= {f"{name}/{key}" if key else name: number(value) for key, value in values.items()}
    return (next(iter(found.values())) if found else None), found


def load(id, settings):
    return Task(id, settings)


if __name__ == "__main__":
    main(load, "inspect_ai")
