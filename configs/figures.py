"""Which figures a run measures, of those that `train.keep_best` and `train.stop_when` compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from counterpoint.configs.train_section import TrainSettings

SAMPLED = ("channel_correct", "right_answers", "right_calls")
"""Of the evaluation's samples."""


def held_out_figures(sets: Iterable[str], *kinds: str) -> list[str]:
    """`valid_loss` of all held-out data and `valid_NAME_loss` of each set with a name, for each of `kinds`."""
    names = list(sets)
    prefixes = ["", *(f"{name}_" for name in names if name)] if names else []
    return [f"valid_{prefix}{kind}" for prefix in prefixes for kind in kinds]


def reward_figures(tasks: Iterable[str | None], rewards: Iterable[str | None]) -> list[str]:
    """Of held-out prompts: all, and each task's and each reward's that has a name."""
    of_tasks = [f"valid_{name}_reward" for name in tasks if name]
    return ["valid_reward", "valid_channel_correct", *of_tasks, *(f"valid_rewards/{name}" for name in rewards if name)]


def check_figures(train: TrainSettings, every: int | None, held_out: Sequence[str]) -> None:
    """ValueError for a figure that the run never measures, which would keep or stop nothing.

    every: steps between evaluations; held_out: what is measured of held-out data.
    """
    stop = train.stop_when
    for key, figure in (("keep_best", train.keep_best), ("stop_when.metric", stop and stop.metric)):
        if figure is None:
            continue
        if figure not in (*SAMPLED, *held_out):
            without = "" if held_out else " (and without `data.valid` nothing held out)"
            measured = ", ".join([*SAMPLED, *held_out])
            raise ValueError(f"`train.{key}` is `{figure}`, and this run measures {measured}{without}")
        if every is None:
            raise ValueError(f"`train.{key}` compares steps, and `eval.every` is null: set it")
