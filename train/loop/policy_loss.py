"""The loss on rewards: log-probabilities and advantages in, a number out. No model, no trainer, no files.

Every target carries the row that it belongs to (a prompt and what was sampled after it) and a weight, in which the
normaliser of the whole step is contained: micro-batches and processes simply add up.

Legend: T targets, R rows, E rollouts of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from counterpoint.configs.rl_section import GrpoLoss

Correction = Literal["sequence_mask", "sequence_truncate", "token_mask", "token_truncate", "off"]
CLIPPED = ("grpo", "dapo", "bnpo", "dr_grpo", "luspo")
SAPO_TEMPERATURE = 1.0, 1.05
"""Of positive and other advantages (SAPO, arXiv:2511.20347)."""
VESPO = (2.0, 3.0), (3.0, 2.0)
"""(k, lambda) of advantages of 0 and more, and of negative ones (VESPO, arXiv:2602.10693)."""
LEAST_LOG_WEIGHT, MOST_LOG_WEIGHT = math.log(1e-8), 20.0


@dataclass(frozen=True)
class PolicyLoss:
    """How the loss is formed; the settings of `grpo` and of `rollout.correction`.

    clip: lower and upper, of `cispo` the upper is the largest ratio itself. longest: tokens of the longest rollout,
    by which `dr_grpo` divides. floor: least ratio of the correction. kl_ratio: the divergence is weighed by the ratio.
    ratio_cap: largest ratio of a negative advantage (two-sided clipping, arXiv:2505.07291). off_policy: divergence of a
    row from its sampling above which a negative advantage does not count (arXiv:2512.02556). entropy_bonus: weight of
    the mean entropy. to_sampled: ratios are to what the engine says, where that is known, and nothing else corrects.
    """

    loss: GrpoLoss = "dapo"
    clip: tuple[float, float] = (0.2, 0.2)
    ratio: Literal["token", "sequence"] = "token"
    beta: float = 0.0
    correction: Correction = "off"
    cap: float = 3.0
    longest: int = 1
    floor: float | None = None
    kl_ratio: bool = True
    ratio_cap: float | None = None
    off_policy: float | None = None
    entropy_bonus: float = 0.0
    to_sampled: bool = False

    def weights(self, tokens_E: torch.Tensor, n_valid: int, n_tokens: int) -> torch.Tensor:
        """The weight (E,) of each token of a rollout that has `tokens_E` sampled ones. n_valid, n_tokens: valid
        rollouts of the whole step, and sampled tokens of them."""
        if self.loss in ("grpo", "sapo"):
            return 1 / (tokens_E.clamp(min=1) * max(1, n_valid))
        if self.loss == "dr_grpo":
            return torch.full_like(tokens_E, 1 / (max(1, n_valid) * self.longest))
        if self.loss == "luspo":
            return torch.full_like(tokens_E, 1 / max(1, n_valid))
        return torch.full_like(tokens_E, 1 / max(1, n_tokens))


@dataclass(frozen=True)
class Targets:
    """What is known of a micro-batch's targets beside their log-probabilities, each (T,).

    row: the row of each, 0 to `n_rows` - 1; old: log-probability under the weights that began the batch; sampled: as
    the engine that sampled gave it, NaN where unknown, None where the trainer sampled itself; reference: of the model
    before training, None without `beta`; counts: whether each counts (`grpo.top_entropy`), None where all do; share: of
    each in the mean over the step's tokens.
    """

    advantage: torch.Tensor
    weight: torch.Tensor
    row: torch.Tensor
    n_rows: int
    old: torch.Tensor
    sampled: torch.Tensor | None = None
    reference: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    share: torch.Tensor | None = None

    @property
    def real(self) -> torch.Tensor:
        """Whether each is of a rollout; what fills up a process's micro-batches weighs nothing."""
        return self.weight != 0


@dataclass
class Measures:
    """What is logged of a pass. means: sum and count (2,); least, most: extremes. acting: targets whose weight,
    advantage and correction are not 0."""

    means: dict[str, torch.Tensor]
    least: dict[str, torch.Tensor]
    most: dict[str, torch.Tensor]
    acting: torch.Tensor


def policy_loss(
    chosen: PolicyLoss, log_prob_T: torch.Tensor, entropy_T: torch.Tensor, targets: Targets
) -> tuple[torch.Tensor, Measures]:
    """(loss of the micro-batch, what is logged). The gradient flows through `log_prob_T` and, with an entropy bonus,
    through `entropy_T`.

    Formulas as of TRL 1.16, whose loss and gradients the tests hold it to: a sequence's ratio is the mean of its
    tokens' logarithms (GSPO), `beta` weighs the k3 estimate times the ratio, a correction multiplies the policy's part.
    """
    advantage_T = targets.advantage
    old_T = targets.old
    if chosen.to_sampled and targets.sampled is not None:
        old_T = torch.where(targets.sampled.isnan(), old_T, targets.sampled)
    log_ratio_T = log_prob_T - old_T
    log_weight_T = log_ratio_T if chosen.ratio == "token" else _by_row(log_ratio_T, targets, mean=True)
    ratio_T = log_weight_T.exp()
    correction_T, measures = _correction(chosen, targets, log_prob_T)
    measures.means["entropy"] = _mean(entropy_T, targets.real)
    if chosen.loss == "cispo":
        loss_T = -ratio_T.clamp(max=chosen.clip[1]).detach() * advantage_T * log_prob_T
        capped_T = (ratio_T > chosen.clip[1]) & (advantage_T > 0)
        measures.means["cispo_clip_ratio"] = _share_of(chosen, targets, capped_T)
    elif chosen.loss in CLIPPED:
        low, high = 1 - chosen.clip[0], 1 + chosen.clip[1]
        capped_T = ratio_T if chosen.ratio_cap is None else ratio_T.clamp(max=chosen.ratio_cap)
        loss_T = -torch.minimum(capped_T * advantage_T, ratio_T.clamp(low, high) * advantage_T)
        below_T, above_T = (ratio_T < low) & (advantage_T < 0), (ratio_T > high) & (advantage_T > 0)
        for name, clipped_T in (("low", below_T), ("high", above_T), ("region", below_T | above_T)):
            measures.means[f"clip_ratio/{name}_mean"] = _share_of(chosen, targets, clipped_T)
    elif chosen.loss == "sapo":
        heat_T = torch.where(advantage_T > 0, *SAPO_TEMPERATURE)
        loss_T = -(heat_T * (ratio_T - 1)).sigmoid() * 4 / heat_T * advantage_T
    else:
        assert chosen.loss == "vespo", f"{chosen.loss} is not among {get_args(GrpoLoss)}"
        phi_T = _vespo_weight(log_ratio_T, correction_T, chosen, targets)
        loss_T = -phi_T * advantage_T * log_prob_T
        measures.means["vespo/phi_seq_mean"] = _mean(*_by_rows(phi_T, targets))
    if chosen.off_policy is not None:
        sampled_T = targets.old if targets.sampled is None else targets.sampled
        drift_T = _by_row((sampled_T - log_prob_T.detach()).nan_to_num(nan=0.0), targets, mean=True)
        kept_T = (advantage_T >= 0) | (drift_T <= chosen.off_policy)
        loss_T = loss_T * kept_T
        measures.means["off_policy/masked"] = _mean(*_by_rows(~kept_T, targets))
    if targets.counts is not None:
        loss_T = loss_T * targets.counts
    if correction_T is not None and chosen.loss != "vespo":
        loss_T = loss_T * correction_T
    if targets.reference is not None:
        gap_T = targets.reference - log_prob_T
        kl_T = (gap_T.exp() - gap_T - 1) * (ratio_T if chosen.kl_ratio else 1)
        loss_T = loss_T + chosen.beta * kl_T
        measures.means["kl"] = _mean(kl_T, targets.real)
    acts_T = targets.real & (advantage_T != 0)
    measures.acting = (acts_T if correction_T is None else acts_T & (correction_T != 0)).sum()
    loss = (loss_T * targets.weight).sum()
    if chosen.entropy_bonus:
        assert targets.share is not None
        counted_T = entropy_T if targets.counts is None else entropy_T * targets.counts
        loss = loss - chosen.entropy_bonus * (counted_T * targets.share).sum()
    return loss, measures


def _correction(chosen: PolicyLoss, targets: Targets, log_prob_T: torch.Tensor) -> tuple[torch.Tensor | None, Measures]:
    """The ratio (T,) of the trainer's probabilities to the sampling engine's, masked or truncated above the cap."""
    measures = Measures({}, {}, {}, torch.zeros((), device=log_prob_T.device))
    if targets.sampled is None:
        return None, measures
    known_T = targets.real & ~targets.sampled.isnan()
    gap_T = torch.where(known_T, targets.old - targets.sampled, 0.0)
    name = "sampling/sampling_logp_difference"
    measures.means[f"{name}/mean"] = torch.stack([gap_T.abs().sum(), known_T.sum()])
    measures.most[f"{name}/max"] = gap_T.abs().amax()
    if chosen.correction == "off" or chosen.to_sampled:
        return None, measures
    by_row = chosen.correction.startswith("sequence")
    raw_T = (_by_row(gap_T, targets) if by_row else gap_T).exp()
    above_T = outside_T = raw_T > chosen.cap
    if chosen.floor is not None:
        outside_T = above_T | (raw_T < chosen.floor)
    masks = chosen.correction.endswith("mask")
    cut_T = raw_T.masked_fill(outside_T, 0.0) if masks else raw_T.clamp(chosen.floor, chosen.cap)
    each, above = (_by_rows(cut_T, targets)[0], _by_rows(above_T, targets)[0]) if by_row else (cut_T, above_T)
    real = _by_rows(cut_T, targets)[1] if by_row else targets.real
    name = "sampling/importance_sampling_ratio"
    measures.means |= {f"{name}/mean": _mean(each, real), "sampling/capped": _mean(above, real)}
    measures.least[f"{name}/min"], measures.most[f"{name}/max"] = each.amin(), each.amax()
    return cut_T, measures


@torch.no_grad()
def _vespo_weight(
    log_ratio_T: torch.Tensor, correction_T: torch.Tensor | None, chosen: PolicyLoss, targets: Targets
) -> torch.Tensor:
    """e^lambda w^k e^(-lambda w) of the sequence's ratio w, in which the correction is contained; no gradient."""
    log_w_T = _by_row(log_ratio_T.clamp(-MOST_LOG_WEIGHT, MOST_LOG_WEIGHT), targets)
    if correction_T is not None:
        log_correction_T = correction_T.log().clamp(LEAST_LOG_WEIGHT, MOST_LOG_WEIGHT)
        once = chosen.correction.startswith("sequence")
        log_w_T = log_w_T + (log_correction_T if once else _by_row(log_correction_T, targets))
    log_w_T = log_w_T.clamp(LEAST_LOG_WEIGHT, MOST_LOG_WEIGHT)
    good_T = targets.advantage >= 0
    (k_good, lambda_good), (k_bad, lambda_bad) = VESPO
    k_T, lambda_T = torch.where(good_T, k_good, k_bad), torch.where(good_T, lambda_good, lambda_bad)
    return (lambda_T + k_T * log_w_T - lambda_T * log_w_T.exp()).exp().nan_to_num(0.0, 0.0, 0.0)


def _by_row(values_T: torch.Tensor, targets: Targets, mean: bool = False) -> torch.Tensor:
    """The sum or the mean of each target's row."""
    sums_R = values_T.new_zeros(targets.n_rows).index_add(0, targets.row, values_T)
    if mean:
        sums_R = sums_R / _counts(targets).to(values_T.dtype).clamp(min=1)
    return sums_R[targets.row]


def _counts(targets: Targets) -> torch.Tensor:
    return torch.bincount(targets.row, minlength=targets.n_rows)


def _by_rows(values_T: torch.Tensor, targets: Targets) -> tuple[torch.Tensor, torch.Tensor]:
    """(values (R,) of what is the same in all of a row, whether each is real)."""
    first_R = torch.cumsum(_counts(targets), 0) - _counts(targets)
    return values_T[first_R], targets.real[first_R]


def _share_of(chosen: PolicyLoss, targets: Targets, is_T: torch.Tensor) -> torch.Tensor:
    return _mean(is_T, targets.real) if chosen.ratio == "token" else _mean(*_by_rows(is_T, targets))


def _mean(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Sum and count of what is real."""
    values = values.detach().float().masked_fill(~real, 0.0)
    return torch.stack([values.sum(), real.sum().to(values)])
