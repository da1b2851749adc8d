"""The teacher's part of the advantages, number by number, and its gradient: that of the reverse divergence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from counterpoint.configs.errors import ConfigError, RunError
from counterpoint.configs.reward_section import ChannelReward
from counterpoint.configs.rl_section import GrpoSettings, TeacherServerSettings, TeacherSettings
from counterpoint.configs.schema import GrpoRun, ModelSettings
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.endpoint.completions import Completions
from counterpoint.train.endpoint.server import ChatServer
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments, policy_settings
from counterpoint.train.loop.teacher import Teacher, load_teacher
from counterpoint.train.loop.teacher_server import TeacherServer
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.model.vocabulary_map import VocabularyMap
from counterpoint.train.sampling.sample import Sampler
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.sampling.server import KEY_VARIABLE
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


def trainer_of(
    tmp_path: Path, teacher: Teacher | TeacherServer, temperature: float = TEMPERATURE, **grpo: Any
) -> tuple[RewardTrainer, LoadedModel]:
    torch.manual_seed(0)
    settings = GrpoRun.model_validate(
        {
            "recipe": "grpo", "data": {"train": {"type": "arithmetic"}}, "lora": {"enabled": False},
            "rollout": {"temperature": temperature}, "rewards": [{"type": "channel", "weight": 0}],
            "grpo": {"group": GROUP, "loss": "bnpo", "teacher": {"model": {}, "weight": WEIGHT}, **grpo},
            "train": {"steps": 2, "batch_rows": GROUP, "device": "cpu"},
        }
    )  # fmt: skip
    loaded = random_tiny()
    renderer = Renderer(loaded.vocabulary)
    prompt = EvalPrompt("one", Conversation((Message("user", "6 times 7?"),)), Reference(answer="42"), "number")
    rollouts = Rollouts(
        items_of([prompt], renderer), renderer, ScriptedEngine(loaded.vocabulary, SAID),
        Rewards([ChannelReward(type="channel", weight=0)]), EpisodeLimits(16, 16), temperature, GROUP, 0,
    )  # fmt: skip
    identity, loop = Identity({}, "data", GROUP), LoopSettings(tmp_path / "checkpoints")
    arguments, policy = grpo_arguments(settings, tmp_path, 2), policy_settings(settings, 1)
    trainer = RewardTrainer(loaded, arguments, rollouts, policy, loop, identity, teacher=teacher)
    trainer.base.train()
    return trainer, loaded


def completions_of(loaded: LoadedModel) -> list[tuple[list[int], int]]:
    """(prompt and completion, tokens of the completion) of each rollout."""
    asked = Conversation((Message("user", "6 times 7?"),))
    prompt = Renderer(loaded.vocabulary).prompt(asked)
    said = [loaded.vocabulary.encode_with_specials(text) for text in SAID]
    return [([*prompt, *each], len(each)) for each in said]


def step(trainer: RewardTrainer, loaded: LoadedModel) -> None:
    loaded.model.zero_grad()
    trainer.training_step(trainer.model, {})  # pyright: ignore[reportArgumentType]


def test_its_gradient_is_that_of_the_sampled_reverse_divergence(tmp_path: Path) -> None:
    teacher = load_teacher(TeacherSettings(model=ModelSettings(), weight=WEIGHT), torch.device("cpu"))
    trainer, loaded = trainer_of(tmp_path, teacher)
    step(trainer, loaded)
    found = {name: p.grad.clone() for name, p in loaded.model.named_parameters() if p.grad is not None}
    loaded.model.zero_grad()
    total, count, gaps = torch.zeros(()), 0, 0.0
    for ids, n in completions_of(loaded):
        with torch.no_grad():
            its = logps(teacher.loaded, ids, n)
        own = logps(loaded, ids, n)
        # The score-function estimate of the divergence's gradient: (log p_model - log p_teacher) times grad log p_model.
        total = total + ((own.detach() - its) * own).sum()
        gaps += float((own.detach() - its).sum())
        count += n
    (WEIGHT * total / count).backward()
    assert trainer._metrics["teacher/reverse_kl"][-1] == pytest.approx(gaps / count, abs=1e-4)
    wanted = {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-6, name
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_teacher_that_is_the_model_teaches_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    twin = random_tiny()
    teacher = load_teacher(TeacherSettings(model=ModelSettings(), weight=1.0), torch.device("cpu"))
    teacher.model.load_state_dict(twin.model.state_dict())
    trainer, loaded = trainer_of(tmp_path, teacher)
    loaded.model.load_state_dict(twin.model.state_dict())
    step(trainer, loaded)
    assert all(float(p.grad.norm()) < 1e-4 for p in loaded.model.parameters() if p.grad is not None)


def test_behind_a_server_it_says_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP, through the project's own server: the same metrics and gradients, by one request a row."""
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    teacher = load_teacher(TeacherSettings(model=ModelSettings(), weight=WEIGHT), torch.device("cpu"))
    raw = Completions(Sampler(teacher.loaded), 16)
    with ChatServer(lambda name: None, "tiny", "sesame", completions=raw.answer) as server:
        behind = TeacherServer(TeacherServerSettings(url=f"{server.root}/v1", parallel=2), WEIGHT)
        behind.check()
        found = []
        for each in (teacher, behind):
            trainer, loaded = trainer_of(tmp_path, each, 1.0)
            step(trainer, loaded)
            gradients = {name: p.grad for name, p in loaded.model.named_parameters() if p.grad is not None}
            found.append((trainer._metrics["teacher/reverse_kl"][-1], gradients))
        asked = behind._server.requests
    assert asked == 2 + len(SAID)
    (near, here), (far, there) = found
    assert far == pytest.approx(near, abs=1e-5)
    assert abs(near) > 0.1
    assert set(here) == set(there)
    for name, gradient in here.items():
        torch.testing.assert_close(there[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"decoded_token": "x"}, ConfigError, r"another vocabulary: token \d+ is 'x' at http.*gpt-oss"),
        ({"logprob": None}, RunError, "does not say how likely given tokens are"),
        (None, RunError, "HTTP 404"),
    ],
)
def test_a_server_that_is_no_teacher_is_told(
    change: Any, error: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k")

    def answer(body: dict[str, Any], model: str) -> dict[str, Any]:
        scores = [{str(id_): {"logprob": -1.0, **change}} for id_ in body["prompt"]]
        return {"choices": [{"prompt_logprobs": [None, *scores[1:]]}]}

    with ChatServer(lambda name: None, "m", "k", completions=None if change is None else answer) as server:
        url = f"{server.root}/v1" if change is not None else f"{server.root}/v2"
        teacher = TeacherServer(TeacherServerSettings(url=url, model="m", retries=0), 1.0)
        with pytest.raises(error, match=told):
            teacher.check()


def test_behind_a_server_it_rates_at_temperature_1() -> None:
    run: dict[str, Any] = {
        "recipe": "grpo", "data": {"train": {"type": "arithmetic"}}, "rewards": [{"type": "channel"}],
        "train": {"batch_rows": 8}, "grpo": {"teacher": {"server": {}}},
    }  # fmt: skip
    assert GrpoRun.model_validate(run).grpo.teacher
    with pytest.raises(ValidationError, match=r"at temperature 1, and `rollout.temperature` is 0.8: set it to 1"):
        GrpoRun.model_validate({**run, "rollout": {"temperature": 0.8}})
    for both in ({}, {"model": {}, "server": {}}):
        with pytest.raises(ValidationError, match="name one of them"):
            TeacherSettings.model_validate(both)


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
