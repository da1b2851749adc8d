"""Settings of learning from pairs: section `dpo`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from counterpoint.configs.base import Count, NotEmpty, NotNegative, OneOrMany, Positive, Settings, Unique

DpoLoss = Literal[
    "sigmoid", "sft", "hinge", "ipo", "robust", "nca_pair", "bco_pair", "sppo_hard", "apo_zero", "apo_down",
    "sigmoid_norm", "kto", "apo_zero_unpaired",
]  # fmt: skip
RATED_LOSSES = ("kto", "apo_zero_unpaired")
NegativeKind = Literal[
    "malformed_header", "content_type", "wrong_channel", "leaked_analysis", "empty_analysis", "wrong_terminator"
]


class DpoSettings(Settings):
    """Pairs and their loss (TRL's of DPO), or completions rated one by one and theirs (TRL's of KTO)."""

    beta: Positive = 0.1
    """Strength of the penalty for moving away from the model before training; larger keeps it closer."""

    losses: Annotated[tuple[DpoLoss, ...], NotEmpty, Unique, OneOrMany] = ("sigmoid", "sft")
    """Losses that are summed. `sigmoid` alone lowers the probability of the wanted answers as well; `sft` keeps it up.
    `kto` and `apo_zero_unpaired` are not combined with others: they need rated completions instead of pairs, which are
    rows with a `label`, both sides of a pair, and right completions with their `negatives`."""

    loss_weights: tuple[NotNegative, ...] | None = None
    """A weight for each of `losses`; null takes 1 for each."""

    loss_on: Literal["turn", "final", "analysis", "calls", "fault"] = "turn"
    """The part of both sides that is compared: the whole turn, or one channel of it; the rest is context. `fault`: of
    `negatives` the tokens that make the difference, so that nothing else of the completion is pushed."""

    negatives: Annotated[tuple[NegativeKind, ...], Unique, OneOrMany] = ()
    """Faults put into right completions to make the rejected side: rows that are conversations (and not pairs) give a
    pair for each action. Empty takes pairs only."""

    negatives_each: Count = 1
    """Pairs made from one action, each with a different fault, drawn from the seed."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Assumed share of pairs whose preference is wrong (label noise), for `robust`."""

    wanted_weight: Positive = 1.0
    """For `kto` and `apo_zero_unpaired`: loss weight of wanted completions. Where there are fewer of one kind,
    weigh it up: wanted rows times their weight over unwanted rows times theirs is best from 1 to 1.33."""

    unwanted_weight: Positive = 1.0
    """For `kto` and `apo_zero_unpaired`: loss weight of unwanted completions."""

    row_tokens: Count | None = None
    """Most tokens of a forward pass. The pairs of a step are packed into rows of at most this many, in which the prompt
    of both sides is computed once; a longer pair is a row of its own. null takes twice `data.max_tokens`, which every
    pair fits into, and `data.max_tokens` for rated completions."""

    @property
    def rated(self) -> bool:
        """Whether completions are rated one by one, without pairs."""
        return self.losses[0] in RATED_LOSSES

    @model_validator(mode="after")
    def _checks(self) -> DpoSettings:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(f"`loss_weights` has {len(self.loss_weights)} entries and `losses` {len(self.losses)}")
        if self.negatives and self.loss_on not in ("turn", "fault"):
            raise ValueError("`negatives` are faults of whole turns: use `loss_on: turn` or `fault` with them")
        if self.loss_on == "fault" and not self.negatives:
            raise ValueError("`loss_on: fault` compares built faults: give `negatives`, or use `loss_on: turn`")
        if self.label_smoothing and "robust" not in self.losses:
            raise ValueError(
                "`label_smoothing` is the noise that `robust` assumes: add it to `losses`, or leave it out"
            )
        rated = [loss for loss in self.losses if loss in RATED_LOSSES]
        if rated and len(self.losses) > 1:
            raise ValueError(f"`{rated[0]}` takes rated completions and the others take pairs: list it alone")
        if rated and self.loss_weights is not None:
            raise ValueError(f"`loss_weights` belong to pairs, and `{rated[0]}` takes none")
        if not rated and (self.wanted_weight, self.unwanted_weight) != (1.0, 1.0):
            raise ValueError("`wanted_weight` and `unwanted_weight` belong to `kto` and `apo_zero_unpaired`")
        return self
