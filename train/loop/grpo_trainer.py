"""Learning from rewards on transformers' Trainer: rollouts, their advantages, tree rows, and the loss of each.

One item of the data set is a step. Its rollouts are sampled when it comes, packed into micro-batches of tree rows, and
kept for as many steps as `iterations` says. A batch that is learned from once needs no pass of its own for the
log-probabilities that it begins with, since those are the ones of the pass that trains.

Legend: N rollouts of this process, T targets.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from counterpoint.train.adapters.attach import add_reference, as_reference, is_fresh
from counterpoint.train.checkpoints.resume import Identity
from counterpoint.train.loop.advantages import Advantages, Baseline, Scale, advantages_of, live_groups
from counterpoint.train.loop.group_pipeline import Pipeline
from counterpoint.train.loop.grpo_items import Item
from counterpoint.train.loop.grpo_rollouts import Rollouts
from counterpoint.train.loop.head import target_hidden
from counterpoint.train.loop.held_out import held_out_rewards
from counterpoint.train.loop.log_probs import target_log_probs
from counterpoint.train.loop.played import StepRollouts
from counterpoint.train.loop.policy_loss import PolicyLoss, policy_loss
from counterpoint.train.loop.policy_rows import MicroBatch, PolicyRow, filling, micro_batches, targets_of
from counterpoint.train.loop.step_order import StepOrder
from counterpoint.train.loop.step_trainer import StepTrainer
from counterpoint.train.loop.teacher import Teacher
from counterpoint.train.loop.teacher_server import TeacherServer
from counterpoint.train.loop.training_arguments import LoopSettings
from counterpoint.train.model.expert_routes import RouteReplay
from counterpoint.train.model.load import LoadedModel
from counterpoint.train.run.signals import StopSignal
from counterpoint.train.sampling.following_pool import FollowingPool
from counterpoint.train.sampling.pinned import PinnedEngine
from counterpoint.train.sampling.truncation import WHOLE, Truncation
from counterpoint.train.sampling.weight_sync import FollowingEngine


@dataclass(frozen=True)
class PolicySettings:
    """order: which items a step samples. row_tokens: largest tree row. groups: that a step learns from, where it
    samples more than that; None for all. top_entropy: share of the tokens that count, those of the highest entropy.
    iterations: steps on the same rollouts. truncation: of the distribution that is sampled from.
    replay: whether tokens go to the experts that they went to where they were sampled."""

    loss: PolicyLoss
    order: StepOrder
    temperature: float
    row_tokens: int
    scale: Scale = "group"
    baseline: Baseline = "group"
    groups: int | None = None
    top_entropy: float = 1.0
    iterations: int = 1
    mask_truncated: bool = False
    truncation: Truncation = WHOLE
    replay: bool = False


class RewardTrainer(StepTrainer):
    """Trains `loaded.model` on the rewards of its own rollouts.

    teacher: rates each sampled token in addition to the rewards. pipeline: samples rollouts ahead; without it a step's
    are sampled when it comes. taught: whether any token of the last step had an advantage.
    """

    no_learning_advice = "the rewards of no group differed: see rollouts.jsonl, raise grpo.group or vary the prompts"

    def __init__(
        self,
        loaded: LoadedModel,
        args: TrainingArguments,
        rollouts: Rollouts,
        policy: PolicySettings,
        loop: LoopSettings,
        identity: Identity,
        *,
        callbacks: list[TrainerCallback] | None = None,
        extras: Callable[[Path], None] | None = None,
        stop: StopSignal | None = None,
        teacher: Teacher | TeacherServer | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        self.teacher, self.rollouts, self.policy, self.pipeline = teacher, rollouts, policy, pipeline
        if policy.loss.beta and hasattr(loaded.model, "peft_config") and not is_fresh(loaded.model):
            add_reference(loaded.model)
        steps = list(range(args.max_steps * args.world_size))  # each process is given every step
        super().__init__(
            loaded, args, steps, lambda numbers: {}, loop, identity, callbacks=callbacks, extras=extras, stop=stop
        )
        self.taught = True
        self.replay = RouteReplay(self.base) if policy.replay else None
        self._batches: list[MicroBatch] = []
        self._followed: int | None = None

    def served(self, who: str) -> PinnedEngine:
        """What samples on the servers from the weights as they are now; who: `base`, without the adapter. Collective:
        all processes raise the same."""
        self._follow()
        engine = self.rollouts.engine
        assert isinstance(engine, FollowingPool), "servers sample"
        return engine.at(None if who == "base" else self.state.global_step)

    def held_out(self, sets: Mapping[str, Sequence[Item]]) -> dict[str, float]:
        """The rewards of held-out items under the weights as they are now."""
        self._follow()
        return held_out_rewards(self.rollouts, sets, lambda: self.stop.received is not None)

    # ---- a step

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The forward and backward passes of a step; its loss, times the processes to undo DDP's mean."""
        began, step = time.perf_counter(), self.state.global_step
        if step % self.policy.iterations == 0 or not self._batches:
            self._batches = self._rolled_out(step, model)
        total, measured = self.learn(model, self._batches, partial(self._loss, model), self._replaying)
        self.keep({**measured.values(), "step_time": time.perf_counter() - began})
        self.taught = measured.acting > 0
        return total

    def _loss(self, model: nn.Module, batch: MicroBatch) -> tuple[torch.Tensor, Any]:
        """Of a micro-batch; keeps in it what later steps on the same rollouts need."""
        if self.policy.loss.beta and "reference" not in batch:
            with torch.no_grad(), as_reference(self.base), self._replaying({}):
                batch["reference"] = self._log_probs(model, self.base, batch)[0]
        without = self._without_replay(model, batch) if batch is self._batches[0] else {}
        counts: list[torch.Tensor] = []
        with self.routed(), self.replay.counting(counts) if self.replay else contextlib.nullcontext():
            log_prob_T, entropy_T = self._log_probs(model, self.base, batch)
        if self.policy.iterations > 1 and "old" not in batch:
            batch["old"] = log_prob_T.detach()
        targets = targets_of(batch, log_prob_T.detach())
        gap_T = None
        if self.teacher is not None:
            if "teacher" not in batch:  # of one behind a server, what fills up alone has none
                its = self._rated(self.teacher, batch) if isinstance(self.teacher, Teacher) else log_prob_T.detach()
                batch["teacher"] = its
            gap_T = (batch["teacher"] - targets.old) * targets.real
            targets = replace(targets, advantage=targets.advantage + self.teacher.weight * gap_T)
        loss, measures = policy_loss(self.policy.loss, log_prob_T, entropy_T, targets)
        measures.means |= without
        if counts:
            measures.means["routes/differing"] = torch.stack(counts).sum(0)
            measures.means["routes/conflicts"] = batch["conflicts"]
        if gap_T is not None:
            measures.means["teacher/reverse_kl"] = torch.stack([-gap_T.sum(), targets.real.sum().to(gap_T)])
        return loss, measures

    def _log_probs(self, model: nn.Module, base: Any, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """(log-probability, entropy) (T,) of the distribution that is sampled from."""
        hidden_TH, weight_VH = target_hidden(model, base, dict(batch))
        policy = self.policy
        return target_log_probs(hidden_TH, weight_VH, batch["target_ids"], policy.temperature, policy.truncation)

    def _replaying(self, batch: Mapping[str, torch.Tensor]) -> contextlib.AbstractContextManager[Any]:
        """The experts of the batch's tokens are those that were told, of a batch without any the router's own."""
        return self.replay.replaying(batch.get("routes")) if self.replay else contextlib.nullcontext()

    @torch.no_grad()
    def _without_replay(self, model: nn.Module, batch: MicroBatch) -> dict[str, torch.Tensor]:
        """What the gap to the engine would be: one more forward pass, of one micro-batch. Collective under FSDP2."""
        if self.replay is None:
            return {}
        with self._replaying({}):
            log_prob_T, _ = self._log_probs(model, self.base, batch)
        told_T = batch.get("sampled", torch.full_like(log_prob_T, torch.nan))
        gap_T = (log_prob_T - told_T).abs()[(batch["weight"] != 0) & ~told_T.isnan()]
        return {"routes/logp_difference_without": torch.stack([gap_T.sum(), gap_T.new_tensor(len(gap_T))])}

    @torch.no_grad()
    def _rated(self, teacher: Teacher, batch: MicroBatch) -> torch.Tensor:
        """The teacher's log-probability (T,) of each target."""
        its = {name: teacher.rows(batch[name], self.loaded) for name in ("input_ids", "target_ids")}
        return self._log_probs(teacher.model, teacher.model, {**batch, **its})[0]

    # ---- rollouts and what they are worth

    def _rolled_out(self, step: int, model: nn.Module) -> list[MicroBatch]:
        """The micro-batches of a step, equally many in all processes."""
        self._follow()
        policy, group = self.policy, self.rollouts.group
        share = policy.order.groups * group // self.accelerator.num_processes
        rolled = self._sampled(step, share)
        worth = advantages_of(rolled.scores, self.rollouts.weights, group, policy.scale, policy.baseline)
        self._log_rollouts(rolled, worth)
        advantage_N, learned_N = self._learned(rolled, worth)
        here = slice(rolled.first, rolled.first + share)
        advantages, learned = advantage_N[here].tolist(), learned_N[here].tolist()
        rows = self._rows(rolled, learned)
        n_sampled = [0] * share
        for each in rows:
            n_sampled[each.rollout] += each.n_sampled
        counts = torch.tensor([sum(n_sampled)], device=self.args.device)
        n_tokens = int(self.accelerator.reduce(counts, "sum"))  # pyright: ignore[reportArgumentType]
        n_valid = int((learned_N & ~worth.reward_N.isnan()).sum())
        weights = policy.loss.weights(torch.tensor(n_sampled, dtype=torch.float64), n_valid, n_tokens).tolist()
        needed = rows if self._computes_all else [each for each in rows if advantages[each.rollout]]
        of_token = 1 / max(1, n_tokens)
        if isinstance(self.teacher, TeacherServer):
            told = self.teacher.rated([[*each.row.prompt_ids, *each.row.completion_ids] for each in needed])
            needed = [replace(each, rated=its) for each, its in zip(needed, told, strict=True)]
        batches = micro_batches(needed, advantages, weights, group, policy.row_tokens, self.collate, of_token)
        moved = self.equally_many(batches, filling(self.collate, rolled.any_ids))
        if policy.top_entropy < 1:
            self._count_uncertain(model, moved)
        return moved

    def _sampled(self, step: int, share: int) -> StepRollouts:
        """The rollouts of a step, `share` of them of this process."""
        if self.pipeline is not None:
            rolled = self.rollouts.assembled(self.pipeline.step(step), step)
            self.keep(self.pipeline.measured)
            return rolled
        numbers, epoch = self.policy.order.of(step // self.policy.iterations)
        mine = slice(self.accelerator.process_index * share, (self.accelerator.process_index + 1) * share)
        return self.rollouts([number for number in numbers for _ in range(self.rollouts.group)][mine], step, epoch)

    def _learned(self, rolled: StepRollouts, worth: Advantages) -> tuple[torch.Tensor, torch.Tensor]:
        """(advantage, whether it is learned from) (N,) of all processes' rollouts. Where more groups were sampled than
        are learned from, dead ones and those that are too many are dropped."""
        policy, group = self.policy, self.rollouts.group
        learned_N = torch.ones(len(worth.reward_N), dtype=torch.bool)
        if policy.groups is None:
            return worth.advantage_N, learned_N
        alive = live_groups(worth, group, policy.groups)
        self.keep({"groups/learned": len(alive) / policy.groups})
        learned_N = torch.zeros_like(learned_N).view(-1, group).index_fill(0, alive, True).flatten()
        advantage_N = torch.zeros_like(worth.advantage_N)
        if len(alive):
            scores = [scores for scores, learned in zip(rolled.scores, learned_N.tolist(), strict=True) if learned]
            again = advantages_of(scores, self.rollouts.weights, group, policy.scale, policy.baseline)
            advantage_N[learned_N] = again.advantage_N
        return advantage_N, learned_N

    @torch.no_grad()
    def _count_uncertain(self, model: nn.Module, batches: Sequence[MicroBatch]) -> None:
        """Marks the tokens of the highest entropy over the whole step, `top_entropy` of them (arXiv:2506.01939). One
        more forward pass, since which these are is known only then. Collective."""
        entropies = []
        for batch in batches:
            with self._replaying(batch), self.compute_loss_context_manager():
                entropies.append(self._log_probs(model, self.base, batch)[1])
        mine = torch.cat([each[batch["weight"] != 0] for each, batch in zip(entropies, batches, strict=True)])
        everyone = np.concatenate(gather_object([mine.float().cpu().numpy()]))
        if len(everyone):
            least = float(np.quantile(everyone, 1 - self.policy.top_entropy))
            for entropy_T, batch in zip(entropies, batches, strict=True):
                batch["counts"] = entropy_T >= least

    def _rows(self, rolled: StepRollouts, learned: Sequence[bool]) -> list[PolicyRow]:
        out = []
        for number, (rows, truncated) in enumerate(zip(rolled.rows, rolled.truncated, strict=True)):
            if learned[number] and not (truncated and self.policy.mask_truncated):
                out += [PolicyRow(number, row) for row in rows]
        return out

    @property
    def _computes_all(self) -> bool:
        """Whether rollouts without an advantage have a part in the loss as well."""
        loss = self.policy.loss
        return bool(loss.beta or loss.entropy_bonus or self.teacher or self.router_loss) or self.policy.top_entropy < 1

    def _follow(self) -> None:
        """Give another engine the weights of now, where it has not got them. Collective."""
        engine = self.rollouts.engine
        if isinstance(engine, FollowingEngine | FollowingPool) and self._followed != self.state.global_step:
            engine.follow(
                self.base,
                lambda folder: self._save(str(folder), self._gathered()),
                self.state.global_step,
                lead=self.args.should_save,
                wait=self.accelerator.wait_for_everyone,
                share=lambda value: broadcast_object_list([value])[0],
            )
            self._followed = self.state.global_step

    # ---- what is logged

    def _log_rollouts(self, rolled: StepRollouts, worth: Advantages) -> None:
        prompts, completions, ended = (list(column) for column in zip(*rolled.lengths, strict=True))
        self.state.num_input_tokens_seen += sum(prompts) + sum(completions)
        whole = [n for n, by_itself in zip(completions, ended, strict=True) if by_itself] or [0]
        lengths = {"": completions, "terminated_": whole}
        score_NK = torch.tensor(rolled.scores, dtype=torch.float64)
        values = {
            "num_tokens": self.state.num_input_tokens_seen,
            **{f"completions/mean_{name}length": sum(each) / len(each) for name, each in lengths.items()},
            **{f"completions/min_{name}length": min(each) for name, each in lengths.items()},
            **{f"completions/max_{name}length": max(each) for name, each in lengths.items()},
            "completions/clipped_ratio": 1 - sum(ended) / len(ended),
            "reward": float(worth.reward_N.nanmean()),
            "reward_std": _deviation(worth.reward_N),
            "frac_reward_zero_std": worth.dead,
            **self.rollouts.measured,
        }
        for name, score_N in zip(self.rollouts.names, score_NK.T, strict=True):
            values[f"rewards/{name}/mean"] = float(score_N.nanmean())
            values[f"rewards/{name}/std"] = _deviation(score_N)
        self.keep(values)

    # ---- checkpoints

    def save_now(self) -> int:
        """A checkpoint of the last whole step, for a run that cannot go on; its number, 0 where there was none."""
        if self.state.global_step and self.saved_step != self.state.global_step:
            self._save_checkpoint(self.model_wrapped, None)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return self.state.global_step

    def loop_state(self) -> dict[str, Any]:
        groups = {} if self.pipeline is None else {"groups": self.pipeline.state()}
        return {**super().loop_state(), **groups}

    def restore_loop(self, state: dict[str, Any]) -> None:
        super().restore_loop(state)
        if self.pipeline is not None:
            processes = self.accelerator.num_processes
            step = self.state.global_step
            self.pipeline.restore(state.get("groups", []), self.accelerator.process_index, processes, step)

    def fill_checkpoint(self, folder: Path) -> None:
        super().fill_checkpoint(folder)
        if self.state.global_step % self.policy.iterations:  # the next step is one more on these rollouts
            kept = {f"{n}/{name}": value for n, batch in enumerate(self._batches) for name, value in batch.items()}
            save_file(kept, self._rollouts_file(folder))
        if self.pipeline is not None:
            self.pipeline.fill_checkpoint(folder, self.state.global_step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.pipeline is not None:
            self.pipeline.saved()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.pipeline is not None:
            self.pipeline.adopt(Path(resume_from_checkpoint))
        path = self._rollouts_file(Path(resume_from_checkpoint))
        if not path.is_file():
            return
        found = load_file(path, device=str(self.args.device))
        batches: dict[int, MicroBatch] = defaultdict(dict)
        for key, tensor in found.items():
            number, _, name = key.partition("/")
            batches[int(number)][name] = tensor
        self._batches = [batches[number] for number in sorted(batches)]

    def _rollouts_file(self, folder: Path) -> Path:
        return folder / f"rollouts_{self.accelerator.process_index}.safetensors"


def _deviation(values: torch.Tensor) -> float:
    known = values[~values.isnan()]
    return float(known.std()) if len(known) > 1 else float("nan")
