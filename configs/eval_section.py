"""Settings of the evaluation by sampling: section `eval`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

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
    Share,
    Text,
    Unique,
)
from counterpoint.configs.data_section import Format
from counterpoint.configs.environment_section import (
    EnvironmentName,
    InstanceSettings,
    UserSettings,
    check_asked_by_package,
)
from counterpoint.configs.foreign_section import ForeignType, PackageSettings
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.configs.server_section import ServerSettings, VllmSettings
from counterpoint.configs.tool_section import TaskTools, ToolSettings


class TruncationSettings(Settings):
    """The part of a distribution that is sampled from, in the order of vLLM: min-p, top-k, top-p."""

    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens whose probabilities add up to this; 1 from all."""

    top_k: Count | None = None
    """Sample from this many of the likeliest tokens; null from all."""

    min_p: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Sample from the tokens that have at least this share of the likeliest token's probability; 0 from all."""


class SamplingSettings(TruncationSettings):
    """Fixed prompts, sampled token in and token out at each effort, and checked on ids."""

    prompts: Text | None = None
    """File of conversations that end where the model should answer, or `example:NAME`; null takes the prompts included
    in the package."""

    efforts: Annotated[tuple[Effort, ...], NotEmpty, Unique, OneOrMany] = ("low", "medium", "high")
    """Efforts at which every prompt is sampled."""

    samples: Count = 1
    """Samples of each prompt at each effort."""

    max_new_tokens: Count = 512
    """Maximum tokens per sample; a sample that does not stop within them counts as truncated."""

    temperature: NotNegative = 1.0
    """Temperature of sampling; 0 is greedy."""

    batch: Count = 32
    """Prompts sampled at a time."""

    base: bool = True
    """Measure the base model as well, with the adapter switched off, for comparison."""

    tools: ToolSettings | None = None
    """Tools that are run while items of a task and the prompts of a file are sampled, those included in the package
    aside: a call is answered, and sampling goes on. null takes those of `recipe: grpo`, section `tools`."""

    rewards: Annotated[tuple[Annotated[RewardSettings, BY_TYPE], ...], OneOrMany] | None = None
    """Rewards of each sample, beside its score. null takes those of `recipe: grpo`."""

    calls: CountOrZero = 8
    """Maximum calls of tools that are run, in one turn; one more ends the sample."""

    completion_tokens: Count = 4096
    """Longest turn where tools are run: all actions, of `max_new_tokens` each, and results together."""


class TaskSettings(Settings):
    """One task of a suite: items with their truth, and how they are sampled. Settings that are null come from
    `eval`."""

    type: Any
    """Where the items come from."""

    name: Text | None = None
    """Name in reports; null takes the generator's, the file's, or the type's."""

    size: Count | None = None
    """Number of items: a generator makes that many (null makes 100), a file gives its first ones (null takes all)."""

    scorer: Text | None = None
    """`exact`, `number`, `math`, `choice`, `calls`, `schema`, `instructions`, `instructions_loose`,
    `instructions_all`, `instructions_all_loose`, `reasoning_gym`; `lm_eval_gsm8k`, `lm_eval_gsm8k_strict` or
    `lm_eval_gpqa`, to read as lm-evaluation-harness does; or your own function as `module:function` or
    `file.py:function`; null takes the one that fits the truth of each row."""

    instructions: Text | None = None
    """Developer message of items that have none."""

    tools: TaskTools | None = None
    """Tools that are run, as of `eval.tools`, which null takes; or a list of tools that are only declared."""

    rewards: Annotated[tuple[Text, ...], Unique, OneOrMany] | None = None
    """Names of those of `eval.rewards` that count here; null takes all."""

    efforts: Annotated[tuple[Effort, ...], NotEmpty, Unique] | None = None
    """Efforts at which every item is sampled; null takes `eval.efforts`."""

    samples: Count | None = None
    """Samples of each item at each effort; null takes `eval.samples`."""

    max_new_tokens: Count | None = None
    """Longest sample; null takes `eval.max_new_tokens`."""

    temperature: NotNegative | None = None
    """Temperature of sampling; null takes `eval.temperature`."""

    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Sample from the likeliest tokens whose probabilities add up to this, 1 from all; null takes `eval.top_p`."""

    top_k: CountOrZero | None = None
    """Sample from this many of the likeliest tokens, 0 from all; null takes `eval.top_k`."""

    min_p: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Sample from the tokens that have at least this share of the likeliest token's probability, 0 from all; null takes
    `eval.min_p`."""


class PromptTask(TaskSettings):
    """Items that have a prompt of their own."""

    follow_ups: Annotated[tuple[Text, ...], OneOrMany] = ()
    """What the user says after each final, to items that have no `follow_ups` of their own; the last answer is
    scored."""

    calls: CountOrZero | None = None
    """Maximum calls of tools that are run, in one turn; null takes `eval.calls`."""

    completion_tokens: Count | None = None
    """Longest turn where tools are run; null takes `eval.completion_tokens`."""


class ProbesTask(PromptTask):
    """The conversations included in the package, or a file of probes."""

    type: Literal["probes"]

    path: Text | None = None
    """Another file of probes, or `example:NAME`."""

    format: Format = "auto"
    """Format of the file's rows, as of `data.train`."""

    truth: Text | None = None
    """Field of the rows with the right answer, as `a.b.c`; null looks under the names in use (`answer`, `ground_truth`,
    `reward_model.ground_truth`, `solution`, ...)."""


class FileTask(PromptTask):
    """Rows of your own with `answer`, `calls`, `schema`, ..."""

    type: Literal["file"]

    path: Text
    """A data file, or `example:NAME`."""

    format: Format = "auto"
    """Format of the file's rows, as of `data.train`."""

    truth: Text | None = None
    """Field of the rows with the right answer, as `a.b.c`; null looks under the names in use (`answer`, `ground_truth`,
    `reward_model.ground_truth`, `solution`, ...)."""


ReadyName = Literal["gsm8k", "aime", "gpqa", "ifeval", "ifbench", "bfcl"]


class ReadyTask(PromptTask):
    """A public benchmark, from its rows as they are published. Settings that are null come from the benchmark: its
    scorer, samples and length."""

    type: ReadyName
    """The benchmark: `gsm8k`, `aime`, `gpqa`, `ifeval`, `ifbench` or `bfcl`."""

    path: Text | None = None
    """Its data file, or `hf:NAME@CONFIG:SPLIT`; null takes the public data set, which BFCL has none of."""

    answers: Text | None = None
    """File of the right calls of `bfcl`; null takes the file of the same name in `possible_answer` beside `path`, where
    there is one."""

    @model_validator(mode="after")
    def _answers_of_bfcl(self) -> ReadyTask:
        if self.answers is not None and self.type != "bfcl":
            raise ValueError(f"`answers` has no effect: the rows of `{self.type}` hold their answers: leave it out")
        return self


class GeneratedTask(PromptTask):
    """Items that are made from a seed."""

    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the generator, as `{digits: 2}`."""

    seed: CountOrZero = 0
    """Seed of the items, separate from the run's seed, so that other samples can be drawn for the same items."""


class ArithmeticTask(GeneratedTask):
    """Sums, differences and products."""

    type: Literal["arithmetic"]


class ReasoningGymTask(GeneratedTask):
    """A generator of the package reasoning-gym."""

    type: Literal["reasoning_gym"]

    generator: Text
    """The generator, as `chain_sum`."""


class EnvironmentTask(TaskSettings, InstanceSettings):
    """Rollouts in an environment of your own, rewarded by it, on rows of a file. `scorer` names the one of its rewards
    that says what is right; null takes the weighted sum. `max_new_tokens` is of an action."""

    type: Literal["environment"]

    path: Text
    """A data file whose rows are given to the environment, or `example:NAME`."""

    format: Format = "auto"
    """Format of the file's rows, where they hold a prompt, as of `data.train`."""

    environment: EnvironmentName | None = None
    """Only the rows whose field `environment` is this name, of a file whose rows name theirs; null takes all."""

    calls: CountOrZero = 8
    """Maximum tool calls in one turn; one more ends the rollout."""

    completion_tokens: Count = 4096
    """Longest turn: all actions and tool results together."""

    user: UserSettings | None = None
    """The model that the environment's `ctx.ask` asks."""


class ForeignTask(TaskSettings, PackageSettings):
    """Rollouts that another project's package drives, as of `rollout.environment`. `scorer` names the reward or metric
    that says what is right; null takes the weighted sum. `max_new_tokens` is of an action."""

    type: ForeignType
    """The package, or `script` for a bridge of your own."""

    path: Text | None = None
    """A data file whose rows are given to the package, each with a field `task`; null takes the package's own tasks."""

    format: Format = "auto"
    """Format of the file's rows, where they hold a prompt, as of `data.train`."""

    calls: CountOrZero = 8
    """Maximum tool calls of the model that are told in a row; one more is told as an answer that was cut."""

    completion_tokens: Count = 4096
    """Longest row of sampled ids with the tool results between them."""

    user: UserSettings | None = None
    """The model that plays the package's user; null lets the model itself play it, and learn nothing from that."""

    @model_validator(mode="after")
    def _asked_by_the_package(self) -> ForeignTask:
        for name in ("instructions", "tools"):
            if getattr(self, name):
                raise ValueError(f"`{name}` would not be shown: the package writes what the model is asked")
        check_asked_by_package(self.user)
        return self


class EvalSettings(SamplingSettings):
    """The hook that samples from the live model before, during and after training."""

    every: Count | None = None
    """Steps between evaluations; null for none in between."""

    at_start: bool = True
    """Evaluate before the first step."""

    at_end: bool = True
    """Evaluate after the last step."""

    tasks: Annotated[tuple[Annotated[TaskSettings, BY_TYPE], ...], OneOrMany] = ()
    """Tasks that are sampled as well, as in an evaluation."""

    stop_below: Share | None = None
    """A channel-correct rate below this stops the run (never at the start); null never stops it."""

    warn_below: Share | None = None
    """A channel-correct rate below this logs a warning; null never warns."""

    @model_validator(mode="after")
    def _checks(self) -> EvalSettings:
        if self.stop_below is not None and self.warn_below is not None and self.warn_below < self.stop_below:
            raise ValueError(
                f"`warn_below` ({self.warn_below}) is under `stop_below` ({self.stop_below}), so it would never warn: "
                "raise the first or lower the second"
            )
        return self


class SuiteSettings(SamplingSettings):
    """Tasks, and the engine that samples them."""

    tasks: tuple[Annotated[TaskSettings, BY_TYPE], ...] = ()
    """The tasks, in the order of the report; none samples `prompts` alone."""

    engine: Literal["transformers", "vllm", "server"] = "transformers"
    """`transformers` and `vllm` sample in this process, `server` asks `server.url`. All take and give token ids."""

    server: ServerSettings = ServerSettings()
    """Of `engine: server`."""

    vllm: VllmSettings = VllmSettings()
    """Of `engine: vllm`."""

    scorer_seconds: Positive = 10.0
    """Timeout in seconds of one call of a scorer that runs user code; a call that takes longer counts as failed."""

    @model_validator(mode="after")
    def _suite(self) -> SuiteSettings:
        if self.tasks and self.prompts is not None:
            raise ValueError("`prompts` and `tasks` exclude each other: make the prompts a task of type `file`")
        return self
