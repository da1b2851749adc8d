"""Our loss on rewards against TRL's: packed tree rows against padded ones, the same number and the same gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trl_grpo import Oracle

from counterpoint.configs.model_section import LoraSettings
from counterpoint.data.layout.collate import Collator
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.loop.advantages import advantages_of, live_groups
from counterpoint.train.loop.head import target_hidden
from counterpoint.train.loop.log_probs import target_log_probs
from counterpoint.train.loop.policy_loss import Measures, PolicyLoss, Targets, policy_loss
from counterpoint.train.loop.policy_metrics import StepMetrics
from counterpoint.train.loop.policy_rows import MicroBatch, PolicyRow, micro_batches, targets_of
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.rollout import SampledRow
from counterpoint.train.sampling.truncation import Truncation

GROUP, TEMPERATURE, LONGEST = 4, 0.8, 256
NAN = float("nan")
SCORES = [
    [1.0, 0.5], [0.0, 0.5], [0.25, NAN], [1.0, -3.0],
    [2.0, 0.0], [2.0, 0.0], [0.0, 1.0], [NAN, NAN],
    [-1.0, 5.0], [1.0, 0.0], [0.5, NAN], [0.0, 0.0],
]  # fmt: skip
WEIGHTS = [1.0, 0.3]


def rows_of(loaded: LoadedModel, logprobs: bool) -> list[SampledRow]:
    """Three groups of four: prompts of 30, 3 and 17 tokens, completions of 1 to 60, two of which begin alike, some with
    results in the middle; a tenth of the log-probabilities unknown."""
    draw = torch.Generator().manual_seed(0)
    known = loaded.vocabulary_map.ids(list(range(1, loaded.vocabulary_map.n_rows)))

    def ids(n: int) -> list[int]:
        return known[torch.randint(0, len(known), (n,), generator=draw).numpy()].tolist()

    rows: list[SampledRow] = []
    for length in (30, 3, 17):
        prompt = ids(length)
        for n in (60, 20, 1, 9):
            completion, mask = ids(n), [1] * n
            if n == 60:
                mask[12:25] = [0] * 13
            if n == 20:
                completion[:6] = rows[-1].completion_ids[:6]
            near = [-6.9 + float(torch.randn((), generator=draw)) * 0.4 for _ in completion]
            some = [None if float(torch.rand((), generator=draw)) < 0.1 else value for value in near]
            rows.append(SampledRow(prompt, completion, mask, some if logprobs else None))
    return rows


def model() -> LoadedModel:
    torch.manual_seed(0)
    loaded = random_tiny()
    adapted = attach_lora(loaded.model, LoraSettings(rank=4, expert_rank=2, router=True))
    return loaded.with_model(stirred(adapted, 0.02))


def stirred(adapted: Any, by: float) -> Any:
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name and ".ref." not in name:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * by
    return adapted


def gradients(adapted: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}


def log_probs(loaded: LoadedModel, batch: MicroBatch) -> tuple[torch.Tensor, torch.Tensor]:
    hidden_TH, weight_VH = target_hidden(loaded.model, loaded.model, dict(batch))
    return target_log_probs(hidden_TH, weight_VH, batch["target_ids"], TEMPERATURE)


def flat(values_BC: torch.Tensor, rows: list[SampledRow]) -> torch.Tensor:
    """Of TRL's padded columns those of sampled tokens, row after row."""
    masks = [torch.tensor(row.env_mask, dtype=torch.bool) for row in rows]
    return torch.cat([values[: len(mask)][mask] for values, mask in zip(values_BC, masks, strict=True)])


def batches_of(loaded: LoadedModel, rows: list[SampledRow], chosen: PolicyLoss, budget: int) -> list[MicroBatch]:
    worth = advantages_of(SCORES, WEIGHTS, GROUP, "group")
    sampled = torch.tensor([float(sum(row.env_mask)) for row in rows])
    weights = chosen.weights(sampled, len(rows), int(sampled.sum()))
    given = [PolicyRow(n, row) for n, row in enumerate(rows)]
    collate = Collator(loaded.vocabulary_map.rows)
    share = 1 / float(sampled.sum())
    return micro_batches(given, worth.advantage_N.tolist(), weights.tolist(), GROUP, budget, collate, share)


def trl_settings(chosen: PolicyLoss) -> dict[str, Any]:
    return {
        "loss_type": chosen.loss,
        "epsilon": chosen.clip[0],
        "epsilon_high": chosen.clip[1],
        "importance_sampling_level": chosen.ratio,
        "beta": chosen.beta,
        "temperature": TEMPERATURE,
        "num_iterations": 2,
        "longest": chosen.longest,
        "vllm_importance_sampling_mode": None if chosen.correction == "off" else chosen.correction,
        "vllm_importance_sampling_clip_max": chosen.cap,
        "vllm_importance_sampling_clip_min": chosen.floor,
        "use_bias_correction_kl": chosen.kl_ratio,
        "delta": chosen.ratio_cap,
        "off_policy_mask_threshold": chosen.off_policy,
        "entropy_coef": chosen.entropy_bonus,
    }


CASES = [
    PolicyLoss("grpo", longest=LONGEST),
    PolicyLoss("dapo", (0.05, 0.1), beta=0.1, correction="sequence_mask", cap=2.0),
    PolicyLoss("dr_grpo", (0.05, 0.1), correction="token_truncate", cap=1.1, longest=LONGEST),
    PolicyLoss("bnpo", (0.1, 0.05), "sequence", correction="token_mask", cap=1.2),
    PolicyLoss("grpo", (3e-3, 4e-3), "sequence", beta=0.05, correction="sequence_truncate", cap=0.9),
    PolicyLoss("cispo", (0.2, 1.02), correction="sequence_truncate", cap=1.5),
    PolicyLoss("sapo", beta=0.1),
    PolicyLoss("luspo", (3e-3, 4e-3), "sequence"),
    PolicyLoss("luspo", (0.05, 0.1)),
    PolicyLoss("vespo", correction="token_truncate", cap=1.3),
    PolicyLoss("vespo", correction="sequence_mask", cap=50.0),
    PolicyLoss("dapo", correction="token_truncate", cap=1.2, floor=0.8, ratio_cap=1.05, entropy_bonus=0.05),
    PolicyLoss("grpo", correction="token_mask", cap=1.2, floor=0.9, off_policy=0.01, longest=LONGEST),
    PolicyLoss("dapo", beta=0.1, kl_ratio=False, off_policy=0.002),
]
CASES_BY_NAME = {
    f"{n}-{each.loss}-{each.ratio}-{each.correction}-{each.beta}": (each, 1.0) for n, each in enumerate(CASES)
}
CASES_BY_NAME["top-entropy"] = PolicyLoss("grpo", beta=0.1, entropy_bonus=-0.02), 0.3


QUICK = ("0-", "1-", "3-", "5-", "9-", "11-", "12-", "top")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name.startswith(QUICK) else pytest.mark.slow) for name in CASES_BY_NAME],
)
def test_the_loss_and_its_gradients_are_trl_s(name: str, tmp_path: Path) -> None:
    chosen, top = CASES_BY_NAME[name]
    loaded = model()
    rows = rows_of(loaded, logprobs=chosen.correction != "off")
    oracle = Oracle(loaded, tmp_path, rows, SCORES, WEIGHTS, GROUP, **trl_settings(chosen), top_entropy_quantile=top)
    theirs = oracle.batch()
    worth = advantages_of(SCORES, WEIGHTS, GROUP, "group")
    torch.testing.assert_close(worth.advantage_N.float(), theirs["advantages"], rtol=1e-5, atol=1e-5)
    assert float(worth.reward_N.nanmean()) == pytest.approx(oracle.told("reward"), abs=1e-6)
    # A step was taken since the rollouts: old probabilities differ from those of now.
    (whole,) = batches_of(loaded, rows, chosen, 10_000)
    with torch.no_grad():
        old_T, _ = log_probs(loaded, whole)
    torch.testing.assert_close(old_T, flat(theirs["old_per_token_logps"], rows), rtol=1e-5, atol=1e-5)
    stirred(loaded.model, 0.03)

    loaded.model.zero_grad()
    expected = oracle.loss(theirs)
    expected.backward()
    wanted = gradients(loaded.model)
    reference = flat(theirs["ref_per_token_logps"], rows) if chosen.beta else None
    with torch.no_grad():
        entropy = log_probs(loaded, whole)[1]
    counts = entropy >= torch.quantile(entropy, 1 - top)

    for budget in (10_000, 150):
        loaded.model.zero_grad()
        total, found = 0.0, StepMetrics()
        for batch in batches_of(loaded, rows, chosen, budget):
            places = _places(whole, batch)
            batch["old"] = flat(theirs["old_per_token_logps"], rows)[places]
            if reference is not None:
                batch["reference"] = reference[places]
            if top < 1:
                batch["counts"] = counts[places]
                # TRL's bonus is the mean over the tokens that count.
                batch["share"] = torch.full((len(places),), 1 / int(counts.sum()))
            log_prob_T, entropy_T = log_probs(loaded, batch)
            loss, measures = policy_loss(chosen, log_prob_T, entropy_T, targets_of(batch, log_prob_T.detach()))
            loss.backward()
            total += float(loss.detach())
            found.add(measures)
        assert total == pytest.approx(float(expected), abs=1e-6 * max(1.0, abs(float(expected))))
        ours = gradients(loaded.model)
        assert set(ours) == set(wanted)
        assert sum(float(each.norm()) for each in wanted.values()) > 1e-3
        for name, gradient in wanted.items():
            assert float((ours[name] - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-7, name
        _same_metrics(found.values(), oracle, chosen)


def _places(whole: MicroBatch, part: MicroBatch) -> torch.Tensor:
    """Where the rows of a part are among the targets of all: rows are known by advantage, length and ids."""
    starts = {}
    for row in whole["row"].unique():
        mine = (whole["row"] == row).nonzero()[:, 0]
        starts[tuple(whole["target_ids"][mine].tolist())] = mine
    return torch.cat([starts[tuple(part["target_ids"][part["row"] == row].tolist())] for row in part["row"].unique()])


def _same_metrics(found: dict[str, float], oracle: Oracle, chosen: PolicyLoss) -> None:
    names = ["entropy"] + ["kl"] * bool(chosen.beta)
    # TRL counts what is clipped after it has capped the ratio.
    if chosen.loss in ("grpo", "dapo", "bnpo", "dr_grpo", "luspo") and chosen.ratio_cap is None:
        names += [f"clip_ratio/{each}_mean" for each in ("low", "high", "region")]
    if chosen.correction != "off":
        names += [f"sampling/importance_sampling_ratio/{each}" for each in ("min", "mean", "max")]
        names += ["sampling/sampling_logp_difference/mean", "sampling/sampling_logp_difference/max"]
    for name in names:
        assert found[name] == pytest.approx(oracle.told(name), abs=2e-5), name


WRONG: list[dict[str, Any]] = [
    {"loss": "dapo"}, {"loss": "dr_grpo"}, {"loss": "luspo"}, {"loss": "cispo"}, {"loss": "sapo"}, {"loss": "vespo"},
    {"clip": (0.06, 0.1)}, {"clip": (0.05, 0.12)}, {"clip": (0.1, 0.05)}, {"ratio": "sequence"}, {"beta": 0.0},
    {"beta": 0.11}, {"correction": "off"}, {"correction": "token_mask"}, {"correction": "sequence_truncate"},
    {"correction": "sequence_mask"}, {"cap": 1.2}, {"floor": 0.95}, {"kl_ratio": False}, {"ratio_cap": 1.02},
    {"off_policy": 0.001},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_every_wrong_setting_is_seen(wrong: dict[str, Any]) -> None:
    right = PolicyLoss("grpo", (0.05, 0.1), beta=0.1, correction="token_truncate", cap=1.1, longest=LONGEST)
    found = [_by_hand(each, {}) for each in (right, replace(right, **wrong))]
    assert (found[0] - found[1]).abs().max() > 1e-4 * found[0].abs().max()


@pytest.mark.parametrize("what", ["old", "advantage", "weight", "row", "sampled", "reference"])
def test_every_wrong_fact_is_seen(what: str) -> None:
    chosen = PolicyLoss("dapo", (0.05, 0.1), "sequence", beta=0.1, correction="sequence_truncate", cap=1.5)
    right, wrong = _by_hand(chosen, {}), _by_hand(chosen, {what: lambda values: values.roll(1, 0)})
    assert (right - wrong).abs().max() > 1e-4 * right.abs().max()


def _by_hand(chosen: PolicyLoss, change: dict[str, Any]) -> torch.Tensor:
    """The gradient at the log-probabilities of 60 made-up targets, in 6 rows of 2 to 20."""
    draw = torch.Generator().manual_seed(1)
    row = torch.tensor([0] * 20 + [1] * 16 + [2] * 2 + [3] * 8 + [4] * 4 + [5] * 10)
    log_prob = (-2 + 0.3 * torch.randn(60, generator=draw)).requires_grad_()
    advantage = torch.randn(6, generator=draw)[row]
    weight = chosen.weights(torch.bincount(row).double(), 6, 60).float()[row]
    near = {name: log_prob.detach() + 0.1 * torch.randn(60, generator=draw) for name in ("old", "sampled", "reference")}
    facts = {"advantage": advantage, "weight": weight, "row": row, **near}
    if "weight" in change:
        facts["weight"] = facts["weight"] * torch.arange(60)
    facts = {name: change.get(name, lambda values: values)(values) for name, values in facts.items()}
    loss, _ = policy_loss(chosen, log_prob, torch.zeros(60), targets_of(facts, log_prob.detach()))
    loss.backward()
    assert log_prob.grad is not None
    return log_prob.grad


def test_invalid_rollouts_are_outside_of_every_mean() -> None:
    """The advantage and the weights of the others are those of a group without them."""
    with_invalid = advantages_of([[1.0], [NAN], [0.0], [3.0]], [1.0], 4, "group")
    without = advantages_of([[1.0], [0.0], [3.0]], [1.0], 3, "group")
    assert with_invalid.advantage_N[[0, 2, 3]].tolist() == pytest.approx(without.advantage_N.tolist(), abs=1e-12)
    assert with_invalid.advantage_N[1] == 0
    tokens = torch.tensor([5.0, 0.0, 2.0, 1.0])
    for loss, wanted in (
        ("grpo", [1 / 15, 1 / 3, 1 / 6, 1 / 3]),
        ("dapo", [1 / 8] * 4),
        ("dr_grpo", [1 / 30] * 4),
        ("luspo", [1 / 3] * 4),
    ):
        chosen = PolicyLoss(loss, longest=10)  # pyright: ignore[reportArgumentType]
        assert chosen.weights(tokens, 3, 8).tolist() == pytest.approx(wanted)


def test_scales_and_dead_groups() -> None:
    scores = [[1.0], [0.0], [2.0], [2.0]]
    plain = advantages_of(scores, [1.0], 2, "none")
    assert plain.advantage_N.tolist() == [0.5, -0.5, 0, 0]
    assert plain.dead == 0.5
    batch = advantages_of(scores, [1.0], 2, "batch")
    assert batch.advantage_N.tolist() == pytest.approx([0.5 / (0.957427 + 1e-4), -0.5 / (0.957427 + 1e-4), 0, 0], 1e-5)
    assert live_groups(plain, 2, 5).tolist() == [0]


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=6), st.integers(2, 3))
def test_the_other_estimators_are_those_of_their_papers(rewards: list[float], group: int) -> None:
    """RLOO (equation 3 of its paper): reward less the mean of the other samples. REINFORCE++-baseline: the reward less
    its group's mean, normalised over the batch."""
    rloo = advantages_of([[r] for r in rewards], [1.0], group, "none", "leave_one_out").advantage_N.tolist()
    groups = [rewards[i : i + group] for i in range(0, 6, group)]
    others = [r - (sum(each) - r) / (group - 1) for each in groups for r in each]
    assert rloo == pytest.approx(others, abs=1e-9)
    centred = torch.tensor([r - sum(each) / group for each in groups for r in each], dtype=torch.float64)
    white = advantages_of([[r] for r in rewards], [1.0], group, "whitened").advantage_N
    wanted = (centred - centred.mean()) / (centred.std() + 1e-4)
    torch.testing.assert_close(white, wanted, atol=1e-9, rtol=1e-9)


def test_dynamic_sampling_takes_the_first_groups_that_differ_and_drops_the_rest() -> None:
    scores = [[1.0], [1.0], [0.0], [1.0], [NAN], [1.0], [2.0], [0.0], [5.0], [1.0]]
    worth = advantages_of(scores, [1.0], 2)
    assert live_groups(worth, 2, 2).tolist() == [1, 3]
    assert live_groups(worth, 2, 9).tolist() == [1, 3, 4]


def test_ratios_to_what_sampled_are_clipped_and_not_corrected_besides() -> None:
    """At weights that begin the step, the ratio to which is 1 and clips nothing."""
    now_T = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    sampled_T = torch.tensor([-1.5, -1.1, float("nan"), -0.4])
    advantage_T, row_T = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([0, 0, 0, 1])
    targets = Targets(advantage_T, torch.full((4,), 0.25), row_T, 2, now_T.detach(), sampled_T)
    chosen = PolicyLoss("grpo", (0.2, 0.2), correction="sequence_mask", to_sampled=True)
    loss, measures = policy_loss(chosen, now_T, torch.zeros(4), targets)
    assert float(loss) == pytest.approx(-(1.2 + math.exp(0.1) + 1 - 0.8) / 4)
    loss.backward()
    assert now_T.grad is not None
    assert now_T.grad.tolist() == pytest.approx([0, -math.exp(0.1) / 4, -0.25, 0])
    assert measures.means["clip_ratio/region_mean"].tolist() == [2, 4]
    assert measures.means["sampling/sampling_logp_difference/mean"].tolist() == pytest.approx([0.5 + 0.1 + 0.6, 3])
    decoupled = policy_loss(replace(chosen, to_sampled=False, correction="off"), now_T, torch.zeros(4), targets)[1]
    assert decoupled.means["clip_ratio/region_mean"].tolist() == [0, 4]


def test_measures_add_up_over_micro_batches_and_processes() -> None:
    one = Measures({"a": torch.tensor([3.0, 2.0])}, {"l": torch.tensor(4.0)}, {"m": torch.tensor(1.0)}, torch.tensor(1))
    other = Measures(
        {"a": torch.tensor([1.0, 6.0]), "none": torch.zeros(2)}, {"l": torch.tensor(2.0)}, {}, torch.tensor(0)
    )
    mine, theirs = StepMetrics(), StepMetrics()
    mine.add(one)
    theirs.add(other)
    total = mine.of_all(lambda found: [*found, (theirs.means, theirs.least, theirs.most, theirs.acting)])
    assert total.values() == {"a": 0.5, "l": 2.0, "m": 1.0}
    assert total.acting == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("truncation", [None, Truncation(0.7, 30, 1e-3)])
def test_log_probabilities_and_entropies_are_those_of_all_logits(
    dtype: torch.dtype, truncation: Truncation | None
) -> None:
    from unittest.mock import patch

    from counterpoint.train.loop import head

    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(13, 8, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(40, 8, generator=draw).to(dtype).requires_grad_()
    target = torch.randint(0, 40, (13,), generator=draw)
    a, b = torch.randn(13, generator=draw), torch.randn(13, generator=draw)
    wide = torch.promote_types(dtype, torch.float32)
    logits = hidden.to(wide) @ weight.to(wide).T / TEMPERATURE
    if truncation is not None:
        kept = (truncation.cut_(logits.detach().clone()).softmax(-1) > 0).scatter(1, target[:, None], True)
        assert 0 < int(kept.sum()) < kept.numel() / 2
        logits = logits.masked_fill(~kept, -1e9)
    every = torch.log_softmax(logits, -1)
    wanted = every.gather(1, target[:, None])[:, 0], -(every.exp() * every).sum(1)
    ((wanted[0] * a).sum() + (wanted[1] * b).sum()).backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    gradients_of = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    with patch.dict(head.LOGIT_BYTES, cpu=5 * 40 * 4):
        found = target_log_probs(hidden, weight, target, TEMPERATURE, truncation)
        ((found[0] * a).sum() + (found[1] * b).sum()).backward()
    close = 1e-9 if dtype == torch.float64 else 1e-5
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=close, atol=close)
    close = 1e-9 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 2e-2
    assert hidden.grad is not None
    assert weight.grad is not None
    torch.testing.assert_close(hidden.grad, gradients_of[0], rtol=close, atol=close)
    torch.testing.assert_close(weight.grad, gradients_of[1], rtol=close, atol=close)
