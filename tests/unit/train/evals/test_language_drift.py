"""A reasoner that begins to think in another language is named; one that always did is not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from counterpoint.configs.eval_section import EvalSettings
from counterpoint.data.conversation import Conversation, Effort, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.channels import judge
from counterpoint.train.evals.findings import findings_of
from counterpoint.train.evals.hook import ChannelEval
from counterpoint.train.evals.language_drift import drifts
from counterpoint.train.evals.report_data import Report, Side
from counterpoint.train.evals.report_page import page_of
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.scorers import Reference, Scorers

VOCABULARY = load_vocabulary()
ENGLISH = "The user asks for the sum of two numbers, so first we add them and then we give the answer."
FRENCH = "L'utilisateur demande la somme de deux nombres, donc on additionne et puis on donne la réponse."
FINAL = "The sum of the two numbers is 42, as you can check."


def rows(thoughts: dict[Effort, list[str]]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    with Scorers() as scorers:
        for effort, said in thoughts.items():
            for number, thought in enumerate(said):
                text = f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}"
                prompt = EvalPrompt(str(number), Conversation((Message("user", f"{number}?"),)), Reference(), None)
                ids = VOCABULARY.encode_with_specials(f"{text}<|return|>")
                out.append(judge(prompt, effort, 0, ids, "stop", VOCABULARY, scorers).as_row(VOCABULARY))
    return out


def test_a_planted_drift_is_named_at_its_effort_and_channel() -> None:
    base = rows({"low": [ENGLISH] * 8, "high": [ENGLISH] * 8})
    tuned = rows({"low": [ENGLISH] * 8, "high": [FRENCH] * 6 + [ENGLISH] * 2})
    assert base[0]["languages"] == {"analysis": "en", "final": "en"}
    found = findings_of(Report("x", Side("tuned", tuned), Side("base", base)))
    told = "Drifted into another language: at high the analysis is French in 0.75 of 8 samples (base 0.00)."
    assert [said.text for said in found.verdict if said.bad and "language" in said.text] == [told]
    numbers = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert numbers["tuned"]["languages"]["analysis"]["high"]["fr"]["count"] == 6
    assert [drift["language"] for drift in numbers["drifts"]] == ["fr"]
    page = page_of(Report("x", Side("tuned", tuned), Side("base", base)), VOCABULARY, found)
    table = page.partition("<h2>Languages</h2>")[2].partition("</section>")[0]
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.splitlines() if 'scope="row"' in line]
    told = [[re.sub(r"<small>.*?</small>|<[^>]*>", "", cell).strip() for cell in row] for row in cells]
    assert told == [
        ["analysis", "low", "English", "1.00", "1.00"],
        ["analysis", "high", "French", "0.00", "0.75"],
        ["analysis", "high", "English", "1.00", "0.25"],
        ["final", "low", "English", "1.00", "1.00"],
        ["final", "high", "English", "1.00", "1.00"],
    ]
    assert '<span class="lost">French</span>' in table


def test_the_hook_warns_of_a_planted_drift_and_of_a_planted_effort_collapse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook as a run has it, its samples planted: before training in English and longer at high effort, then short
    and in French."""
    prompts = [EvalPrompt(str(n), Conversation((Message("user", f"{n} + 1?"),)), Reference(), None) for n in range(8)]
    warned: list[str] = []
    settings = EvalSettings(efforts=("low", "high"), base=False)
    loaded: Any = SimpleNamespace(model=None, vocabulary=VOCABULARY)
    hook = ChannelEval(
        loaded, Renderer(VOCABULARY), prompts, settings, tmp_path, say=lambda _: None, warn=warned.append
    )
    said: dict[Effort, str] = {}

    def planted(engine: Any, renderer: Any, plan: Any, *_: Any) -> Any:
        out = []
        for asked in plan:
            text = f"<|channel|>analysis<|message|>{said[asked[1]]}<|end|><|start|>assistant<|channel|>final<|message|>{FINAL}"
            ids = VOCABULARY.encode_with_specials(f"{text}<|return|>")
            out.append((asked, Sampled(ids, "stop", None)))
        return out

    monkeypatch.setattr("counterpoint.train.evals.hook.sample_all", planted)
    said.update(low=ENGLISH, high=" ".join([ENGLISH] * 6))
    assert hook.measure(0, "tuned") is not None
    hook.measure(5, "tuned")
    assert warned == []
    said.update(low=ENGLISH, high=FRENCH)
    hook.measure(10, "tuned")
    assert warned == [
        "step 10: Drifted into another language: at high the analysis is French in 1.00 of 8 samples (base 0.00).",
        *[
            line
            for line in warned
            if line.startswith("step 10: Effort has collapsed: from low to high the analysis grows")
        ],
    ]
    assert len(warned) == 2


def test_what_was_so_before_or_may_be_chance_is_no_drift() -> None:
    french = rows({"high": [FRENCH] * 8})
    assert drifts(french, french) == []
    assert drifts(rows({"high": [ENGLISH] * 8}), rows({"high": [FRENCH] + [ENGLISH] * 7})) == []
    assert drifts(rows({"low": [ENGLISH] * 8}), french) == [], "no effort in common"
    assert [drift.language for drift in drifts(french, rows({"high": [ENGLISH] * 8}))] == ["en"]
