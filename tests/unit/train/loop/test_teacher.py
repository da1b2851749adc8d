"""The teacher's part of the advantages, number by number, and its gradient: that of the reverse divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from counterpoint.configs.reward_section import ChannelReward
from counterpoint.configs.rl_section import GrpoSettings, TeacherSettings
from counterpoint.configs.schema import GrpoRun, ModelSettings
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments
from counterpoint.train.loop.teacher import Teacher, load_teacher
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.model.vocabulary_map import VocabularyMap
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

TEMPERATURE, GROUP, WEIGHT = 0.8, 4, 0.5
SAID = ["<|channel|>final<|message|>12<|return|>", "<|channel|>analysis<|message|>1 + 1<|end|>", "7", "<|return|>"]


def logps(loaded: LoadedModel, ids: list[int], width: int) -> torch.Tensor:
    """Log-probabilities of the last `width` ids, by one plain forward pass."""
    rows = torch.from_numpy(loaded.vocabulary_map.rows(ids))[None]
    every = (loaded.model(input_ids=rows).logits[0] / TEMPERATURE).log_softmax(-1)
    return every[-width - 1 : -1].gather(1, rows[0, -width:, None])[:, 0]


def trainer_of(tmp_path: Path, teacher: Teacher, **grpo: Any) -> tuple[RewardTrainer, LoadedModel]:
    torch.manual_seed(0)
    settings = GrpoRun.model_validate(
        {
            "recipe": "grpo", "data": {"train": {"type": "arithmetic"}}, "lora": {"enabled": False},
            "rollout": {"temperature": TEMPERATURE}, "rewards": [{"type": "channel", "weight": 0}],
            "grpo": {"group": GROUP, "loss": "bnpo", "teacher": {"model": {}, "weight": WEIGHT}, **grpo},
            "train": {"steps": 2, "batch_rows": GROUP, "device": "cpu"},
        }
    )  # fmt: skip
    loaded = random_tiny()
    renderer = Renderer(loaded.vocabulary)
    prompt = EvalPrompt("one", Conversation((Message("user", "6 times 7?"),)), Reference(answer="42"), "number")
    rollouts = Rollouts(
        items_of([prompt], renderer), renderer, ScriptedEngine(loaded.vocabulary, SAID),
        Rewards([ChannelReward(type="channel", weight=0)]), EpisodeLimits(16, 16), TEMPERATURE, GROUP, 0,
    )  # fmt: skip
    identity, loop = Identity({}, "data", GROUP), LoopSettings(tmp_path / "checkpoints")
    arguments = grpo_arguments(settings, tmp_path, 2)
    share = settings.grpo.share_prompts
    trainer = RewardTrainer(loaded, arguments, rollouts, loop, identity, teacher=teacher, shared=share)
    trainer.current_gradient_accumulation_steps = 1
    trainer.base.train()
    return trainer, loaded


def batch_of(trainer: RewardTrainer) -> dict[str, torch.Tensor]:
    return trainer._generate_and_score_completions([{"prompt": "0"} for _ in range(GROUP)])


@pytest.mark.parametrize("share", ["always", "never"])
def test_each_token_s_advantage_is_what_the_teacher_thinks_of_it(tmp_path: Path, share: str) -> None:
    teacher = load_teacher(TeacherSettings(model=ModelSettings(), weight=WEIGHT), TEMPERATURE, torch.device("cpu"))
    trainer, loaded = trainer_of(tmp_path, teacher, share_prompts=share)
    batch = batch_of(trainer)
    every = []
    with torch.no_grad():
        for b in range(GROUP):
            n = int(batch["completion_mask"][b].sum())
            rows = [*batch["prompt_ids"][b][batch["prompt_mask"][b].bool()], *batch["completion_ids"][b][:n]]
            ids = loaded.vocabulary_map.ids([int(row) for row in rows]).tolist()
            gap = logps(teacher.loaded, ids, n) - logps(loaded, ids, n)
            assert batch["advantages"][b, :n].tolist() == pytest.approx((WEIGHT * gap).tolist(), abs=1e-4)
            assert not batch["advantages"][b, n:].any()
            every += gap.tolist()
    assert trainer._metrics["train"]["teacher/reverse_kl"][-1] == pytest.approx(-sum(every) / len(every), abs=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_its_gradient_is_that_of_the_sampled_reverse_divergence(tmp_path: Path) -> None:
    teacher = load_teacher(TeacherSettings(model=ModelSettings(), weight=WEIGHT), TEMPERATURE, torch.device("cpu"))
    trainer, loaded = trainer_of(tmp_path, teacher)
    batch = batch_of(trainer)
    loaded.model.zero_grad()
    trainer._compute_loss(trainer.model, batch).backward()
    name, found = next((n, p.grad.clone()) for n, p in loaded.model.named_parameters() if p.grad is not None)
    loaded.model.zero_grad()
    total, count = torch.zeros(()), 0
    for b in range(GROUP):
        n = int(batch["completion_mask"][b].sum())
        rows = [*batch["prompt_ids"][b][batch["prompt_mask"][b].bool()], *batch["completion_ids"][b][:n]]
        ids = loaded.vocabulary_map.ids([int(row) for row in rows]).tolist()
        with torch.no_grad():
            its = logps(teacher.loaded, ids, n)
        own = logps(loaded, ids, n)
        # The score-function estimate of the divergence's gradient: (log p_model - log p_teacher) times grad log p_model.
        total = total + ((own.detach() - its) * own).sum()
        count += n
    (WEIGHT * total / count).backward()
    wanted = dict(loaded.model.named_parameters())[name].grad
    assert wanted is not None
    assert found.abs().max() > 1e-6
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_teacher_that_is_the_model_teaches_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    twin = random_tiny()
    teacher = load_teacher(TeacherSettings(model=ModelSettings(), weight=1.0), TEMPERATURE, torch.device("cpu"))
    teacher.model.load_state_dict(twin.model.state_dict())
    trainer, loaded = trainer_of(tmp_path, teacher)
    loaded.model.load_state_dict(twin.model.state_dict())
    assert batch_of(trainer)["advantages"].abs().max() < 1e-4


def test_the_teacher_s_rows_are_found_by_real_ids() -> None:
    student, other = random_tiny(), random_tiny()
    ids = student.vocabulary_map.ids(list(range(1, student.vocabulary_map.n_rows)))
    shifted = LoadedModel(other.model, other.vocabulary, VocabularyMap.from_ids(ids.tolist()), "other")
    rows = torch.tensor([[1, 5], [9, 2]])
    assert Teacher(shifted, 1.0).rows(rows, student).tolist() == [[0, 4], [8, 1]]


def test_settings_that_rate_whole_sequences_take_no_teacher() -> None:
    for wrong in ({"loss": "vespo"}, {"ratio": "sequence"}):
        with pytest.raises(ValidationError, match="`teacher` rates tokens"):
            GrpoSettings.model_validate({"teacher": {"model": {}}, **wrong})
