"""Figures of the gpt-oss model card, as reference bands for measured accuracies.

Source: gpt-oss model card (arXiv 2508.10925), table 3, accuracy in per cent at low, medium, high effort. Others
measured the 20b without tools on GPQA Diamond and AIME 2025 and came up to 7.5 points away; a band reaches from one
figure to the other, and at least TOLERANCE to either side of the card's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from counterpoint.data.conversation import EFFORTS

Size = Literal["20b", "120b"]
TOLERANCE = 0.02

_CARD: dict[str, dict[Size, tuple[float, float, float]]] = {
    "aime_2025": {"120b": (50.4, 80.0, 92.5), "20b": (37.1, 72.1, 91.7)},
    "aime_2025_tools": {"120b": (72.9, 91.6, 97.9), "20b": (57.5, 90.4, 98.7)},
    "gpqa_diamond": {"120b": (67.1, 73.1, 80.1), "20b": (56.8, 66.0, 71.5)},
    "gpqa_diamond_tools": {"120b": (68.1, 73.5, 80.9), "20b": (58.0, 67.1, 74.2)},
    "mmlu": {"120b": (85.9, 88.0, 90.0), "20b": (80.4, 84.0, 85.3)},
    "tau_bench_retail": {"120b": (49.4, 62.0, 67.8), "20b": (35.0, 47.3, 54.8)},
    "swe_bench_verified": {"120b": (47.9, 52.6, 62.4), "20b": (37.4, 53.2, 60.7)},
}
_OTHERS: dict[str, dict[Size, tuple[float, float, float]]] = {
    "aime_2025": {"20b": (34.2, 73.7, 84.2)},
    "gpqa_diamond": {"20b": (58.0, 67.0, 73.5)},
}
TASKS = tuple(_CARD)


@dataclass(frozen=True, slots=True)
class CardBand:
    """One effort: the card's accuracy in [0, 1], and the band around it."""

    effort: str
    value: float
    low: float
    high: float


def card_bands(task: str, size: Size) -> tuple[CardBand, ...]:
    """Bands of a task that is named in TASKS (`aime_2025`; `-` and case do not matter); empty for other tasks."""
    name = re.sub(r"[-\s.]", "_", task.strip().casefold())
    if name not in _CARD:
        return ()
    card, others = _CARD[name][size], _OTHERS.get(name, {}).get(size)
    bands = []
    for number, effort in enumerate(EFFORTS):
        value = card[number] / 100
        ends = [value, others[number] / 100] if others else [value]
        low, high = min(*ends, value - TOLERANCE), max(*ends, value + TOLERANCE)
        bands.append(CardBand(effort, value, max(0.0, low), min(1.0, high)))
    return tuple(bands)


def size_of(model: str) -> Size:
    """Which column of the card: that of a name with `120b` in it, else that of the 20b."""
    return "120b" if "120b" in model.casefold() else "20b"
