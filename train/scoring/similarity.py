"""How alike two texts are, from 0 to 1, by the metrics of OpenAI's `text_similarity` graders (extra `graders`)."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

from counterpoint.configs.errors import ConfigError

_PACKAGES = {"fuzzy_match": "rapidfuzz", "bleu": "nltk", "gleu": "nltk", "meteor": "nltk"}


def check_similarity(metric: str, where: str) -> None:
    """ConfigError for a metric that cannot be computed here."""
    if metric == "cosine":
        raise ConfigError(
            f"{where}: `cosine` compares OpenAI's embeddings, which are not computed here: take fuzzy_match, bleu, "
            "gleu, meteor or rouge"
        )
    package = _PACKAGES.get(metric, "rouge_score")
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"{where}: `{metric}` needs {package}: pip install 'counterpoint[graders]'")
    if metric == "meteor":
        try:
            _wordnet().ensure_loaded()
        except LookupError:
            raise ConfigError(
                f"{where}: `meteor` needs WordNet's synonyms: python -m nltk.downloader wordnet"
            ) from None


def similarity(metric: str, text: str, reference: str) -> float:
    """0 for an empty text."""
    if metric == "fuzzy_match":
        from rapidfuzz import fuzz  # pyright: ignore[reportMissingImports]

        return fuzz.ratio(text, reference) / 100
    words, wanted = text.split(), reference.split()
    if not words or not wanted:
        return float(words == wanted)
    if metric == "bleu":
        from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

        # A sentence of fewer than four words has no 4-grams: what it can have counts.
        most = min(4, len(words), len(wanted))
        found: Any = sentence_bleu(
            [wanted], words, weights=(1 / most,) * most, smoothing_function=SmoothingFunction().method1
        )
        return float(found)
    if metric == "gleu":
        from nltk.translate.gleu_score import sentence_gleu

        return float(sentence_gleu([wanted], words))
    if metric == "meteor":
        from nltk.translate.meteor_score import single_meteor_score

        return float(single_meteor_score(wanted, words, wordnet=_wordnet()))
    return float(_rouge(metric.replace("_", "").replace("rougel", "rougeL"), text, reference))


def _wordnet() -> Any:
    from nltk.corpus import wordnet

    return wordnet


def _rouge(kind: str, text: str, reference: str) -> float:
    return _scorer(kind).score(reference, text)[kind].fmeasure


@lru_cache
def _scorer(kind: str) -> Any:
    from rouge_score import rouge_scorer  # pyright: ignore[reportMissingImports]

    return rouge_scorer.RougeScorer([kind], use_stemmer=True)
