"""The command line, killed by SIGKILL the n-th time that it comes to a place: KILLS names them (`publish:3,update:2`), and
KILLED a folder in which each that has happened is noted, so that it happens once. Its processes import this as well."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

PLACES = {
    "sampling": "counterpoint.train.sampling.pool:ServerPool.sample",
    "publish": "counterpoint.train.sampling.following_pool:FollowingPool.follow",
    "update": "counterpoint.train.loop.grpo_trainer:RewardTrainer._get_grad_norm",
    "journal": "counterpoint.train.loop.played:os.replace",
    "checkpoint": "counterpoint.train.checkpoints.save:finish_folder",
    "saved": "counterpoint.train.loop.group_pipeline:Pipeline.saved",
}
_calls: Counter[str] = Counter()


def arm(place: str, at: int) -> None:
    import importlib

    module, _, path = PLACES[place].partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    before, marker = getattr(owner, name), Path(os.environ["KILLED"]) / place

    def called(*args: Any, **more: Any) -> Any:
        counts = place != "journal" or str(args[1]).endswith(".npz")
        _calls[place] += counts
        if counts and _calls[place] == at and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*args, **more)

    setattr(owner, name, called)


for each in filter(None, os.environ.get("KILLS", "").split(",")):
    arm(each.partition(":")[0], int(each.partition(":")[2]))


def command(arguments: list[str]) -> int:
    from counterpoint.recipes.cli import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
