"""Our adapter, by the command line, against the stored prompts of each reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conformance_suite import FOLDER, module, suite

from counterpoint.data.harmony.vocabulary import vocabulary_folder

FORMS = json.loads((FOLDER / "peers" / "counterpoint" / "forms.json").read_text("utf-8"))
DIFFERS = {
    "openai_harmony": "drops thoughts before the first answer of a conversation only, and none in an open tool loop",
    "transformers": "makes control tokens of those that somebody typed",
    "transformers_objects": "makes control tokens of those that somebody typed",
}
"""Where a form stays apart from its reference on purpose, and why: what the reference does there is a fault."""
KNOWN = {
    "developer-009": "a system text that is a line of Harmony's system block is read as the setting that it names",
    "reasoning_forms-013": "<think> in an answer is read as thought beside a thought of its own too",
}
"""Where every form fails."""


def answered(form: str, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    run = module("run").ask(
        "counterpoint", cases, environments=folder, checkpoint=vocabulary_folder(), arguments=FORMS[form]
    )
    assert set(run.answers) == set(cases)
    return module("score").score_all(run.answers, suite(), cases)


def misses(form: str, cases: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Required cases that are not exact under the form's own reference."""
    found = answered(form, cases, folder)
    passes = module("score").passes
    return {
        name: result
        for name, result in found.items()
        if cases[name]["status"] == "required" and passes(cases[name], result, form, exact=True) is False
    }


def allowed(form: str, name: str, category: str, result: Any) -> bool:
    """Whether a difference is the one that DIFFERS names: the prompt alone, in the cases where it shows."""
    case = suite().cases[name]
    if name in KNOWN:
        return True
    if form not in DIFFERS or "actions" not in case or not result["target"] or result["mask"] != "strict":
        return False
    if form == "openai_harmony":
        return category in ("multi_turn", "tool_loop") and len(case["actions"]) > 1
    return category == "typed_markup"


@pytest.mark.parametrize("form", FORMS)
def test_a_sample_is_exact_under_its_own_reference(form: str, tmp_path: Path) -> None:
    every = list(suite().cases.items())
    categories = {id_: name for name, ids in suite().categories.items() for id_ in ids}
    missed = misses(form, dict(every[:: 6 if form == "vllm" else 20]), tmp_path)
    assert {n for n, result in missed.items() if not allowed(form, n, categories[n], result)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_required_case_is_exact_under_its_own_reference(form: str, tmp_path: Path) -> None:
    categories = {id_: name for name, ids in suite().categories.items() for id_ in ids}
    missed = misses(form, suite().cases, tmp_path)
    assert {n for n, result in missed.items() if not allowed(form, n, categories[n], result)} == set()
    if form not in DIFFERS:
        assert set(missed) == set(KNOWN)
