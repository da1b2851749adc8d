"""`verify` against vLLM's own render server, where vLLM is installed.

It needs neither weights nor a GPU. vLLM usually lives in an environment of its own: COUNTERPOINT_VLLM names its Python.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from counterpoint.configs.data_section import RenderSettings, ServedSettings
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.serving.endpoint import Endpoint
from counterpoint.train.serving.probes import Serving, probes_of
from counterpoint.train.serving.verify import Finding, exit_code, verify

SERVED_DATE = "2025-06-28"
VOCABULARY = load_vocabulary()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    folder = str(Path(__file__).parents[3] / "golden" / "served")
    with ExitStack() as stack:
        sys.path.insert(0, folder)
        stack.callback(sys.path.remove, folder)
        from make import vllm_server  # pyright: ignore[reportMissingImports]

        yield stack.enter_context(vllm_server(os.environ.get("COUNTERPOINT_VLLM", sys.executable), SERVED_DATE))


def found(url: str, **settings: object) -> dict[str, Finding]:
    opening = RenderSettings.model_validate({"date": SERVED_DATE, **settings})
    serving = Serving(opening, VOCABULARY.fingerprint, probes_of(opening, VOCABULARY), ())
    return {finding.question: finding for finding in verify(Endpoint(url), serving, VOCABULARY)}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"served": ServedSettings(reasoning="lost")}, {"tool_schemas": "cleaned"}])
def test_what_vllm_renders_is_what_was_trained(url: str, settings: dict[str, object]) -> None:
    findings = found(url, **settings)
    prompts = {question: f.verdict for question, f in findings.items() if question.startswith("prompt ")}
    assert set(prompts.values()) == {"ok"}
    assert len(prompts) >= 5
    assert (findings["date"].verdict, findings["effort"].verdict) == ("ok", "ok")
    assert exit_code([*findings.values()]) == 0, "a server without a model is no alarm"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "question", "said"),
    [
        ({"date": "2024-01-02"}, "date", "VLLM_SYSTEM_START_DATE=2024-01-02"),
        ({"serving": "vllm_0_30"}, "form", "training with data.serving: vllm would"),
    ],
)
def test_what_was_trained_otherwise_is_found(url: str, settings: dict[str, object], question: str, said: str) -> None:
    findings = found(url, **settings)
    assert findings[question].verdict == "differs"
    assert said in findings[question].detail
    assert exit_code([*findings.values()]) == 1
