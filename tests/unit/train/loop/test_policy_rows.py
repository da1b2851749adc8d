"""Rollouts as tree rows: what they share stands once, every target is its own, and the loss is that of each row alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.layout.collate import Collator
from counterpoint.train.loop.head import target_hidden
from counterpoint.train.loop.log_probs import target_log_probs
from counterpoint.train.loop.policy_loss import PolicyLoss, policy_loss
from counterpoint.train.loop.policy_rows import PolicyRow, filling, micro_batches, targets_of
from counterpoint.train.loop.step_order import StepOrder
from counterpoint.train.model.expert_routes import UNKNOWN
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.rollout import SampledRow

IDS = st.lists(st.integers(1, 3), min_size=1, max_size=6)


def row(prompt: list[int], completion: list[int], mask: list[int] | None = None) -> SampledRow:
    told = [-float(i) for i in range(len(completion))]
    routes = np.array([expert(*each) for each in enumerate([*prompt, *completion][:-1])], dtype=np.uint8)
    return SampledRow(prompt, completion, mask or [1] * len(completion), told, routes.reshape(-1, 1, 2))


def expert(position: int, id_: int) -> tuple[int, int]:
    return position % 100, 100 + id_ % 100


@settings(max_examples=150, deadline=None)
@given(data=st.data(), budget=st.integers(4, 60))
def test_every_sampled_token_is_a_target_once_with_what_is_its_own(data: Any, budget: int) -> None:
    """Ids of three letters, so that beginnings are shared by chance as well; several rows of a rollout."""
    group = data.draw(st.integers(1, 3))
    rows: list[PolicyRow] = []
    for number in range(group * data.draw(st.integers(1, 3))):
        for _ in range(data.draw(st.integers(0, 2))):
            completion = data.draw(IDS)
            mask = data.draw(st.lists(st.integers(0, 1), min_size=len(completion), max_size=len(completion)))
            rows.append(PolicyRow(number, row(data.draw(IDS), completion, mask)))
    n = max([each.rollout for each in rows], default=0) + 1
    advantages, weights = [float(k + 1) for k in range(n)], [1 / (k + 1) for k in range(n)]
    batches = micro_batches(rows, advantages, weights, group, budget, Collator())
    found = []
    for batch in batches:
        tokens = int(batch["input_ids"].shape[1])
        assert tokens <= budget or len(batch["row"].unique()) == 1
        facts = zip(batch["position_ids"][0].tolist(), batch["input_ids"][0].tolist(), strict=True)
        unknown = batch["routes"][:, 0, 0] == UNKNOWN
        wanted_S2 = torch.tensor([expert(*each) for each in facts])
        assert torch.equal(batch["routes"][:, 0].where(~unknown[:, None], wanted_S2).long(), wanted_S2)
        assert int(unknown.sum()) <= len(batch["row"].unique())
        assert batch["conflicts"][0] == 0
        for number in batch["row"].unique():
            of_row = batch["row"] == number
            facts = [batch[name][of_row].tolist() for name in ("target_ids", "advantage", "weight", "sampled")]
            found.append((tuple(facts[0]), facts[1][0], pytest.approx(facts[2][0]), tuple(facts[3])))
            assert len(set(facts[1])) == len(set(facts[2])) == 1
    wanted = []
    for each in rows:
        kept = [i for i, sampled in enumerate(each.row.env_mask) if sampled]
        if kept:
            ids = tuple(each.row.completion_ids[i] for i in kept)
            wanted.append((ids, advantages[each.rollout], weights[each.rollout], tuple(-float(i) for i in kept)))
    order = lambda facts: (facts[0], facts[1], facts[3])  # noqa: E731
    assert sorted(found, key=order) == sorted(wanted, key=order)


def test_a_group_s_prompt_and_common_beginnings_stand_once() -> None:
    prompt = list(range(1, 51))
    said = [[60, 61, 62, 63], [60, 61, 70], [80], [60, 61, 62, 63]]
    rows = [PolicyRow(n, row(prompt, each)) for n, each in enumerate(said)]
    (batch,) = micro_batches(rows, [1.0] * 4, [1.0] * 4, 4, 1000, Collator())
    assert batch["input_ids"].shape == (1, 50 + 4 + 1 + 1)
    assert len(batch["target_ids"]) == 4 + 3 + 1 + 4
    assert len(micro_batches(rows, [1.0] * 4, [1.0] * 4, 4, 55, Collator())) == 2


def test_several_prompts_of_a_rollout_are_learned_as_each_alone() -> None:
    """Two rollouts of one and of three rows, packed, against a float64 pass of each prompt and completion."""
    loaded = random_tiny()
    model: Any = loaded.model.double()
    model.config._experts_implementation = "eager"
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        places = torch.randint(1, loaded.vocabulary_map.n_rows, (n,), generator=draw).numpy()
        return loaded.vocabulary_map.ids(places).tolist()

    start = ids(20)
    first = row(start, ids(9), [1] * 4 + [0] * 3 + [1] * 2)
    second = row([*start, *first.completion_ids[5:], *ids(6)], ids(7))
    third = row([*second.prompt_ids, *second.completion_ids[2:], *ids(4)], ids(3))
    rows = [PolicyRow(0, row(start, ids(5))), *(PolicyRow(1, each) for each in (first, second, third))]
    advantages, n_sampled = [0.7, -1.2], [5, 6 + 7 + 3]
    for chosen in (PolicyLoss("grpo"), PolicyLoss("dapo"), PolicyLoss("grpo", ratio="sequence")):
        weights = chosen.weights(torch.tensor(n_sampled, dtype=torch.float64), 2, sum(n_sampled)).tolist()
        batches = micro_batches(rows, advantages, weights, 2, 200, Collator(loaded.vocabulary_map.rows))
        assert len(batches) == 1
        assert batches[0]["input_ids"].numel() < sum(len(r.row.prompt_ids) + len(r.row.completion_ids) for r in rows)
        old, wanted = [], torch.zeros((), dtype=torch.float64)
        for each in rows:
            whole = torch.from_numpy(loaded.vocabulary_map.rows([*each.row.prompt_ids, *each.row.completion_ids]))[None]
            context = len(each.row.prompt_ids)
            every = model(input_ids=whole).logits[0, context - 1 : -1].log_softmax(-1)
            mask = torch.tensor(each.row.env_mask, dtype=torch.bool)
            own = every.gather(1, whole[0, context:, None])[mask, 0]
            before = own.detach() + torch.linspace(-0.1, 0.3, len(own))
            old.append(before)
            log_ratio = own - before
            ratio = log_ratio.exp() if chosen.ratio == "token" else log_ratio.mean().exp().expand(len(own))
            advantage, weight = advantages[each.rollout], weights[each.rollout]
            wanted = wanted - (torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * weight).sum()
        model.zero_grad()
        wanted.backward()
        gradient = model.model.embed_tokens.weight.grad.clone()
        model.zero_grad()
        batch = {**batches[0], "old": torch.cat(old)}
        hidden, weight_VH = target_hidden(model, model, dict(batch))
        log_prob, entropy = target_log_probs(hidden, weight_VH, batch["target_ids"])
        loss, _ = policy_loss(chosen, log_prob, entropy, targets_of(batch, log_prob.detach()))
        loss.backward()
        assert float(loss) == pytest.approx(float(wanted), abs=1e-6)
        torch.testing.assert_close(model.model.embed_tokens.weight.grad, gradient, rtol=1e-5, atol=1e-7)


def test_a_filling_micro_batch_weighs_nothing() -> None:
    batch = filling(Collator(), [5, 6, 7])
    assert batch["input_ids"].tolist() == [[5, 5]]
    assert (batch["weight"].tolist(), batch["advantage"].tolist()) == ([0.0], [0.0])
    known = torch.tensor([-3.0]), torch.tensor([2.0])
    for chosen in (PolicyLoss(), PolicyLoss("vespo"), PolicyLoss("cispo", ratio="sequence", off_policy=0.1)):
        loss, measures = policy_loss(chosen, *known, targets_of(batch, known[0] - 1))
        assert (float(loss), int(measures.acting)) == (0.0, 0)
        assert all(each.tolist() == [0.0, 0.0] for each in measures.means.values())


@given(items=st.integers(1, 40), groups=st.integers(1, 8), seed=st.integers(0, 3))
def test_an_epoch_takes_items_once_and_a_step_knows_its_own(items: int, groups: int, seed: int) -> None:
    groups = min(groups, items)
    order = StepOrder(items, groups, seed)
    for epoch in range(2):
        taken = [order.of(epoch * order.steps + step) for step in range(order.steps)]
        numbers = [number for found, _ in taken for number in found]
        assert len(numbers) == len(set(numbers)) == order.steps * groups
        assert {each for _, each in taken} == {epoch}
    assert StepOrder(items, groups, seed, shuffle=False).of(0)[0] == list(range(groups))


def test_what_rollouts_share_goes_where_the_first_of_them_sent_it() -> None:
    """The order of a token's experts is no difference, and a rollout without routes has no say."""
    first, later, silent = (SampledRow([1, 2, 3], [n, 5], [1, 1]) for n in (4, 6, 7))
    told = np.arange(8, dtype=np.uint8).reshape(4, 1, 2)
    other = told[..., ::-1].copy()
    other[1] = 9
    rows = [replace(first, routes=told), replace(later, routes=other), silent]
    (batch,) = micro_batches([PolicyRow(n, row) for n, row in enumerate(rows)], [1.0] * 3, [1.0] * 3, 3, 99, Collator())
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 5, 7, 5]]
    assert batch["routes"][:, 0].tolist() == [*told[:, 0].tolist(), [-1, -1], other[3, 0].tolist(), *[[-1, -1]] * 3]
    assert batch["conflicts"].tolist() == [1, 3]
    (none,) = micro_batches([PolicyRow(0, silent)], [1.0], [1.0], 1, 99, Collator())
    assert not {"routes", "conflicts"} & set(none)
