"""Rollouts by another engine: it follows the weights, and its probabilities are corrected for, number by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.reward_section import ChannelReward
from counterpoint.configs.schema import GrpoRun
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import STOP_IDS
from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.sample import Sampled, Sampler, inference
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
        hot = temperature * self.factor
        found = Sampler(self.loaded).sample(prompts, max_new_tokens, hot, seed, stop_ids)
        pairs = zip(prompts, found, strict=True)
        return [replace(s, logprobs=logps(self.loaded, prompt, s.ids, hot).tolist()) for prompt, s in pairs]


def trainer_of(tmp_path: Path, factor: float, **rollout: Any) -> tuple[RewardTrainer, Rollouts, StandIn]:
    torch.manual_seed(0)
    settings = GrpoRun.model_validate(
        {
            "recipe": "grpo",
            "data": {"train": {"type": "arithmetic"}},
            "lora": {"rank": 4},
            "rollout": {"temperature": TEMPERATURE, "action_tokens": 8, "completion_tokens": 8, **rollout},
            "rewards": [{"type": "channel"}],
            "grpo": {"group": GROUP},
            "train": {"steps": 2, "batch_rows": GROUP, "device": "cpu"},
        }
    )
    loaded = random_tiny()
    loaded = loaded.with_model(attach_lora(loaded.model, settings.lora))
    renderer, stand_in = Renderer(loaded.vocabulary, RenderSettings(serving="sampled")), StandIn(loaded, factor)
    prompt = EvalPrompt("one", Conversation((Message("user", "6 times 7?"),)), Reference(answer="42"), "number")
    rewards = Rewards([ChannelReward(type="channel")])
    rollouts = Rollouts(
        items_of([prompt], renderer), renderer, FollowingEngine(tmp_path / "engine", stand_in), rewards,
        EpisodeLimits(8, 8), TEMPERATURE, GROUP, 0,
    )  # fmt: skip
    identity, loop = Identity({}, "data", GROUP), LoopSettings(tmp_path / "checkpoints")
    return RewardTrainer(loaded, grpo_arguments(settings, tmp_path, 2), rollouts, loop, identity), rollouts, stand_in


def scored(trainer: RewardTrainer) -> dict[str, torch.Tensor]:
    trainer.current_gradient_accumulation_steps = 1
    trainer.base.train()
    return trainer._generate_and_score_completions([{"prompt": "0"} for _ in range(GROUP)])


def metric(trainer: RewardTrainer, name: str) -> float:
    return trainer._metrics["train"][f"sampling/{name}"][-1]


def test_engines_that_agree_need_no_correction(tmp_path: Path) -> None:
    trainer, _, stand_in = trainer_of(tmp_path, 1.0, correction="token_truncate")
    batch = scored(trainer)
    assert batch["importance_sampling_ratio"] == pytest.approx(1.0, abs=1e-4)
    assert metric(trainer, "importance_sampling_ratio/mean") == pytest.approx(1, abs=1e-4)
    assert metric(trainer, "sampling_logp_difference/max") == pytest.approx(0, abs=1e-4)
    assert metric(trainer, "capped") == 0
    files = ["adapter_config.json", "adapter_model.safetensors"]
    assert stand_in.adapters == [("adapter-0", files)]
    scored(trainer)
    assert len(stand_in.adapters) == 1, "the same weights are handed over once"
    trainer.state.global_step = 1
    scored(trainer)
    assert stand_in.adapters == [("adapter-0", files), ("adapter-1", files)]
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["adapter-1"]


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_engines_that_differ_are_corrected_by_the_ratio(tmp_path: Path, correction: str) -> None:
    cap = 0.3 if correction.startswith("sequence") else 1.05
    trainer, _, stand_in = trainer_of(tmp_path, 1.5, correction=correction, correction_cap=cap)
    batch = scored(trainer)
    loaded, ids = stand_in.loaded, stand_in.loaded.vocabulary_map.ids
    sequence, capped, differences = correction.startswith("sequence"), [], []
    for b in range(GROUP):
        prompt = ids(batch["prompt_ids"][b][batch["prompt_mask"][b].bool()].numpy()).tolist()
        n = int(batch["completion_mask"][b].sum())
        sampled = ids(batch["completion_ids"][b][:n].numpy()).tolist()
        diff = logps(loaded, prompt, sampled, TEMPERATURE) - logps(loaded, prompt, sampled, 1.5 * TEMPERATURE)
        differences += diff.abs().tolist()
        ratio = (diff.sum() if sequence else diff).exp().reshape(-1)
        capped += (ratio > cap).tolist()
        wanted = ratio.clamp(max=cap) if "truncate" in correction else ratio.where(ratio <= cap, 0.0)
        found = batch["importance_sampling_ratio"][b]
        assert found[: len(wanted)].tolist() == pytest.approx(wanted.tolist(), abs=1e-4)
    assert 0 < sum(capped) < len(capped)
    assert metric(trainer, "capped") == pytest.approx(sum(capped) / len(capped))
    assert metric(trainer, "sampling_logp_difference/mean") == pytest.approx(
        sum(differences) / len(differences), abs=1e-4
    )


def test_the_correction_weighs_the_loss_and_can_be_off(tmp_path: Path) -> None:
    losses = {}
    for correction in ("off", "token_truncate"):
        trainer, _, _ = trainer_of(tmp_path, 1.5, correction=correction)
        batch = scored(trainer)
        batch["advantages"] = torch.tensor([1.0, -1.0, 2.0, 0.5])
        losses[correction] = trainer._compute_loss(trainer.model, batch).item()
        if correction == "off":
            assert "importance_sampling_ratio" not in batch
            weights = torch.ones(())
        else:
            weights = batch["importance_sampling_ratio"]
        mask = batch["completion_mask"].float()
        plain = -(batch["advantages"][:, None] * weights * mask).sum() / mask.sum()
        assert losses[correction] == pytest.approx(plain.item(), abs=1e-5)
    assert losses["off"] != pytest.approx(losses["token_truncate"], abs=1e-3)
