"""The hook measures without touching the run, and its own failure only warns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from unit.train.tiny_run import make

from counterpoint.configs.errors import RunError
from counterpoint.configs.eval_section import EvalSettings
from counterpoint.configs.model_section import LoraSettings
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.layout.tree import tree_of
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.evals.effort_tokens import lengths
from counterpoint.train.evals.hook import ChannelEval, channel_verdict, read_points
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.scorers import Reference

PROMPTS = [EvalPrompt("a", Conversation((Message("user", "1 + 1?"),)), Reference(answer="2"), "number")]
ROWS = [
    Conversation((Message("user", f"{n} + 1?"), Message("assistant", f"{n + 1}", "final")), source=f"made:{n}")
    for n in range(4)
]


class Told:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.tables: list[str] = []
        self.lines: list[str] = []

    def scalars(self, step: int, values: Any) -> None:
        self.values.update(values)

    def table(self, step: int, name: str, columns: Any, rows: Any) -> None:
        self.tables.append(name)
        assert len(columns) == len(rows[0])


def run(
    folder: Path, settings: EvalSettings | None, told: Told, broken: bool = False
) -> tuple[list[Any], ChannelEval | None]:
    loaded = random_tiny(seed=0)
    torch.manual_seed(0)
    model = attach_lora(loaded.model, LoraSettings(rank=4))
    live: LoadedModel = loaded.with_model(model)
    renderer = Renderer(live.vocabulary)
    rows = [tree_of(renderer.examples(row)) for row in ROWS]
    callbacks: list[Any] = []
    hook = None
    if settings is not None:
        hook = ChannelEval(
            live.with_model(None) if broken else live, renderer, PROMPTS, settings, folder / "eval",
            log=told, say=told.lines.append, warn=told.lines.append,
        )  # fmt: skip
        callbacks = [hook]
    rows = [
        replace(row, ids=live.vocabulary_map.rows(row.ids), target_id=live.vocabulary_map.rows(row.target_id))
        for row in rows
    ]
    trainer = make(
        folder, rows=rows, model=model, steps=4, every=99, accumulation=1, callbacks=callbacks, warn=told.lines.append
    )
    trainer.train()
    return trainer.curve.losses, hook  # type: ignore[attr-defined]


SETTINGS = EvalSettings(every=2, efforts=("low", "high"), max_new_tokens=6, warn_below=0.9)


def test_losses_are_the_same_bit_for_bit_and_everything_is_logged(tmp_path: Path) -> None:
    told = Told()
    without, _ = run(tmp_path / "without", None, told)
    with_hook, hook = run(tmp_path / "with", SETTINGS, told)
    assert with_hook == without
    assert hook is not None
    assert [(p.step, p.who) for p in hook.points] == [(0, "base"), (2, "tuned"), (4, "tuned")]
    assert told.values["eval/channel_correct"] == hook.points[2].summary.correct.share
    assert told.tables == ["eval_base/samples", "eval/samples", "eval/samples"]
    assert sum("below eval.warn_below" in line for line in told.lines) == 2
    points = read_points(tmp_path / "with" / "eval")
    assert [(p["step"], p["who"]) for p in points] == [(0, "base"), (2, "tuned"), (4, "tuned")]
    rows = [json.loads(line) for line in (tmp_path / "with/eval/step-000004-tuned.jsonl").read_text().splitlines()]
    assert [(row["id"], row["effort"]) for row in rows] == [("a", "low"), ("a", "high")]
    assert all(len(row["ids"]) <= 6 for row in rows)


def test_its_own_failure_never_breaks_training(tmp_path: Path) -> None:
    told = Told()
    losses, hook = run(tmp_path, SETTINGS, told, broken=True)
    assert len(losses) == 4
    assert hook is not None
    assert hook.points == []
    assert sum("training continues" in line for line in told.lines) == 3


def test_a_process_that_cannot_sample_its_part_ends_a_sharded_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("counterpoint.train.evals.hook.is_sharded", lambda model: True)
    with pytest.raises(RunError, match="at step 0 failed in a process that holds a part of the model"):
        run(tmp_path, SETTINGS, Told(), broken=True)


def test_stop_below_ends_the_run_but_never_at_the_start(tmp_path: Path) -> None:
    told = Told()
    settings = SETTINGS.model_copy(update={"stop_below": 0.5, "warn_below": None})
    losses, hook = run(tmp_path, settings, told)
    assert len(losses) == 2
    assert hook is not None
    assert hook.stopped is not None
    assert "at step 2 is below eval.stop_below (0.50)" in hook.stopped
    assert any((tmp_path / "checkpoints").glob("step-000002"))


def test_points_of_a_cut_off_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "who": "base", "a": 1}\n{"step": 0, "who": "base", "a": 2}\n{"st'
    )
    assert read_points(tmp_path) == [{"step": 0, "who": "base", "a": 2}]
    assert read_points(tmp_path / "nothing") == []


@pytest.mark.parametrize("who", ["base", "tuned"])
def test_line_says_what_counts(tmp_path: Path, who: Any) -> None:
    told = Told()
    loaded = random_tiny(seed=0)
    hook = ChannelEval(loaded, Renderer(loaded.vocabulary), PROMPTS, SETTINGS, tmp_path, say=told.lines.append)
    point = hook.measure(0, who)
    assert point is not None
    assert told.lines[0].startswith(f"eval step 0 {who}: channel-correct 0.00 [0.00, 0.79], answers 0.00")


def test_an_effort_collapse_is_warned_of(tmp_path: Path) -> None:
    told = Told()
    loaded = random_tiny(seed=0)
    hook = ChannelEval(loaded, Renderer(loaded.vocabulary), PROMPTS, SETTINGS, tmp_path, warn=told.lines.append)
    hook.measure(0, "base")
    steers = lengths(
        (n, effort, tokens) for n in range(5) for effort, tokens in (("low", 20 + n), ("high", 300 + 9 * n))
    )
    flat = lengths((n, effort, tokens) for n in range(5) for effort, tokens in (("low", 99 + n), ("high", 102 - n)))
    hook.points = [replace(hook.points[0], lengths=steers)]
    hook._compare(replace(hook.points[0], step=8, lengths=steers), [])
    assert told.lines == []
    hook._compare(replace(hook.points[0], step=8, lengths=flat), [])
    (line,) = told.lines
    assert line.startswith(
        "step 8: Effort has collapsed: from low to high the analysis grows 0.99 times (95 % interval"
    )


def test_a_last_line_tells_no_measurement_that_was_not_made() -> None:
    base, tuned = {"who": "base", "channel_correct": 0.5}, {"who": "tuned", "channel_correct": 0.75}
    assert channel_verdict([]) is None
    assert channel_verdict([base, tuned]) == "channel-correct: 0.75 (before 0.50)"
    assert channel_verdict([base]) == "channel-correct: not measured after training (before 0.50)"
