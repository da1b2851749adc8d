"""What has come of rollouts that were played together (a group, or all of a step), and the file that keeps it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from counterpoint.train.sampling.rollout import SampledRow

_PLAIN = ("truncated", "scores", "lengths", "kept", "any_ids", "failures", "causes", "spent", "stopped", "seconds")


@dataclass(frozen=True)
class Played:
    """Rollouts in their order.

    rows: of each those that are learned from, none of an invalid one. truncated: whether each ran out of tokens.
    scores: in the order of `Rollouts.names`, NaN where a reward does not apply. lengths: (prompt, completion, whether
    it ended by itself) of each. kept: each as it is written to `rollouts.jsonl`. any_ids: the first prompt. failures,
    causes: as of `Rewards`, of these rollouts alone. spent: tokens that each judge of the process has taken so far.
    stopped: why the run should end. seconds: from the first request to the last reward.
    """

    rows: list[tuple[SampledRow, ...]]
    truncated: list[bool]
    scores: list[list[float]]
    lengths: list[tuple[int, int, bool]]
    kept: list[dict[str, Any]]
    any_ids: list[int]
    failures: Mapping[str, int] = field(default_factory=dict)
    causes: Mapping[str, str] = field(default_factory=dict)
    spent: Mapping[str, int] = field(default_factory=dict)
    stopped: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class StepRollouts:
    """This process's rollouts of a step.

    rows: of each rollout those that are learned from, none of an invalid one. truncated: whether each ran out of
    tokens. scores: of the rollouts of all processes, in the order of `Rollouts.names`, NaN where a reward does not
    apply; `first` is the number of this process's first one. lengths: of all processes, (prompt, completion, whether it
    ended by itself) of each. any_ids: the first prompt.
    """

    rows: list[tuple[SampledRow, ...]]
    truncated: list[bool]
    scores: list[list[float]]
    first: int
    lengths: list[tuple[int, int, bool]]
    any_ids: list[int]


def write_played(path: Path, played: Played, facts: Mapping[str, Any]) -> None:
    """The file is whole or absent, whatever kills the process. facts: JSON, which `facts_of` reads alone."""
    rows = [row for each in played.rows for row in each]
    plain = {name: getattr(played, name) for name in _PLAIN}
    sizes = [
        [(len(row.prompt_ids), len(row.completion_ids), row.logprobs is not None) for row in each]
        for each in played.rows
    ]
    logprobs = [value for row in rows for value in row.logprobs or [None] * len(row.completion_ids)]
    routes = {f"routes{n}": row.routes for n, row in enumerate(rows) if row.routes is not None}
    data = io.BytesIO()
    np.savez(
        data,
        **routes,
        facts=_bytes(dict(facts)),
        played=_bytes({**plain, "sizes": sizes}),
        ids=np.array([id_ for row in rows for id_ in (*row.prompt_ids, *row.completion_ids)], dtype=np.int32),
        sampled=np.array([each for row in rows for each in row.env_mask], dtype=np.uint8),
        logprobs=np.array([np.nan if value is None else value for value in logprobs], dtype=np.float64),
    )
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        file.write(data.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def facts_of(path: Path) -> dict[str, Any] | None:
    """What `write_played` was told; None for a file that cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as found:
            return json.loads(found["facts"].tobytes())
    except Exception:  # whatever a damaged archive raises
        return None


def read_played(path: Path) -> Played:
    with np.load(path, allow_pickle=False) as found:
        plain = json.loads(found["played"].tobytes())
        ids, sampled, logprobs = found["ids"].tolist(), found["sampled"].tolist(), found["logprobs"].tolist()
        routes = {name: found[name] for name in found.files if name.startswith("routes")}
    rows, at, place, number = [], 0, 0, 0
    for sizes in plain.pop("sizes"):
        each = []
        for n_prompt, n_completion, told in sizes:
            middle, end, last = at + n_prompt, at + n_prompt + n_completion, place + n_completion
            values = [None if value != value else value for value in logprobs[place:last]] if told else None
            row = SampledRow(
                ids[at:middle], ids[middle:end], sampled[place:last], values, routes.get(f"routes{number}")
            )
            each.append(row)
            at, place, number = end, last, number + 1
        rows.append(tuple(each))
    plain["lengths"] = [tuple(length) for length in plain["lengths"]]
    assert set(plain) == {each.name for each in fields(Played)} - {"rows"}
    return Played(rows, **plain)


def joined(parts: Sequence[Played]) -> Played:
    """Several, one after the other. Causes are the first of each kind, `spent` the most that any of them knows."""
    spent = [name for part in parts for name in part.spent]
    return Played(
        [row for part in parts for row in part.rows],
        [each for part in parts for each in part.truncated],
        [each for part in parts for each in part.scores],
        [each for part in parts for each in part.lengths],
        [each for part in parts for each in part.kept],
        parts[0].any_ids,
        {name: sum(part.failures.get(name, 0) for part in parts) for part in parts for name in part.failures},
        {name: cause for part in reversed(parts) for name, cause in part.causes.items()},
        {name: max(part.spent.get(name, 0) for part in parts) for name in spent},
        next((part.stopped for part in parts if part.stopped is not None), None),
        max(part.seconds for part in parts),
    )


def _bytes(value: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"), dtype=np.uint8)
