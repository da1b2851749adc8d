"""Rewards of type `code`: the program in the final on the tests of its row."""

from __future__ import annotations

from collections.abc import Sequence

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import CodeReward
from counterpoint.train.scoring.asking import Asking
from counterpoint.train.scoring.code_runner import CodeRunner, program_in
from counterpoint.train.scoring.function_rewards import Found
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.scorers import answer_of


class CodeJudge:
    """Thread-safe. ConfigError where bubblewrap is missing."""

    def __init__(self, settings: CodeReward, name: str) -> None:
        self.settings = settings
        self.asking: Asking | None = None
        try:
            self._runner = CodeRunner(settings.seconds, settings.memory_mb, settings.parallel)
        except ConfigError as error:
            raise ConfigError(f"reward {name}: {error}") from None
        self.notes: Sequence[str] = [f"reward {name}: {note}" for note in self._runner.notes]

    def missing(self, outcome: Outcome) -> str | None:
        """What the row lacks."""
        return None if outcome.reference.tests is not None else "tests of a program (`test_cases`, `tests`, ...)"

    def one(self, outcome: Outcome) -> Found:
        """0 for a final without a program; nothing where the row's tests themselves cannot be run."""
        tests = outcome.reference.tests
        if tests is None:
            return Found(None, applies=False)
        final = answer_of(outcome.completion)
        program = None if final is None else program_in(final)
        if program is None:
            return Found(0.0)
        whole = self.settings.score == "all"
        tested = self._runner.run(program, tests, until_failed=whole)
        if tested.broken is not None:
            return Found(None, failed=f"a test of the row cannot be run: {tested.broken}")
        return Found(float(tested.passed == tested.n) if whole else tested.passed / tested.n)

    def close(self) -> None:
        pass
