"""Metrics of `text_similarity` graders against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
from finals import finished

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import GraderReward
from counterpoint.train.scoring import similarity as similarity_module
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference
from counterpoint.train.scoring.similarity import similarity


def graded(grader: dict[str, Any], final: str) -> float:
    with Rewards([GraderReward(type="grader", grader=grader)]) as rewards:
        return rewards.score(Outcome(finished(final), (), Reference()))[0]


@pytest.mark.parametrize(
    ("metric", "text", "reference", "value"),
    [
        ("fuzzy_match", "kitten", "sitting", 8 / 13),
        ("fuzzy_match", "", "", 1.0),
        ("bleu", "the cat sat", "the cat slept", (2 / 3 * 1 / 2 * 0.1) ** (1 / 3)),
        ("bleu", "Oslo", "Oslo", 1.0),
        ("gleu", "the cat sat", "the cat slept", 3 / 6),
        ("rouge_1", "the cat sat", "the cat slept", 2 / 3),
        ("rouge_2", "the cat sat", "the cat slept", 1 / 2),
        ("rouge_3", "the cat sat", "the cat slept", 0.0),
        ("rouge_4", "a b c d e", "a b c d f", 1 / 2),
        ("rouge_5", "a b c d e", "a b c d e", 1.0),
        ("rouge_l", "the old cat sat", "the cat sat", 2 * 3 / 4 * 1 / (3 / 4 + 1)),
        ("rouge_l", "", "the cat", 0.0),
    ],
)
def test_similarity_is_by_its_metric(metric: str, text: str, reference: str, value: float) -> None:
    assert similarity(metric, text, reference) == pytest.approx(value)
    grader = {
        "type": "text_similarity",
        "name": "s",
        "input": "{{sample.output_text}}",
        "reference": reference,
        "evaluation_metric": metric,
    }
    if text:
        assert graded(grader, text) == pytest.approx(value)


def test_meteor_needs_wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoSynonyms:
        def synsets(self, word: str) -> list[Any]:
            return []

        def ensure_loaded(self) -> None:
            raise LookupError

    monkeypatch.setattr(similarity_module, "_wordnet", NoSynonyms)
    # All four words match, three by themselves and one by its stem, in one chunk: 1 - 0.5 * (1 / 4) ** 3.
    assert similarity("meteor", "the old cats sat", "the old cat sat") == pytest.approx(1 - 0.5 / 64)
    grader = {"type": "text_similarity", "name": "s", "input": "a", "reference": "b", "evaluation_metric": "meteor"}
    with pytest.raises(ConfigError, match="grader `s`: `meteor` needs WordNet's synonyms"):
        graded(grader, "x")
