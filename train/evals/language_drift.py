"""Does the model think and answer in another language than its base did, on the same prompts?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from counterpoint.data.conversation import EFFORTS
from counterpoint.train.evals.channels import Rate
from counterpoint.train.scoring.languages import LANGUAGES

Row = Mapping[str, Any]
Channel = Literal["analysis", "final"]
CHANNELS: tuple[Channel, ...] = ("analysis", "final")


@dataclass(frozen=True, slots=True)
class Drift:
    """A language that samples at an effort are in on a channel clearly more often than the base's were."""

    channel: Channel
    effort: str
    language: str
    base: Rate
    tuned: Rate

    @property
    def sentence(self) -> str:
        name = LANGUAGES.get(self.language, self.language)
        return (
            f"Drifted into another language: at {self.effort} the {self.channel} is {name} in {self.tuned.share:.2f} "
            f"of {self.tuned.n} samples (base {self.base.share:.2f})."
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "channel": self.channel,
            "effort": self.effort,
            "language": self.language,
            "base": self.base.as_dict(),
            "tuned": self.tuned.as_dict(),
            "sentence": self.sentence,
        }


def languages_by_effort(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, Rate]]]:
    """For each channel and effort the languages of the samples whose language can be told, the most frequent first."""
    by: dict[tuple[Channel, str], list[Row]] = defaultdict(list)
    for row in rows:
        for channel in CHANNELS:
            if (row.get("languages") or {}).get(channel):
                by[channel, row["effort"]].append(row)
    out: dict[str, dict[str, dict[str, Rate]]] = {channel: {} for channel in CHANNELS}
    for channel in CHANNELS:
        for effort in EFFORTS:
            found = by.get((channel, effort), [])
            if found:
                counts = Counter(row["languages"][channel] for row in found)
                out[channel][effort] = {code: _rate(found, channel, code) for code, _ in counts.most_common()}
    return out


def drifts(base: Sequence[Row], tuned: Sequence[Row]) -> list[Drift]:
    """On the prompts of both sides: the languages whose interval is entirely above the base's."""
    both = {_item(row) for row in base} & {_item(row) for row in tuned}
    before = languages_by_effort(row for row in base if _item(row) in both)
    after = languages_by_effort(row for row in tuned if _item(row) in both)
    out: list[Drift] = []
    for channel in CHANNELS:
        for effort, found in after[channel].items():
            known = before[channel].get(effort)
            if not known:
                continue
            prompts = len({row.get("cluster") or row["id"] for row in base if _item(row) in both})
            for code, rate in found.items():
                was = known.get(code, Rate(0, prompts))
                if rate.as_dict()["low"] > was.as_dict()["high"]:
                    out.append(Drift(channel, effort, code, was, rate))
    return out


def _rate(rows: Sequence[Row], channel: Channel, code: str) -> Rate:
    holds = [row["languages"][channel] == code for row in rows]
    return Rate.of(holds, [(row["task"], row.get("cluster") or row["id"]) for row in rows])


def _item(row: Row) -> tuple[str, str, str]:
    return row["task"], row["id"], row["effort"]
