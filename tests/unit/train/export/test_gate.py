"""The gate's numbers on scores that are known, its limits, and what the rows of a run give it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoint.configs.load import load_run
from counterpoint.configs.schema import TrainingRun
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.export.gate import (
    KL_LIMITS,
    Gate,
    Live,
    Ratio,
    Scores,
    base_experts_only,
    compare,
    kl_by_row,
    ratio_of,
    score,
)
from counterpoint.train.export.rows import HELD_OUT, example_rows, run_rows
from counterpoint.train.export.tasks import TaskScores, run_tasks
from counterpoint.train.model.load import load_vocabulary_of


def scores(*rows: list[float]) -> Scores:
    """One position a row, of two tokens: the probability of the first."""
    p = torch.tensor(rows, dtype=torch.float64)
    return Scores(
        torch.stack([p, 1 - p], dim=-1).log().float().flatten(0, 1),
        torch.arange(len(rows)).repeat_interleave(len(rows[0])),
    )


def kl(p: float, q: float) -> float:
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_the_ratios_are_those_of_sums_over_rows() -> None:
    live, base, other = scores([0.5, 0.6], [0.9, 0.2]), scores([0.4, 0.5], [0.5, 0.5]), scores([0.5, 0.5], [0.9, 0.3])
    wanted = kl(0.6, 0.5) + kl(0.2, 0.3)
    whole = kl(0.5, 0.4) + kl(0.6, 0.5) + kl(0.9, 0.5) + kl(0.2, 0.5)
    assert kl_by_row(live, base).tolist() == pytest.approx(
        [kl(0.5, 0.4) + kl(0.6, 0.5), kl(0.9, 0.5) + kl(0.2, 0.5)], rel=1e-5
    )
    before = Live(live, kl_by_row(live, base), kl_by_row(live, base) / 2, TaskScores())
    found = compare(before, other, TaskScores(), "mxfp4", None)
    assert found.ratio is not None
    assert found.ratio_experts is not None
    assert found.ratio.value == pytest.approx(wanted / whole, rel=1e-5)
    assert found.ratio_experts.value == pytest.approx(2 * wanted / whole, rel=1e-5)
    assert found.kl == pytest.approx(wanted / 4, rel=1e-5)
    assert found.kl_base == pytest.approx(whole / 4, rel=1e-5)
    rows = [kl(0.6, 0.5) / (kl(0.5, 0.4) + kl(0.6, 0.5)), kl(0.2, 0.3) / (kl(0.9, 0.5) + kl(0.2, 0.5))]
    assert (found.ratio.low, found.ratio.high) == pytest.approx((min(rows), max(rows)), rel=1e-4)


def test_the_interval_holds_the_ratio_19_times_in_20() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        whole = torch.from_numpy(random.exponential(size=60))
        part = whole * torch.from_numpy(random.uniform(0, 0.2, 60))
        found = ratio_of(part, whole, 600)
        assert found is not None
        held += found.low <= 0.1 <= found.high
    assert 0.9 <= held / 200 <= 0.99


def test_where_nothing_was_learned_there_is_no_ratio() -> None:
    assert ratio_of(torch.ones(3), torch.zeros(3), 30) is None
    assert ratio_of(torch.ones(3), None, 30) is None


def gate(ratio: float | None, experts: float | None, **changes: Any) -> Gate:
    both = [None if value is None else Ratio(value, value, value) for value in (ratio, experts)]
    made = Gate("mxfp4", 1e-3, 1e-2, 2e-2, 0.99, 100, 10, both[0], both[1], None, {})
    return replace(made, **changes)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (gate(0.05, 0.2), "passed"),
        (gate(0.051, 0.1), "warned"),
        (gate(0.01, 0.21), "warned"),
        (gate(0.1, 0.5), "warned"),
        (gate(0.11, 0.1), "refused"),
        (gate(0.01, 0.51), "refused"),
        (gate(0.02, None, target="bf16"), "passed"),
        (gate(0.03, None, target="bf16"), "warned"),
        (gate(0.9, 0.9, limit=1.0), "passed"),
        (gate(0.02, 0.0, limit=0.01), "refused"),
        (gate(None, None), "passed"),
        (gate(None, None, kl=KL_LIMITS["mxfp4"] * 1.01), "refused"),
        (gate(None, None, limit=1e-4), "refused"),
        (gate(0.0, None, target="adapter"), "refused"),
        (gate(0.0, None, target="adapter", kl=0.0), "passed"),
    ],
)
def test_the_limits(found: Gate, verdict: str) -> None:
    assert found.verdict == verdict
    assert found.passed == (verdict != "refused")
    assert found.line().startswith(f"gate {verdict}: ")
    assert found.as_dict()["verdict"] == verdict


def answers(right: int, ok: int, total: int = 40) -> TaskScores:
    return TaskScores(
        [
            {"task": "", "id": str(n), "effort": "medium", "cluster": str(n), "scorer": "calls" if n % 2 else "number",
             "score": float(n < right), "violations": [] if n < ok else [{"code": "x"}]}
            for n in range(total)
        ]
    )  # fmt: skip


def test_tasks_are_paired_with_the_live_model_and_a_loss_refuses() -> None:
    live, same, worse = answers(30, 40), answers(29, 40), answers(4, 40)
    paired = live.paired(worse)
    assert {name: values["items"] for name, values in paired.items()} == {"answers": 20, "calls": 20, "channels": 40}
    assert paired["answers"]["difference"]["value"] == pytest.approx(-13 / 20)
    assert paired["channels"]["told"] == "same"
    assert live.worse(same) == ()
    assert [each.metric for each in live.worse(worse)] == ["answers", "calls"]
    bad = gate(0.01, 0.01, worse=live.worse(worse))
    assert bad.verdict == "refused"
    assert "answers: the export is 65.0 points worse" in bad.line()
    assert gate(0.01, 0.01, worse=live.worse(worse), limit=0.1).verdict == "passed"


def sft(folder: Path, **data: Any) -> TrainingRun:
    rows = [
        {"messages": [{"role": "user", "content": f"{n} + 1 = ?"}, {"role": "assistant", "content": f"{n + 1}."}]}
        for n in range(200)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:3]))
    run = {"recipe": "sft", "data": {"train": str(folder / "rows.jsonl"), "missing_thinking": "keep", **data}}
    (folder / "run.yaml").write_text(json.dumps(run))
    return load_run(folder / "run.yaml")  # type: ignore[return-value]


def test_rows_of_a_run_are_split_into_those_to_calibrate_on_and_those_to_judge_by(tmp_path: Path) -> None:
    run = sft(tmp_path)
    vocabulary = load_vocabulary_of(run.model)
    found = run_rows(run, vocabulary)
    assert (len(found.training), len(found.held_out), found.missing) == (200 - HELD_OUT, HELD_OUT, "")
    calibrated, judged = {ids.tobytes() for ids in found.training}, {ids.tobytes() for ids, _ in found.held_out}
    assert len(calibrated | judged) == 200
    ids, trained = found.held_out[0]
    assert vocabulary.decode(ids[trained]).endswith("<|return|>")
    assert "?" not in vocabulary.decode(ids[trained])
    few = run_rows(run, vocabulary, tokens=100)
    assert 100 <= sum(map(len, few.training)) < 300
    held = run_rows(sft(tmp_path, valid=str(tmp_path / "valid.jsonl")), vocabulary)
    assert (len(held.training), len(held.held_out), held.source) == (197, 3, "data.valid")
    tasks, why = run_tasks(run, 5)
    assert (len(tasks.prompts), tasks.settings, why) == (5, run.data, "")


def test_pairs_give_their_wanted_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"{n} + 1 = ?"}], "chosen": [{"role": "assistant", "content": f"{n + 1}."}],
         "rejected": [{"role": "assistant", "content": "Never."}]}
        for n in range(10)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(json.dumps({"recipe": "dpo", "data": {"train": str(tmp_path / "pairs.jsonl")}}))
    run: Any = load_run(tmp_path / "run.yaml")
    vocabulary = load_vocabulary_of(run.model)
    found = run_rows(run, vocabulary)
    assert (len(found.training), len(found.held_out)) == (5, 5)
    assert all("Never" not in vocabulary.decode(ids) for ids in found.training)
    ids, trained = found.held_out[0]
    assert vocabulary.decode(ids[trained]).endswith("<|return|>")


def test_rows_that_are_gone_are_told_and_replaced_by_examples(tmp_path: Path) -> None:
    run = sft(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    vocabulary = load_vocabulary()
    for found in (run_rows(run, vocabulary), run_rows(None, vocabulary)):
        assert len(found.training) == 0
        assert len(found.held_out) == len(example_rows(vocabulary))
        assert found.missing
    assert "rows.jsonl" in run_rows(run, vocabulary).missing


def test_the_base_s_experts_are_the_live_model_without_adapters_on_experts(tmp_path: Path) -> None:
    from counterpoint.configs.model_section import LoraSettings
    from counterpoint.train.adapters.attach import attach_lora, lora_parts
    from counterpoint.train.adapters.implementations import use_implementations
    from counterpoint.train.model.tiny import random_tiny

    tiny = random_tiny(seed=2)
    live = tiny.with_model(attach_lora(tiny.model, LoraSettings(rank=4)))
    use_implementations(live.model)
    torch.manual_seed(0)
    for _, _, module in lora_parts(live.model):
        torch.nn.init.normal_(module.lora_B["default"].weight, std=0.1)
    rows = example_rows(live.vocabulary)[:3]
    whole = score(live, rows)
    with base_experts_only(live.model):
        part = score(live, rows)
    assert torch.equal(score(live, rows).log_probs_TV, whole.log_probs_TV)
    for kind, _, module in lora_parts(live.model):
        if "experts" in kind:
            torch.nn.init.zeros_(module.lora_B["default"].weight)
    assert torch.allclose(score(live, rows).log_probs_TV, part.log_probs_TV, atol=1e-6)
    assert not torch.allclose(part.log_probs_TV, whole.log_probs_TV, atol=1e-3)
