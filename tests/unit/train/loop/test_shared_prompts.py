"""A group's prompt computed once: the same log-probabilities, entropies and gradients as completion by completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.load import load_run
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.adapters.implementations import use_implementations
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.loop.grpo_items import items_of
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.grpo_trainer import RewardTrainer
from counterpoint.train.loop.rl_arguments import grpo_arguments
from counterpoint.train.loop.shared_prompts import IGNORED, share_prompts
from counterpoint.train.loop.training_arguments import loop_settings
from counterpoint.train.model.tiny import random_tiny
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Rewards
from counterpoint.train.scoring.scorers import Reference

PAD = 0


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of 50 and 9 tokens, three and two completions of them, mixed; one completion is empty."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 1000, (n,), generator=draw) for n in (50, 9)]
    completions = [torch.randint(1, 1000, (n,), generator=draw) for n in (40, 3, 17, 1, 0)]
    ids, mask = torch.full((5, 90), PAD), torch.zeros(5, 90, dtype=torch.long)
    for b, (prompt, completion) in enumerate(zip((0, 1, 0, 1, 0), completions, strict=True)):
        own = torch.cat([prompts[prompt], completion])
        first = 50 - len(prompts[prompt])
        ids[b, first : first + len(own)], mask[b, first : first + len(own)] = own, 1
    return ids, mask


def trainer_of(folder: Path, **model: str) -> RewardTrainer:
    settings: Any = load_run("grpo/tiny_sums", [f"model.{key}={value}" for key, value in model.items()])
    loaded = random_tiny(seed=3)
    use_implementations(loaded.model, settings.model)
    renderer = Renderer(loaded.vocabulary, RenderSettings(serving="sampled"))
    prompt = EvalPrompt("one", Conversation((Message("user", "?"),)), Reference(answer="1"), "number")
    rollouts = Rollouts(
        items_of([prompt], renderer),
        renderer,
        ScriptedEngine(loaded.vocabulary, []),
        Rewards(settings.rewards),
        EpisodeLimits(),
        1.0,
        8,
        0,
    )
    args = grpo_arguments(settings, folder, 1)
    args.temperature = 0.7
    return RewardTrainer(loaded, args, rollouts, loop_settings(settings, folder), Identity({}, "", 1))


@pytest.mark.parametrize("paths", ["lean", "reference"])
def test_shared_prompts_give_the_same_numbers_and_gradients(tmp_path: Path, paths: str) -> None:
    trainer = trainer_of(tmp_path, attention=paths, experts=paths)
    model, given = trainer.model, batch()
    assert model is not None
    real = given[1][:, -40:].bool()
    found: dict[str, tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]] = {}
    weights = torch.randn(real.shape, generator=torch.Generator().manual_seed(1))
    for shared in ("never", "always"):
        trainer.shared = shared
        model.zero_grad()
        logps, entropy, aux = trainer._get_per_token_logps_and_entropies(
            model, *given, logits_to_keep=40, compute_entropy=True
        )
        assert entropy is not None
        assert aux is None
        (logps * weights)[real].sum().backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found[shared] = logps[real].detach(), entropy[real].detach(), gradients
    torch.testing.assert_close(found["always"][0], found["never"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["always"][1], found["never"][1], rtol=1e-5, atol=1e-5)
    assert len(found["always"][2]) == len(found["never"][2]) > 10
    for ours, theirs in zip(found["always"][2], found["never"][2], strict=True):
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


def test_the_rows_hold_each_prompt_once() -> None:
    tree = share_prompts(*batch(), completion=40)
    assert tree.input_ids.shape == (2, 49 + 41 + 18 + 1)
    assert tree.n_plain == 5 * 90
    assert int((tree.labels != IGNORED).sum()) == 40 + 3 + 17 + 1
    ids, index = batch()[0], tree.index
    assert torch.equal(tree.labels.flatten()[index[2, :17]], ids[2, 50:67])
    # A completion's first token is predicted at the prompt's last place.
    assert tree.position_ids.flatten()[index[0, 0]] == tree.position_ids.flatten()[index[2, 0]] == 49


def test_auto_shares_only_where_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(tmp_path)
    model, seen = trainer.model, []
    assert model is not None
    real = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        seen.append(tuple(kwargs["input_ids"].shape))
        return real(*args, **kwargs)

    monkeypatch.setattr(model, "forward", forward)
    ids, mask = batch()
    trainer._get_per_token_logps_and_entropies(model, ids, mask, logits_to_keep=40)
    trainer._get_per_token_logps_and_entropies(model, ids[:1], mask[:1], logits_to_keep=40)
    assert seen == [(2, 109), (1, 90)]
