"""One line with the progress of a run: replaced in a terminal, printed at every log interval elsewhere."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

CHANNELS = ("analysis", "commentary", "final")


def progress_line(step: int, total: int, values: Mapping[str, Any], seconds_left: float | None) -> str:
    """`step 40/80  loss 1.234  analysis 1.1  commentary 0.9  final 1.3  812 tok/s  1:05 left`; with rewards, those
    first."""
    parts = [f"step {step}/{total}", *_rewards(values), f"loss {values['loss']:.4f}"]
    parts += [f"{name} {values[f'loss_{name}']:.3f}" for name in CHANNELS if f"loss_{name}" in values]
    if "tokens_per_second" in values:
        parts.append(f"{values['tokens_per_second']:,.0f} tok/s")
    if seconds_left is not None:
        parts.append(f"{clock(seconds_left)} left")
    return "  ".join(parts)


def _rewards(values: Mapping[str, Any]) -> list[str]:
    """`reward 1.23 (answer 0.61, channel 0.97)  solved 0.55  dead groups 0.12  thought 12/20/31 (low/medium/high)`, and
    what went wrong, where something did; nothing of a run without rewards."""
    if "reward" not in values:
        return []
    kinds = {
        name.removeprefix("rewards/").removesuffix("/mean"): value
        for name, value in values.items()
        if name.startswith("rewards/") and name.endswith("/mean")
    }
    parts = [f"reward {values['reward']:.3g} ({', '.join(f'{name} {value:.3g}' for name, value in kinds.items())})"]
    if "tools/solved" in values and "tools/calls" in values:
        parts.append(f"solved {values['tools/solved']:.2f}")
    if "frac_reward_zero_std" in values:
        parts.append(f"dead groups {values['frac_reward_zero_std']:.2f}")
    thoughts = {name.removeprefix("analysis_tokens/"): v for name, v in values.items() if name.startswith("analysis_")}
    if thoughts:
        parts.append(f"thought {'/'.join(f'{value:.0f}' for value in thoughts.values())} ({'/'.join(thoughts)})")
    for name, key in (("faults", "tools/faults"), ("invalid", "invalid")):
        if values.get(key):
            parts.append(f"{name} {values[key]:.2f}")
    return parts


def clock(seconds: float) -> str:
    """`0:07`, `12:30`, `3:05:00`."""
    whole = round(max(seconds, 0))
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Prints progress lines; `say` prints anything else without tearing them.

    A terminal or a pipe that is gone ends nothing: `lost` is then the reason, and no more is printed.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.lost: str | None = None
        self._width = 0

    def show(self, line: str) -> None:
        if self.live:
            # A line that wraps could not be replaced; blanks overwrite the rest of a longer one before.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._write(line + "\n")

    def say(self, text: str) -> None:
        self._write(("\n" if self._width else "") + text + "\n")
        self._width = 0

    def _write(self, text: str) -> None:
        if self.lost is not None:
            return
        try:
            self.out.write(text)
            self.out.flush()
        except OSError as error:
            self.lost = error.strerror or str(error)
            discard(self.out)


def discard(out: TextIO) -> None:
    """Send what goes to a stream that is gone, and what it still holds, nowhere: else the interpreter's end fails."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)
        out.flush()
