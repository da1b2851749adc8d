"""TRL's GRPOTrainer on our rollouts: sampled ids verbatim, tool results masked, rewards on the typed result.

The seam is `rollout_func`: TRL hands over the `prompt` column, which here holds the number of a prompt and its effort,
and takes back ids (as the model's rows) and the masks. Rewards are computed in the rollout and read from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from counterpoint.train.adapters.attach import is_fresh, keep_reference
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.base_trainer import BaseTrainer
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.grpo_rollouts import SCORES, Rollouts
from counterpoint.train.loop.held_out import held_out_rewards
from counterpoint.train.loop.row_tokenizer import RowTokenizer, restore_stops
from counterpoint.train.loop.shared_prompts import share_prompts
from counterpoint.train.loop.teacher import Teacher
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.sampling.weight_sync import FollowingEngine

SharePrompts = Literal["auto", "always", "never"]
WORTH_SHARING = 0.8
"""With `auto`, prompts are shared where tree rows hold at most this share of the plain layout's tokens."""


class RewardTrainer(BaseTrainer, GRPOTrainer):
    """Trains `loaded.model` on the rewards of its own rollouts.

    shared: whether the prompt of a group is computed once for all its completions (loop/shared_prompts.py). teacher:
    rates each sampled token in addition to the rewards. taught: whether any token of the last rollouts has an
    advantage.
    """

    no_learning_advice = "the rewards of no group differed: see rollouts.jsonl, raise grpo.group or vary the prompts"

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
        fresh = is_fresh(loaded.model)
        self.shared, self.teacher, self.loaded, self.rollouts = shared, teacher, loaded, rollouts
        rows = loaded.vocabulary_map.rows

        def roll(numbers: list[str], trainer: Any) -> dict[str, Any]:
            return rollouts(numbers, trainer.state.global_step, rows, int(trainer.state.epoch or 0))

        reward_functions: list[Any] = [_reward(k, name, rollouts) for k, name in enumerate(rollouts.names)]
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
        if hasattr(loaded.model, "peft_config"):
            keep_reference(loaded.model, needed=bool(args.beta) and not fresh)
        self.taught = True
        restore_stops(loaded)
        self.set_up_loop(loop, identity, extras, stop)
        if isinstance(rollouts.engine, FollowingEngine):
            # From here on TRL calls `sync_weights` before each step's rollouts, and corrects by their logprobs.
            self.use_vllm, self.vllm_generation, self._last_loaded_step = True, _Sync(self, rollouts.engine), -1

    def held_out(self, sets: Mapping[str, Sequence[Item]]) -> dict[str, float]:
        """The rewards of held-out items under the weights as they are now."""
        if self.use_vllm:
            self.vllm_generation.sync_weights()
        return held_out_rewards(self.rollouts, sets, lambda: self.stop.received is not None)

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
        # Collective, as are those of `_rated` and `_share_capped`: TRL has every process score a step's rollouts.
        self.taught = bool(self.accelerator.reduce(counted.any().float(), "sum"))
        return batch

    @torch.no_grad()
    def _rated(self, teacher: Teacher, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Advantages (B, C): those of the group, and for each sampled token the teacher's rating."""
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
        """Of tokens or of sequences, as the correction is set."""
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
        """transformers keeps these columns of a data set: the numbers that `rollout_func` is given."""
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
    """Called by TRL where vLLM is used."""

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
    """A reward as TRL calls it: the numbers were computed in the rollout, from the typed result."""

    def reward(**columns: Any) -> list[float]:
        if number == 0:
            for key, value in rollouts.measured.items():
                columns["log_metric"](key, value)
        return [values[number] for values in columns[SCORES]]

    reward.__name__ = name
    return reward
