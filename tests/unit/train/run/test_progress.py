from __future__ import annotations

import io

import pytest

from counterpoint.train.run.progress import Progress, clock, progress_line

VALUES = {
    "loss": 1.23456, "loss_analysis": 1.1, "loss_commentary": 0.91, "loss_final": 1.3, "tokens_per_second": 12345.6,
}  # fmt: skip


def test_the_line() -> None:
    assert progress_line(40, 80, VALUES, 65.2) == (
        "step 40/80  loss 1.2346  analysis 1.100  commentary 0.910  final 1.300  12,346 tok/s  1:05 left"
    )
    assert progress_line(1, 2, {"loss": 2.0}, None) == "step 1/2  loss 2.0000"


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0:00"), (7.4, "0:07"), (750, "12:30"), (3599.6, "1:00:00"), (11100, "3:05:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_and_a_file_one_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    terminal, file = Terminal(), io.StringIO()
    for out in (terminal, file):
        progress = Progress(out)
        progress.show("step 1 and much more than fits")
        progress.show("step 2")
        progress.say("evaluated")
        progress.show("step 3")
    assert terminal.getvalue() == "\rstep 1 and much mor\rstep 2             \nevaluated\n\rstep 3"
    assert file.getvalue() == "step 1 and much more than fits\nstep 2\nevaluated\nstep 3\n"


def test_a_run_on_rewards_says_what_was_paid_for() -> None:
    values = {
        "loss": 0.06,
        "reward": 1.234,
        "rewards/answer/mean": 0.61,
        "rewards/answer/std": 0.5,
        "rewards/environment/solved/mean": -2.0,
        "frac_reward_zero_std": 0.125,
        "tools/calls": 1.0,
        "tools/solved": 0.55,
        "tools/faults": 0.02,
        "invalid": 0.0,
        "analysis_tokens/low": 12.4,
        "analysis_tokens/high": 31.0,
    }
    assert progress_line(3, 60, values, 65) == (
        "step 3/60  reward 1.23 (answer 0.61, environment/solved -2)  solved 0.55  dead groups 0.12  "
        "thought 12/31 (low/high)  faults 0.02  loss 0.0600  1:05 left"
    )
