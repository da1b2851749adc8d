"""Types of the commands' arguments, for argparse: what is not one is reported in a line."""

from __future__ import annotations

import argparse
import math
import re


def count(text: str) -> int:
    """A whole number from 1."""
    if not re.fullmatch(r"[1-9]\d*", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"`{text}`: write a whole number from 1")
    return int(text)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"`{text}`: write a number above 0")
    return value
