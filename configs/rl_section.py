"""Settings of learning from rewards: prompts, rollouts, tools, and the loss (sections of `recipe: grpo`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from counterpoint.configs.base import (
    BY_TYPE,
    Count,
    CountOrZero,
    Effort,
    NotEmpty,
    NotNegative,
    OneOrMany,
    Positive,
    Settings,
    Text,
    Unique,
)
from counterpoint.configs.data_section import OpeningSettings, Overlap
from counterpoint.configs.environment_section import AnyEnvironment, EnvironmentName, UserSettings
from counterpoint.configs.eval_section import PromptTask, TruncationSettings
from counterpoint.configs.model_section import ModelSettings
from counterpoint.configs.server_section import RolloutServerSettings, VllmSettings
from counterpoint.configs.share import OrShare, check_share, share_of

_SET_ELSEWHERE = {
    "samples": "grpo.group",
    "temperature": "rollout.temperature",
    **{name: f"rollout.{name}" for name in TruncationSettings.model_fields},
    "max_new_tokens": "rollout.action_tokens",
    "efforts": "grpo.efforts",
    "rewards": "rewards",
    "calls": "rollout.calls",
    "completion_tokens": "rollout.completion_tokens",
}


class PromptSettings(OpeningSettings):
    """The prompts that are sampled, and how they are rendered."""

    train: Annotated[tuple[Annotated[PromptTask, BY_TYPE], ...], NotEmpty, OneOrMany]
    """Where prompts and their truth come from: files, reasoning-gym generators, arithmetic, as tasks of an evaluation.
    How often they are sampled and how is set by `grpo` and `rollout`."""

    valid: Annotated[tuple[Annotated[PromptTask, BY_TYPE], ...], OneOrMany, OrShare] = ()
    """Held-out prompts, of which only the rewards are measured, every `eval.every` steps and after the last; empty for
    none. `2%` splits a share off `train`, by prompt and seed."""

    overlap: Overlap = "held_out"
    """Prompts that stand in `train` and in `valid` alike, or that the evaluation samples, are reported: left out of
    training (`held_out`), left out of the held-out prompts (`train`), or kept on both sides (`both`)."""

    max_tokens: Count = 8192
    """Longest prompt in tokens; longer ones are an error."""

    shuffle: bool = True
    """Draw a new order of prompts for every pass from the seed."""

    @model_validator(mode="after")
    def _checks(self) -> PromptSettings:
        if self.valid_share is not None:
            check_share(str(self.valid), self.valid_share)
        for task in (*self.train, *self.valid_tasks):
            for name, owner in _SET_ELSEWHERE.items():
                if getattr(task, name) is not None:
                    raise ValueError(f"`{name}` of a task is for evaluations: leave it out, and set `{owner}`")
            if task.tools is not None and task.tools.any:
                raise ValueError("`tools` of a task are run in evaluations: leave them out, and set section `tools`")
        return self

    @property
    def valid_share(self) -> float | None:
        """The share of the prompts that is held out."""
        return share_of(self.valid) if isinstance(self.valid, str) else None

    @property
    def valid_tasks(self) -> tuple[PromptTask, ...]:
        """The tasks of held-out prompts."""
        return () if isinstance(self.valid, str) else self.valid


class RolloutSettings(TruncationSettings):
    """How completions are sampled: token in, token out, through tool calls to the final."""

    temperature: Positive = 1.0
    """Temperature of sampling."""

    action_tokens: Count = 512
    """Longest action: what is sampled between two tool results."""

    completion_tokens: Count = 4096
    """Longest rollout: all actions and tool results together."""

    calls: CountOrZero = 8
    """Maximum tool calls in one rollout; one more ends it."""

    batch: Count = 64
    """Rollouts sampled at a time."""

    environment: AnyEnvironment | None = None
    """A task of your own that answers the model and rewards it, or another project's package (`type`); null for prompts
    that stand alone."""

    environments: dict[EnvironmentName, AnyEnvironment] = Field(default_factory=dict)
    """Several such tasks or packages by name; each row names its own in its field `environment`."""

    user: UserSettings | None = None
    """The model that an environment's `ctx.ask` asks, and that plays a package's user."""

    engine: Literal["transformers", "vllm", "server"] = "transformers"
    """`transformers` samples from the model that is trained; `vllm` loads it a second time in this process, `server`
    asks vLLM servers, and both are given the new weights before every step's rollouts."""

    weights: Literal["adapter", "merged"] = "adapter"
    """What is sent to vLLM: the adapter, or (`vllm` only) the full model with the adapter merged into a copy."""

    vllm: VllmSettings = VllmSettings(gpu_memory=0.3)
    """Of `engine: vllm`."""

    server: RolloutServerSettings = RolloutServerSettings()
    """Of `engine: server`."""

    staleness: CountOrZero = 0
    """Steps that rollouts are sampled ahead (`engine: server`): those of a step by the weights of as many steps before
    it, while the steps between are trained. With 0 a step waits for its rollouts. The log says how much would do
    (`rollouts/advised_staleness`)."""

    order: Literal["strict", "window"] = "strict"
    """Which groups a step learns from where they are sampled ahead: `strict`, the next ones by their number, whatever
    takes how long, so that a run can be repeated; `window`, whichever of the oldest 30 % are done."""

    ratio_to: Literal["current", "sampled"] = "current"
    """What the probability ratio of the clip is to: `current`, the weights that begin the step, and `correction` weighs
    what was sampled by others; `sampled`, what the engine says, without a further correction."""

    correction: Literal["sequence_mask", "sequence_truncate", "token_mask", "token_truncate", "off"] = "sequence_mask"
    """Importance correction where the engine's probabilities differ from the trainer's: a ratio for each sequence or
    token, which above `correction_cap` counts as 0 (`mask`) or as the cap (`truncate`)."""

    correction_cap: Positive = 3.0
    """Largest ratio of the correction."""

    correction_floor: Positive | None = None
    """Least ratio of the correction: below, a ratio counts as 0 (`mask`) or as this (`truncate`); null sets none."""

    routes: Literal["replay", "off"] = "off"
    """`replay` sends each token to the experts that it went to where it was sampled, as another engine names them (vLLM
    with `--enable-return-routed-experts`); the router's own weights of them are learned."""

    @model_validator(mode="after")
    def _one_way(self) -> RolloutSettings:
        if self.routes == "replay" and self.engine == "transformers":
            raise ValueError(
                "`routes: replay` repeats what another engine chose, and `engine: transformers` is the model itself: "
                "leave it out"
            )
        if self.environment is not None and self.environments:
            raise ValueError("`environment` and `environments` exclude each other: name all in `environments`")
        return self

    @model_validator(mode="after")
    def _ahead(self) -> RolloutSettings:
        if self.staleness and self.engine != "server":
            why = "samples from the weights that are trained" if self.engine == "transformers" else "shares their GPU"
            raise ValueError(
                f"`staleness` samples while the trainer trains, and `engine: {self.engine}` {why}: use `engine: server`"
            )
        if self.order == "window" and not self.staleness:
            raise ValueError("`order: window` chooses among groups that are sampled ahead: set `staleness` as well")
        if self.ratio_to == "sampled":
            if self.engine == "transformers":
                raise ValueError("`ratio_to: sampled` is to another engine's log-probabilities: use `server` or `vllm`")
            given = self.correction, self.correction_cap, self.correction_floor
            if given != ("sequence_mask", 3.0, None) and self.correction != "off":
                raise ValueError("`ratio_to: sampled` takes the place of `correction`: leave that out")
        return self

    @property
    def in_environments(self) -> bool:
        """Whether rollouts are in environments, which reward them."""
        return self.environment is not None or bool(self.environments)


class TeacherServerSettings(Settings):
    """A server that says how likely given tokens are: `prompt_logprobs` of `/v1/completions` (vLLM, or `counterpoint
    serve`). A key is read from COUNTERPOINT_SERVER_KEY."""

    url: Text = "http://127.0.0.1:8000/v1"
    """Address, up to `/v1`."""

    model: Text | None = None
    """Name that the server gives the model; null takes the first one listed."""

    parallel: Count = 16
    """Concurrent requests of a process."""

    timeout: Positive = 600.0
    """Timeout of one request in seconds."""

    retries: CountOrZero = 3
    """Retries of a request that failed in transit or met a busy server."""


class TeacherSettings(Settings):
    """A teacher model that scores every sampled token with its log-probability (on-policy distillation)."""

    model: ModelSettings | None = None
    """The teacher: a checkpoint of any size with gpt-oss's vocabulary. It is in memory in addition to the model."""

    server: TeacherServerSettings | None = None
    """The teacher behind a server, in place of `model`: no memory here, and one request for each row that was sampled,
    before its step. At temperature 1 only."""

    weight: Positive = 1.0
    """Weight of the teacher's log-probability minus the model's own, which is added to the advantage of each token."""

    @model_validator(mode="after")
    def _one_teacher(self) -> TeacherSettings:
        if (self.model is None) == (self.server is None):
            raise ValueError("a teacher is a `model` in memory or one behind a `server`: name one of them")
        return self


TAUGHT_LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo")
GrpoLoss = Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo"]


class GrpoSettings(Settings):
    """Groups of completions and the loss on their rewards."""

    group: Annotated[int, Field(ge=2)] = 8
    """Completions of a prompt that are compared with each other."""

    efforts: Annotated[tuple[Effort, ...], Unique, OneOrMany] = ()
    """Efforts at each of which every prompt is sampled in a group of its own; empty samples a prompt at its effort."""

    loss: GrpoLoss = "dapo"
    """How the loss is formed and normalised."""

    beta: NotNegative = 0.0
    """Weight of the KL divergence from the model before training; 0 needs no reference model."""

    epsilon: Positive | None = None
    """Lower clip of the probability ratio; null takes 0.2, or 3e-4 with `ratio: sequence`, whose ratios stay near 1."""

    epsilon_high: Positive | None = None
    """Upper clip; null takes `epsilon` where it is given, else 0.2, with `ratio: sequence` 4e-4. Of `loss: cispo` it is
    the largest ratio itself, 5."""

    entropy_bonus: float = 0.0
    """Weight of the mean entropy of the sampled tokens, which is added to what is maximised; negative sharpens."""

    top_entropy: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a step's tokens that the policy's loss counts, those of the highest entropy (arXiv:2506.01939 takes
    0.2). Costs one more forward pass below 1."""

    baseline: Literal["group", "leave_one_out"] = "group"
    """What is subtracted from a reward: the mean of its group, or of the others in it (RLOO)."""

    scale: Literal["group", "batch", "whitened", "none"] = "group"
    """Advantages are divided by the deviation of the rewards in their group, in the batch, or not at all; `whitened`
    ones are shifted and divided so that all of a step have mean 0 and deviation 1 (REINFORCE++-baseline)."""

    oversample: Annotated[float, Field(ge=1)] = 1.0
    """Groups that are sampled for each that is learned from (DAPO's dynamic sampling): the first groups whose rewards
    differ are learned from, the rest are dropped. 1 learns from all."""

    ratio_cap: Annotated[float, Field(gt=1)] | None = None
    """Largest probability ratio of a negative advantage, which the clip alone leaves without a bound; null sets none.
    For the losses that clip."""

    off_policy: Positive | None = None
    """Rollouts of negative advantage do not count whose mean log-probability fell by more than this since they were
    sampled, nats a token (DeepSeek-V3.2); null counts all."""

    kl_ratio: bool = True
    """Weigh the KL estimate of `beta` by the probability ratio, which makes its gradient that of the divergence."""

    ratio: Literal["token", "sequence"] = "token"
    """Whether probability ratios are of tokens or of whole sequences (GSPO)."""

    iterations: Count = 1
    """Passes over the same rollouts."""

    row_tokens: Count | None = None
    """Most tokens of a forward pass. The rollouts of a step are packed into rows of at most this many, in which what
    they share is computed once; a longer rollout is a row of its own. null takes the longest rollout that can be:
    `data.max_tokens` and `rollout.completion_tokens`."""

    mask_truncated: bool = False
    """Leave rollouts out of the loss that ran out of tokens."""

    teacher: TeacherSettings | None = None
    """Learn each sampled token from a teacher as well; with all rewards of weight 0, from it alone."""

    @property
    def clip(self) -> tuple[float, float]:
        """`epsilon` and `epsilon_high` as they act. 3e-4 and 4e-4 are GSPO's (arXiv:2507.18071), 5 is ScaleRL's of
        cispo (arXiv:2510.13786)."""
        low, high = (3e-4, 4e-4) if self.ratio == "sequence" else (0.2, 0.2)
        high = 5.0 if self.loss == "cispo" else high if self.epsilon is None else self.epsilon
        return self.epsilon or low, self.epsilon_high or high

    @property
    def idle_clip(self) -> str | None:
        """What was set of the clip and can never act: rollouts that are learned from once have a ratio of 1."""
        if self.iterations > 1:
            return None
        return next((name for name in ("epsilon", "epsilon_high") if name in self.model_fields_set), None)

    @model_validator(mode="after")
    def _checks(self) -> GrpoSettings:
        clips = ("grpo", "dapo", "bnpo", "dr_grpo", "luspo")
        if self.ratio_cap is not None and self.loss not in clips:
            raise ValueError(f"`ratio_cap` is for losses that clip ({', '.join(clips)}), and `loss` is {self.loss}")
        if not self.kl_ratio and not self.beta:
            raise ValueError("`kl_ratio` weighs the divergence of `beta`, which is 0: set `beta`, or leave it out")
        if self.teacher is not None and (self.loss not in TAUGHT_LOSSES or self.ratio != "token"):
            raise ValueError(f"`teacher` rates tokens: use `ratio: token` and a `loss` of {', '.join(TAUGHT_LOSSES)}")
        return self
