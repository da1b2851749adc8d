"""Section `model` of an evaluation says how the checkpoint is held, and not what it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.schema import SftRun
from counterpoint.recipes.commands.evaluate import as_asked
from counterpoint.train.checkpoints.find import Found

RUN = SftRun.model_validate({"recipe": "sft", "data": {"train": "rows.jsonl"}, "model": {"norms": "reference"}})
PLAIN = Found("tiny", ModelSettings(name="tiny"), None, None)
ADAPTER = Found("adapter", ModelSettings(name="tiny"), Path("adapter"), None)
TRAINED = Found("run", RUN.model, Path("run/adapter"), RUN)


@pytest.mark.parametrize("found", [PLAIN, ADAPTER, TRAINED], ids=["model", "adapter", "run"])
def test_it_says_how_weights_are_held(found: Found) -> None:
    asked = as_asked(found, ModelSettings(experts="reference", dtype="bfloat16"))
    assert (asked.base.experts, asked.base.dtype, asked.base.name) == ("reference", "bfloat16", "tiny")
    assert asked.base.norms == found.base.norms, "what is not set stays as the run had it"
    assert as_asked(found, ModelSettings()) == found


@pytest.mark.parametrize(
    ("found", "model", "told"),
    [
        (TRAINED, {"init": "random"}, "model.init: run was trained on a base of its own: leave it out"),
        (TRAINED, {"name": "openai/x", "revision": "main"}, "model.revision: run was trained on a base of its own"),
        (ADAPTER, {"init": "random"}, "model.init: adapter was trained on a base of its own"),
    ],
)
def test_what_the_checkpoint_decides_is_refused(found: Found, model: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        as_asked(found, ModelSettings.model_validate(model))


def test_a_model_and_the_base_of_an_adapter_take_a_revision() -> None:
    for found in (PLAIN, ADAPTER):
        asked = as_asked(found, ModelSettings.model_validate({"name": "openai/x", "revision": "abc"}))
        assert asked.base.revision == "abc"
    assert as_asked(PLAIN, ModelSettings(init="random")).base.init == "random"
