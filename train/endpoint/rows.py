"""What is learned from the recorded calls of a rollout: rows of token ids in which what was sampled is marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from counterpoint.train.sampling.expert_routes import ExpertRoutes, joined


class Recorded(Protocol):
    """A prompt, and what was sampled after it: ids, and the log-probability of each, None where none is known. routes:
    of both, as of `Sampled`."""

    @property
    def prompt_ids(self) -> list[int]: ...
    @property
    def ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> list[float | None] | None: ...
    @property
    def routes(self) -> ExpertRoutes | None: ...


@dataclass
class Row:
    """A prompt and its completion. mask: 1 for each id that was sampled, 0 for what lies between two samples.
    logprobs: of each id, 0 where nothing was sampled; None where a call has none. calls: the numbers of the calls that
    it holds; starts: where each begins in `completion_ids`."""

    prompt_ids: list[int]
    completion_ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float | None] | None = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    routes: ExpertRoutes | None = None

    def extended_by(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a prompt begins with all ids of this row."""
        begun, size = len(self.prompt_ids), len(self.prompt_ids) + len(self.completion_ids)
        return (
            size <= len(prompt_ids)
            and prompt_ids[begun:size] == self.completion_ids
            and prompt_ids[:begun] == self.prompt_ids
        )

    def add(self, number: int, call: Recorded) -> None:
        between = call.prompt_ids[len(self.prompt_ids) + len(self.completion_ids) :]
        self.completion_ids += [*between, *call.ids]
        self.mask += [0] * len(between) + [1] * len(call.ids)
        if self.logprobs is not None:
            self.logprobs = None if call.logprobs is None else [*self.logprobs, *([0.0] * len(between)), *call.logprobs]
        self.routes = joined(self.routes, call.routes)
        self.starts.append(len(self.completion_ids) - len(call.ids))
        self.calls.append(number)


def rows_of(calls: Sequence[Recorded]) -> list[Row]:
    """Rows in the order in which they begin. A call whose prompt begins with a row's ids extends that row (the longest
    one), and what lies between is masked; any other call opens a row."""
    rows: list[Row] = []
    for number, call in enumerate(calls):
        fitting = [row for row in rows if row.extended_by(call.prompt_ids)]
        row = max(fitting, key=lambda row: len(row.completion_ids) + len(row.prompt_ids), default=None)
        if row is None:
            rows.append(row := Row(list(call.prompt_ids)))
        row.add(number, call)
    for row in rows:
        sampled = [id_ for id_, mark in zip(row.completion_ids, row.mask, strict=True) if mark]
        assert sampled == [id_ for number in row.calls for id_ in calls[number].ids], "a sampled id was lost"
    return rows
