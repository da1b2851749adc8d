"""TRL's GRPOTrainer on our rollouts: sampled ids verbatim, tool results masked, rewards on the typed result.

The seam is `rollout_func`: TRL hands over the `prompt` column, which here holds the number of a prompt and its effort,
and takes back ids (as the model's rows) and the masks. Rewards are found in the rollout and read from there.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from counterpoint.data.conversation import EFFORTS, Effort
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.episodes.episodes import EpisodeLimits, run_episodes
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.loop.base_trainer import WholeRun
from counterpoint.train.loop.row_tokenizer import RowTokenizer, restore_stops
from counterpoint.train.loop.shared_prompts import share_prompts
from counterpoint.train.loop.teacher import Teacher
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.rollout import Called, Episode
from counterpoint.train.sampling.sample import sample_seed
from counterpoint.train.sampling.weight_sync import FollowingEngine
from counterpoint.train.scoring.prompts import EvalPrompt
from counterpoint.train.scoring.rewards import Outcome, Rewards, zero_variance_share

SCORES = "scores"
SharePrompts = Literal["auto", "always", "never"]
WORTH_SHARING = 0.8
"""With `auto`, prompts are shared where tree rows hold at most this share of the plain layout's tokens."""


@dataclass(frozen=True)
class Item:
    """A prompt at an effort: what a group is sampled of.

    turn: the follow-up that is learned from, 0 for the prompt itself. The turns before it are sampled as well and only
    read, because what was thought in them is gone from the next prompt.
    """

    prompt: EvalPrompt
    effort: Effort
    turn: int = 0

    @property
    def follow_ups(self) -> list[str]:
        return [follow_up.text for follow_up in self.prompt.follow_ups[: self.turn]]

    def outcome(self, episode: Episode) -> Outcome:
        """The episode beside the truth of the turn in which it ended."""
        return self._beside_truth(episode.turn, episode.completion(), episode.called)

    def unanswered(self) -> Outcome:
        """Nothing beside the truth of this turn."""
        return self._beside_truth(self.turn, parse_completion([]), ())

    def _beside_truth(self, turn: int, completion: Completion, called: tuple[Called, ...]) -> Outcome:
        asked = self.prompt.follow_ups[turn - 1] if turn else self.prompt
        return Outcome(completion, called, asked.reference, self.effort, asked.scorer)


def items_of(prompts: Sequence[EvalPrompt], renderer: Renderer, efforts: Sequence[Effort] = ()) -> list[Item]:
    """Each turn of each prompt, at its own effort or at every one of `efforts`."""
    return [
        Item(prompt, effort, turn)
        for prompt in prompts
        for turn in range(1 + len(prompt.follow_ups))
        for effort in (efforts or (renderer.effort_of(prompt.conversation),))
    ]


@dataclass
class Rollouts:
    """Samples episodes of items and scores them; what `rollout_func` calls.

    keep: where every rollout is written as a JSON line, with its Harmony text and its rewards; None writes none.
    process: the number of this one, of those that train together; gather: puts together what each of them has found.
    measured: what is logged of the last step beside TRL's own means.
    """

    items: Sequence[Item]
    renderer: Renderer
    engine: Engine
    rewards: Rewards
    limits: EpisodeLimits
    temperature: float
    group: int
    seed: int
    toolkit: Toolkit | None = None
    keep: Path | None = None
    process: int = 0
    gather: Callable[[list[Any]], list[Any]] = list
    measured: dict[str, float] = field(default_factory=dict)

    def __call__(self, numbers: Sequence[str], step: int, model_rows: Callable[[list[int]], Any]) -> dict[str, list]:
        """TRL's dictionary for the items with these numbers, each sampled once for every time it stands there.

        The seed of a rollout depends on the run's seed, the step, and its place among those of all processes.
        """
        items = [self.items[int(number)] for number in numbers]
        first = self.process * len(items)
        episodes = run_episodes(
            [item.prompt.conversation for item in items],
            self.renderer,
            self.engine,
            limits=self.limits,
            toolbox=self.toolkit.toolbox if self.toolkit is not None else None,
            efforts=[item.effort for item in items],
            temperature=self.temperature,
            seed=[sample_seed(self.seed, step, first + place) for place in range(len(items))],
            follow_ups=[item.follow_ups for item in items],
        )
        outcomes = [item.outcome(episode) for item, episode in zip(items, episodes, strict=True)]
        scores = [self.rewards.score(outcome) for outcome in outcomes]
        found = zip(items, episodes, outcomes, scores, strict=True)
        rows = self.gather([{"step": step, **self._row(*each)} for each in found])
        failures = self.gather([{**self.rewards.failures}])
        self.measured = self._measures(rows, failures)
        if self.keep is not None:
            with self.keep.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return {
            "prompt_ids": [model_rows(episode.prompt_ids).tolist() for episode in episodes],
            "completion_ids": [model_rows(episode.completion_ids).tolist() for episode in episodes],
            "env_mask": [episode.env_mask for episode in episodes],
            "logprobs": _logprobs(episodes),  # pyright: ignore[reportReturnType]
            SCORES: scores,
        }

    def _row(self, item: Item, episode: Episode, outcome: Outcome, scores: list[float]) -> dict[str, Any]:
        """A rollout as it is kept and counted."""
        return {
            "id": item.prompt.id,
            "effort": item.effort,
            **({"turn": episode.turn} if item.prompt.follow_ups else {}),
            "stop": episode.stop,
            "rewards": dict(zip(self.rewards.names, scores, strict=True)),
            "channel_correct": outcome.completion.ok,
            "analysis_tokens": outcome.completion.n_tokens_by_channel["analysis"],
            "calls": len(episode.called),
            "faults": sum(called.result.fault is not None for called in episode.called),
            "solved": self.rewards.solved(outcome, scores),
            "text": self.renderer.vocabulary.decode(episode.completion_ids),
        }

    def _measures(self, rows: Sequence[dict[str, Any]], failures: Sequence[dict[str, int]]) -> dict[str, float]:
        """Of one step's rollouts of all processes: dead groups, failures, calls, thoughts by effort."""
        out = {
            f"rewards/{name}/zero_variance": zero_variance_share([row["rewards"][name] for row in rows], self.group)
            for name in self.rewards.names
        }
        for name in {name for each in failures for name in each}:
            out[f"rewards/{name}/failures"] = float(sum(each.get(name, 0) for each in failures))
        out["channel_correct"] = sum(row["channel_correct"] for row in rows) / len(rows)
        if self.toolkit is not None:
            calls = sum(row["calls"] for row in rows)
            out["tools/calls"] = calls / len(rows)
            out["tools/faults"] = sum(row["faults"] for row in rows) / max(1, calls)
            out["tools/solved"] = sum(row["solved"] for row in rows) / len(rows)
        for effort in EFFORTS:
            tokens = [row["analysis_tokens"] for row in rows if row["effort"] == effort]
            if tokens:
                out[f"analysis_tokens/{effort}"] = sum(tokens) / len(tokens)
        return out


def _logprobs(episodes: Sequence[Episode]) -> list[list[float | None]] | None:
    found = [episode.logprobs for episode in episodes if episode.logprobs is not None]
    return found if len(found) == len(episodes) else None


class RewardTrainer(WholeRun, GRPOTrainer):
    """Trains `loaded.model` on the rewards of its own rollouts.

    shared: whether the prompt of a group is computed once for all its completions (loop/shared_prompts.py). teacher:
    rates each sampled token beside the rewards. taught: whether any token of the last rollouts has an advantage.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        args: GRPOConfig,
        rollouts: Rollouts,
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        stop: StopSignal | None = None,
        shared: SharePrompts = "auto",
        teacher: Teacher | None = None,
    ) -> None:
        self.shared, self.teacher, self.loaded = shared, teacher, loaded
        rows = loaded.vocabulary_map.rows

        def roll(numbers: list[str], trainer: Any) -> dict[str, Any]:
            return rollouts(numbers, trainer.state.global_step, rows)

        reward_functions: list[Any] = [_reward(k, name, rollouts) for k, name in enumerate(rollouts.rewards.names)]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=loaded.model,
                reward_funcs=reward_functions,
                args=args,
                train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(rollouts.items))]}),
                processing_class=RowTokenizer(loaded),
                callbacks=callbacks,
                rollout_func=roll,
            )
        if hasattr(loaded.model, "peft_config") and "ref" in loaded.model.peft_config:
            loaded.model.delete_adapter("ref")
        self.taught = True
        restore_stops(loaded)
        self.take_over(loop, identity, extras, stop)
        if isinstance(rollouts.engine, FollowingEngine):
            # From here on TRL asks for `sync_weights` before each step's rollouts, and corrects by their logprobs.
            self.use_vllm, self.vllm_generation, self._last_loaded_step = True, _Sync(self, rollouts.engine), -1

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's batch, with the teacher's part of the advantages. Where another engine sampled, the share of ratios
        above the cap is logged."""
        batch = super()._generate_and_score_completions(inputs)
        if self.use_vllm and self.vllm_importance_sampling_correction:
            self._metrics["train"]["sampling/capped"].append(self._share_capped(batch))
        if self.teacher is not None:
            batch["advantages"] = self._rated(self.teacher, batch)
        advantages = batch["advantages"]
        counted = (advantages if advantages.dim() == 2 else advantages[:, None]) * batch["completion_mask"]
        counted = counted * batch.get("importance_sampling_ratio", 1)  # 0 where the engines differ too much
        self.taught = bool(self.accelerator.reduce(counted.any().float(), "sum"))
        return batch

    @torch.no_grad()
    def _rated(self, teacher: Teacher, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Advantages (B, C): those of the group, and for each sampled token what the teacher thinks of it."""
        ids_BS = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        attended_BS = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        mask_BC = batch["completion_mask"] * batch.get("tool_mask", 1)
        own_BC = batch.get("old_per_token_logps")
        if own_BC is None:
            own_BC = self._logps(self.model, ids_BS, attended_BS, mask_BC.shape[1])
        its_BC = self._logps(teacher.model, teacher.rows(ids_BS, self.loaded), attended_BS, mask_BC.shape[1])
        gap_BC = (its_BC - own_BC) * mask_BC
        sums = torch.stack([gap_BC.sum(), mask_BC.sum().to(gap_BC)])
        gap, count = self.accelerator.reduce(sums, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]
        self._metrics["train"]["teacher/reverse_kl"].append(-gap / max(1, count))
        return batch["advantages"][:, None] + teacher.weight * gap_BC

    def _logps(self, model: Any, ids_BS: torch.Tensor, attended_BS: torch.Tensor, width: int) -> torch.Tensor:
        """Log-probabilities (B, C) of the last `width` tokens, as many rows at a time as training takes."""
        size = self.args.per_device_train_batch_size
        parts = zip(ids_BS.split(size), attended_BS.split(size), strict=True)
        return torch.cat([self._get_per_token_logps_and_entropies(model, *part, width)[0] for part in parts])

    def _share_capped(self, batch: dict[str, torch.Tensor]) -> float:
        """Of tokens or of sequences, as the correction goes."""
        mask_BC = batch["completion_mask"] * batch.get("tool_mask", 1)
        diff_BC = (batch["old_per_token_logps"] - batch["sampling_per_token_logps"]) * mask_BC
        diff_BC = torch.nan_to_num(diff_BC, nan=0.0)
        by_token = self.vllm_importance_sampling_mode.startswith("token")
        diff = diff_BC[mask_BC.bool()] if by_token else diff_BC.sum(1)
        assert self.vllm_importance_sampling_clip_max is not None
        above = int((diff.exp() > self.vllm_importance_sampling_clip_max).sum())
        counts = torch.tensor([above, diff.numel()], device=self.args.device)
        capped, all_of_them = self.accelerator.reduce(counts, "sum").tolist()  # pyright: ignore
        return capped / max(1, all_of_them)

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["prompt"]

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **rest: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's numbers (B, C); completions that share their prompt go through the model as one tree row."""
        plain = super()._get_per_token_logps_and_entropies
        size = batch_size or len(input_ids)
        if self.shared == "never" or compute_aux_loss or size < len(input_ids):
            return plain(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **rest
            )
        tree = share_prompts(input_ids, attention_mask, logits_to_keep)
        if self.shared == "auto" and tree.tokens > WORTH_SHARING * tree.n_plain:
            return plain(model, input_ids, attention_mask, logits_to_keep, compute_entropy=compute_entropy, **rest)
        base: Any = model if self.teacher is not None and model is self.teacher.model else self.base
        with self.accelerator.autocast():
            outputs = model(
                input_ids=tree.input_ids,
                position_ids=tree.position_ids,
                **attention_inputs(base, tree.position_ids, tree.subtree_end),
                shift_labels=tree.labels,
                fused_lm_head=True,
            )
        logps, entropy = (
            None if values_RS is None else values_RS.flatten()[tree.index]
            for values_RS in (outputs.log_probs, outputs.entropy if compute_entropy else None)
        )
        assert logps is not None
        return logps, entropy, None


class _Sync:
    """What TRL calls where vLLM is used."""

    def __init__(self, trainer: RewardTrainer, engine: FollowingEngine) -> None:
        self.trainer, self.engine = trainer, engine

    def sync_weights(self) -> None:
        trainer = self.trainer
        self.engine.follow(
            trainer.base,
            lambda folder: trainer.save_model(str(folder), _internal_call=True),
            trainer.state.global_step,
            lead=trainer.args.should_save,
            wait=trainer.accelerator.wait_for_everyone,
        )


def _reward(number: int, name: str, rollouts: Rollouts) -> Callable[..., list[float]]:
    """A reward as TRL calls it: the numbers were found in the rollout, from the typed result."""

    def reward(**columns: Any) -> list[float]:
        if number == 0:
            for key, value in rollouts.measured.items():
                columns["log_metric"](key, value)
        return [values[number] for values in columns[SCORES]]

    reward.__name__ = name
    return reward
