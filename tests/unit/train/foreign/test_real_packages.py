"""Real packages in virtual environments of their own (COUNTERPOINT_FOREIGN names these, as a PATH does): what is learned of
their rollouts is what was sampled. `benchmarks/foreign.py` has the cases and makes the table of the documentation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from scripts import script

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.sampling.scripted import ScriptedEngine

if VENVS := [Path(venv) for venv in os.environ.get("COUNTERPOINT_FOREIGN", "").split(os.pathsep) if venv]:
    FOREIGN = script("foreign.py")
    FOUND = [found for venv in VENVS for found in FOREIGN.cases_of(venv)]

    @pytest.mark.slow
    @pytest.mark.parametrize(("case", "python"), FOUND, ids=[f"{case.package} {case.name}" for case, _ in FOUND])
    def test_what_is_learned_of_a_package_is_what_was_sampled(case: Any, python: str) -> None:
        vocabulary = load_vocabulary()
        engine = FOREIGN.Noted(ScriptedEngine(vocabulary, FOREIGN.calls_first(vocabulary)))
        renderer = Renderer(vocabulary, RenderSettings(serving="sampled"))
        episodes = FOREIGN.play(case, python, engine, renderer)
        for episode in episodes:
            assert episode.invalid is None
            right, actions = engine.proven(episode)
            assert right == actions > 0
            between = [i for i, mark in zip(episode.completion_ids, episode.env_mask, strict=True) if not mark]
            read = vocabulary.decode(between)
            assert all(called.result.content in read for called in episode.called)
