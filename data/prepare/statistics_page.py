"""The statistics of prepared data as one self-contained HTML page, from `statistics_page.html` next to this file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoint.data.counts.counter import RowCounter
from counterpoint.data.counts.row_statistics import SAMPLED_EVERY, SAMPLED_WHOLE
from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.pages.templates import render_page
from counterpoint.data.prepared.cache import Fingerprint

_MANY = 40
_WIDTH, _LEFT, _BASE, _TALLEST = 900, 60, 180, 165
_LABELS = 12


@dataclass(frozen=True, slots=True)
class _Bar:
    """A bin of the histogram of lengths, in units of the drawing; `label` is written below it where there is room."""

    x: float
    width: float
    height: float
    first: int
    last: int
    examples: int
    label: bool


def statistics_page(
    report: RowCounter, statistics: Mapping[str, Any], fingerprint: Fingerprint, sources: Sequence[str]
) -> str:
    """The page for `report` and `RowStatistics.as_dict`. Rows, channels, tools, scripts, and what was left out."""
    characters = statistics["characters"]
    return render_page(
        "data/prepare/statistics_page.html",
        title="Prepared data: statistics",
        sources=", ".join(sources),
        report=report,
        statistics=statistics,
        fingerprint=fingerprint,
        share=_share,
        percent=_percent,
        many=_MANY,
        drawn={"width": _WIDTH, "left": _LEFT, "base": _BASE},
        bars=_bars(statistics["lengths"]["histogram"]),
        channels=CHANNEL_NAMES,
        tools=_tools(statistics["tools_called"], statistics["tools_declared"]),
        characters_total=sum(kind["characters"] for kind in characters),
        highest=max((kind["tokens_per_character"] for kind in characters), default=1),
        sampled={"whole": SAMPLED_WHOLE, "every": SAMPLED_EVERY},
        warnings=_warnings(report, statistics),
    )


def _bars(bins: Sequence[Mapping[str, int]]) -> list[_Bar]:
    top = max((b["examples"] for b in bins), default=1)
    step = (_WIDTH - _LEFT) / max(1, len(bins))
    every = 1 + len(bins) // _LABELS
    return [
        _Bar(
            x=_LEFT + n * step,
            width=step - 2,
            height=_TALLEST * b["examples"] / top,
            first=b["from"],
            last=b["to"],
            examples=b["examples"],
            label=n % every == 0,
        )
        for n, b in enumerate(bins)
    ]


def _tools(called: Mapping[str, int], declared: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """(name, rows that declare it, rows that call it), those that are called most first."""
    counts = [(name, declared.get(name, 0), called.get(name, 0)) for name in called.keys() | declared.keys()]
    return sorted(counts, key=lambda tool: (-tool[2], -tool[1], tool[0]))


def _warnings(report: RowCounter, statistics: Mapping[str, Any]) -> list[tuple[int, str]]:
    facts = [
        (report.too_long, "examples longer than data.max_tokens, left out; none was cut"),
        (report.prompts, "rows without an assistant turn to train"),
        (statistics["duplicates"], "rows that give the same tokens as an earlier one"),
        (report.without_thinking, "assistant turns without thinking: see data.missing_thinking"),
    ]
    return [fact for fact in facts if fact[0]]


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _percent(part: float, whole: float) -> str:
    percent = 100 * _share(part, whole)
    return f"{percent:.1f}%" if percent >= 0.1 or not percent else "under 0.1%"
