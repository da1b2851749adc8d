"""The tables of what a run folder holds; tests/conftest.py holds every folder that a test makes to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from counterpoint.train.run.contents import EVALUATION_METRICS, FILES, METRICS, meaning_of
from counterpoint.train.run.folder import RunFolder


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("loss", "loss"),
        ("loss_final", "loss_<channel>"),
        ("valid_easy_loss", "valid_<set>_loss"),
        ("valid_loss_final", "valid_loss_<channel>"),
        ("valid_easy_loss_final", "valid_<set>_loss_<channel>"),
        ("rewards/answer/mean", "rewards/<reward>/mean"),
    ],
)
def test_a_number_has_the_meaning_of_its_pattern(name: str, pattern: str) -> None:
    assert meaning_of(name, METRICS) == METRICS[pattern]


def test_what_no_pattern_fits_has_none() -> None:
    assert meaning_of("lossy", METRICS) is None
    assert meaning_of("violations/", EVALUATION_METRICS) is None
    assert meaning_of("checkpoints/step-000100", FILES) == FILES["checkpoints/step-<step>"]


def test_every_test_that_trains_fails_for_a_number_or_a_file_without_a_meaning(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics({"step": 1, "loss_final": 0.5})
    with pytest.raises(AssertionError, match="not in METRICS"):
        folder.metrics({"step": 1, "new_number": 0.5})
    (tmp_path / "new_file").touch()
    with pytest.raises(AssertionError, match="not in FILES"):
        folder.close()
