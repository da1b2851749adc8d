from __future__ import annotations

import argparse

import pytest

from counterpoint.recipes.commands.argument_types import count, positive


def test_counts_and_positive_numbers() -> None:
    assert (count("1"), count("40")) == (1, 40)
    assert (positive("0.5"), positive("1e3")) == (0.5, 1000.0)
    for text in ("0", "-3", "1.5", "x", "", "٣", "1 "):
        with pytest.raises(argparse.ArgumentTypeError, match="write a whole number from 1"):
            count(text)
    for text in ("0", "-1", "x", "nan", "inf"):
        with pytest.raises(argparse.ArgumentTypeError, match="write a number above 0"):
            positive(text)
