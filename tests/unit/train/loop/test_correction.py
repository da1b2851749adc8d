"""Rollouts by another engine: it follows the weights, and its probabilities are corrected for, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.advantages import advantages_of
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments, policy_settings
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.expert_routes import routers_of
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.rollout import SampledRow
from counterpoint.train.sampling.sample import Sampled, Sampler, inference
from counterpoint.train.sampling.truncation import Truncation
from counterpoint.train.sampling.weight_sync import FollowingEngine
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

TEMPERATURE, GROUP = 0.7, 4


def logps(loaded: LoadedModel, prompt: Sequence[int], ids: Sequence[int], temperature: float) -> torch.Tensor:
    """Log-probability of each of `ids`, by one plain forward pass."""
    rows = torch.from_numpy(loaded.vocabulary_map.rows([*prompt, *ids]))[None]
    with inference(loaded.model):
        all_of_them = (loaded.model(input_ids=rows).logits[0] / temperature).log_softmax(-1)
    return all_of_them[len(prompt) - 1 : -1].gather(1, rows[0, len(prompt) :, None])[:, 0]


@dataclass
class StandIn:
    """Samples from the same model at `factor` times the temperature, and says with which probabilities."""

    loaded: LoadedModel
    factor: float
    truncation: Truncation
    lead: float = 0.0
    adapters: list[tuple[str, list[str]]] = field(default_factory=list)

    def load_adapter(self, folder: Path, version: int, lead: bool = True) -> None:
        self.adapters.append((folder.name, sorted(path.name for path in folder.iterdir())))

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | Sequence[int] = 0,
        stop_ids: Sequence[int] = STOP_IDS,
    ) -> list[Sampled]:
        sampler = Sampler(self.loaded, truncation=self.truncation, logprobs=True, routes=bool(self.lead))
        hooks = [each.register_forward_hook(self.elsewhere) for each in routers_of(self.loaded.model) if self.lead]
        try:
            return sampler.sample(prompts, max_new_tokens, temperature * self.factor, seed, stop_ids)
        finally:
            for hook in hooks:
                hook.remove()

    def elsewhere(self, router: Any, args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        """Picks by logits that are disturbed, the same for one token, and weighs as the router does."""
        logits, _, own = output
        picks = (logits + self.lead * (logits * 1e4).sin()).topk(own.shape[1]).indices
        return logits, logits.gather(1, picks).softmax(-1), picks


def trainer_of(tmp_path: Path, factor: float, lead: float = 0.0, **rollout: Any) -> tuple[RewardTrainer, StandIn]:
    torch.manual_seed(0)
    settings = GrpoRun.model_validate(
        {
            "recipe": "grpo",
            "model": {"name": "openai/gpt-oss-20b"},
            "data": {"train": {"type": "arithmetic"}},
            "lora": {"rank": 4},
            "rollout": {"temperature": TEMPERATURE, "action_tokens": 8, "completion_tokens": 8, **rollout},
            "rewards": [{"type": "function", "function": f"{tmp_path / 'reward.py'}:odd"}],
            "grpo": {"group": GROUP},
            "train": {"steps": 2, "batch_rows": GROUP, "device": "cpu", "activation_checkpointing": True},
        }
    )
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "reward.py").write_text("def odd(r):\n    return sum(i % 2 for i in r.completion.ids) / 8\n")
    loaded = random_tiny()
    loaded = loaded.with_model(attach_lora(loaded.model, settings.lora))
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    stand_in = StandIn(loaded, factor, Truncation.of(settings.rollout), lead)
    prompt = EvalPrompt("one", Conversation((Message("user", "6 times 7?"),)), Reference(answer="42"), "number")
    rollouts = Rollouts(
        items_of([prompt], renderer), renderer, FollowingEngine(tmp_path / "engine", stand_in),
        Rewards(settings.rewards), EpisodeLimits(8, 8), TEMPERATURE, GROUP, 0,
    )  # fmt: skip
    identity, loop = Identity({}, "data", GROUP), LoopSettings(tmp_path / "checkpoints")
    policy, args = policy_settings(settings, 1), grpo_arguments(settings, tmp_path, 2)
    return RewardTrainer(loaded, args, rollouts, policy, loop, identity), stand_in


def step(trainer: RewardTrainer) -> tuple[float, list[SampledRow]]:
    """The loss of a step, and what it was of."""
    seen: list[SampledRow] = []
    real = trainer.rollouts.__class__.__call__

    def watched(*args: Any) -> Any:
        found = real(*args)
        seen.extend(row for rows in found.rows for row in rows)
        return found

    with patch.object(trainer.rollouts.__class__, "__call__", watched):
        loss = float(trainer.training_step(trainer.model, {}))  # pyright: ignore[reportArgumentType]
    return loss, seen


def metric(trainer: RewardTrainer, name: str) -> float:
    return trainer._metrics[f"sampling/{name}"][-1]


@pytest.mark.parametrize("cut", [{}, {"top_p": 0.8, "top_k": 200, "min_p": 0.01}])
def test_engines_that_agree_need_no_correction(tmp_path: Path, cut: dict[str, Any]) -> None:
    """Of a truncated distribution as well, which is the one that is learned."""
    trainer, stand_in = trainer_of(tmp_path, 1.0, correction="token_truncate", **cut)
    step(trainer)
    for extreme in ("min", "mean", "max"):
        assert metric(trainer, f"importance_sampling_ratio/{extreme}") == pytest.approx(1, abs=1e-4)
    assert metric(trainer, "sampling_logp_difference/max") == pytest.approx(0, abs=1e-4)
    assert metric(trainer, "capped") == 0
    assert trainer.taught
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert stand_in.adapters == [("adapter-0", files)]
    trainer.state.global_step = 1
    step(trainer)
    assert stand_in.adapters == [("adapter-0", files), ("adapter-1", files)]
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["adapter-1"]


def test_tokens_go_where_they_went_when_they_were_sampled(tmp_path: Path) -> None:
    """The same weights, and a sampler that picks other experts: with its picks the gap is gone, without it is there."""
    trainer, _ = trainer_of(tmp_path, 1.0, 0.5, engine="server", routes="replay")
    step(trainer)
    without = trainer._metrics["routes/logp_difference_without"][-1]
    assert metric(trainer, "sampling_logp_difference/mean") < 1e-6 < 1e-2 < without
    assert 0.05 < trainer._metrics["routes/differing"][-1] < 0.9
    assert trainer._metrics["routes/conflicts"][-1] == 0
    assert trainer.taught
    off, _ = trainer_of(tmp_path / "off", 1.0, 0.5, engine="server")
    step(off)
    assert metric(off, "sampling_logp_difference/mean") == pytest.approx(without, rel=1e-4)
    assert not any(name.startswith("routes/") for name in off._metrics)


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask", "off"])
def test_engines_that_differ_are_corrected_by_the_ratio(tmp_path: Path, correction: str) -> None:
    cap = 0.3 if correction.startswith("sequence") else 1.05
    trainer, stand_in = trainer_of(tmp_path, 1.5, correction=correction, correction_cap=cap)
    loss, rows = step(trainer)
    assert len(rows) == GROUP
    scores = [[sum(i % 2 for i in row.completion_ids) / 8] for row in rows]
    advantages = advantages_of(scores, [1.0], GROUP, "group").advantage_N.tolist()
    sequence, capped, differences, total = correction.startswith("sequence"), [], [], 0.0
    for row, advantage in zip(rows, advantages, strict=True):
        own = logps(stand_in.loaded, row.prompt_ids, row.completion_ids, TEMPERATURE)
        diff = own - logps(stand_in.loaded, row.prompt_ids, row.completion_ids, 1.5 * TEMPERATURE)
        differences += diff.abs().tolist()
        ratio = (diff.sum() if sequence else diff).exp().reshape(-1)
        capped += (ratio > cap).tolist()
        cut = ratio.clamp(max=cap) if "truncate" in correction else ratio.where(ratio <= cap, 0.0)
        weights = torch.ones_like(own) if correction == "off" else cut.expand(len(own)) if sequence else cut
        total -= advantage * float(weights.sum())
    assert loss == pytest.approx(total / sum(len(row.completion_ids) for row in rows), abs=1e-4)
    assert metric(trainer, "sampling_logp_difference/mean") == pytest.approx(
        sum(differences) / len(differences), abs=1e-4
    )
    if correction != "off":
        assert 0 < sum(capped) < len(capped)
        assert metric(trainer, "capped") == pytest.approx(sum(capped) / len(capped))
