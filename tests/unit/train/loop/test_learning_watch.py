from __future__ import annotations

import json
import math

import pytest

from counterpoint.train.loop.learning_watch import LearningWatch

UNIFORM = math.log(100)


def watch(patience: int = 3) -> LearningWatch:
    return LearningWatch(patience, rows=100)


def test_gradients_of_zero_count_where_the_rate_is_above_zero() -> None:
    found = watch()
    assert [found.step(0.0, 0.0) for _ in range(9)] == [None] * 9
    assert [found.step(norm, 0.1) for norm in (0.0, 0.0, 1.0, 0.0, 0.0)] == [None] * 5
    assert found.step(0.0, 0.1) == "the gradient was 0 in the last 3 steps at a rate above 0"
    assert found.step(0.0, 0.1) is None, "told once"
    assert found.trouble() == "the gradient was 0 in the last 4 steps at a rate above 0"


def test_a_short_run_without_any_gradient_is_in_trouble_at_its_end() -> None:
    found = watch(20)
    assert found.step(0.0, 0.1) is None
    assert found.trouble() == "the gradient was 0 in the last 1 step at a rate above 0"
    found.step(2.0, 0.1)
    found.step(0.0, 0.1)
    assert found.trouble() is None


def test_rows_that_are_known_by_heart_have_no_gradient() -> None:
    found = watch()
    assert [found.step(0.0, 0.1, 1e-4) for _ in range(9)] == [None] * 9
    assert found.trouble() is None


@pytest.mark.parametrize(("first", "lost"), [(1.0, True), (UNIFORM + 0.3, False)])
def test_a_loss_that_fell_back_to_a_guess(first: float, lost: bool) -> None:
    """A model with random weights begins at the loss of a guess, and may stay there for a while."""
    found = watch()
    told = [found.step(1.0, 0.1, loss) for loss in (first, *[UNIFORM] * 4)]
    dead = "the loss was that of a guess (ln 100) or above in the last 3 steps"
    assert told == [None, None, None, dead if lost else None, None]


def test_a_norm_that_jumps_is_told_once() -> None:
    found = watch()
    assert [found.jump(1.0) for _ in range(10)] == [None] * 10
    assert found.jump(19.0) is None
    assert found.jump(25.0) == "the gradient's norm jumped to 25 from about 1"
    assert found.jump(30.0) is None
    assert found.jumps == 2


def test_its_state_goes_through_a_checkpoint() -> None:
    found, again = watch(), watch()
    for norm in (1.0, 0.0, 0.0):
        found.step(norm, 0.1, 2.0)
    again.restore(json.loads(json.dumps(found.state())))
    assert again.step(0.0, 0.1, 2.0) == found.step(0.0, 0.1, 2.0) is not None
