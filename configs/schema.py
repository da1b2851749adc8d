"""Every setting of every recipe. One class a recipe here, one class a section in the `*_section` modules.

    RECIPES       recipe -> its class
    SftRun        sections model, lora, data, train, eval, tracking, launch
    DpoRun        the same, and dpo; GrpoRun: the same, and grpo, rollout, rewards, tools
    DistillRun    sections model, data, distill; EvaluateRun: model, eval

The docstring under a field is its documentation and the JSON schema's description (`counterpoint configs schema sft`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, model_validator
from pydantic.json_schema import GenerateJsonSchema

from counterpoint.configs.base import BY_TYPE, CountOrZero, Device, Effort, Settings, Text
from counterpoint.configs.data_section import (
    ConversionSettings,
    DataSettings,
    HeldOutSourceSettings,
    OpeningSettings,
    PairSettings,
    QuestionSettings,
    ReadSettings,
    RenderSettings,
    SchemaSettings,
    ServedSettings,
    SourceSettings,
)
from counterpoint.configs.distill_section import DistillSettings
from counterpoint.configs.environment_section import EnvironmentSettings, UserSettings
from counterpoint.configs.eval_section import (
    EnvironmentTask,
    EvalSettings,
    ForeignTask,
    PromptTask,
    SamplingSettings,
    SuiteSettings,
    TaskSettings,
)
from counterpoint.configs.figures import check_figures, held_out_figures, reward_figures
from counterpoint.configs.foreign_section import ForeignSettings
from counterpoint.configs.launch_section import RewardLaunchSettings, ServeSettings
from counterpoint.configs.model_section import LoraSettings, ModelSettings, SupervisedModelSettings
from counterpoint.configs.preference_section import DpoSettings
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.configs.rl_section import (
    GrpoSettings,
    PromptSettings,
    RolloutSettings,
    TeacherServerSettings,
    TeacherSettings,
)
from counterpoint.configs.section_checks import (
    check_driven,
    check_eval_tasks,
    check_grpo,
    check_no_dropout,
    check_paid,
    check_rollouts,
    check_sections,
    check_serve,
    check_served,
    with_rate_of_full,
)
from counterpoint.configs.server_section import RolloutServerSettings, ServerSettings, VllmSettings
from counterpoint.configs.source_columns import ColumnSettings, RoleSettings
from counterpoint.configs.target_section import BadTargetSettings, ChannelWeights
from counterpoint.configs.tool_section import BrowserSettings, TaskToolSettings, ToolSettings
from counterpoint.configs.train_section import (
    LaunchSettings,
    RateSettings,
    StopSettings,
    SupervisedTrainSettings,
    TrackingSettings,
    TrainSettings,
)

__all__ = [
    "RECIPES",
    "BadTargetSettings",
    "BrowserSettings",
    "ChannelWeights",
    "ColumnSettings",
    "ConversionSettings",
    "DataSettings",
    "DistillRun",
    "DistillSettings",
    "DpoRun",
    "DpoSettings",
    "Effort",
    "EnvironmentSettings",
    "EnvironmentTask",
    "EvalSettings",
    "EvaluateRun",
    "ForeignSettings",
    "ForeignTask",
    "GrpoRun",
    "GrpoSettings",
    "HeldOutSourceSettings",
    "LaunchSettings",
    "LoraSettings",
    "ModelSettings",
    "OpeningSettings",
    "PairSettings",
    "PromptSettings",
    "PromptTask",
    "QuestionSettings",
    "RateSettings",
    "ReadSettings",
    "RenderSettings",
    "RewardLaunchSettings",
    "RewardSettings",
    "RoleSettings",
    "RolloutServerSettings",
    "RolloutSettings",
    "RunSettings",
    "SamplingSettings",
    "SchemaSettings",
    "ServeSettings",
    "ServedSettings",
    "ServerSettings",
    "Settings",
    "SftRun",
    "SourceSettings",
    "StopSettings",
    "SuiteSettings",
    "SupervisedModelSettings",
    "SupervisedTrainSettings",
    "TaskSettings",
    "TaskToolSettings",
    "TeacherServerSettings",
    "TeacherSettings",
    "ToolSettings",
    "TrackingSettings",
    "TrainSettings",
    "TrainingRun",
    "UserSettings",
    "VllmSettings",
    "json_schema",
]


def _check_name(value: str) -> str:
    if "/" in value or "\\" in value or value.startswith(".") or not value.isprintable():
        raise ValueError("it names a folder inside `output`: write it without slashes, and not with a dot in front")
    return value


class RunSettings(Settings):
    """What every recipe has."""

    seed: CountOrZero = 0
    """Seed of everything that is drawn: weights, order of rows, samples."""

    output: Text = "runs"
    """Folder in which the run makes its own folder, relative to the current one."""

    name: Annotated[Text, AfterValidator(_check_name)] | None = None
    """First part of the run folder's name (of `evaluate`, the last part of the results'); null takes the run file's."""

    model: ModelSettings = ModelSettings()
    """The model."""


class SftRun(RunSettings):
    """Supervised fine-tuning on conversations, on all channels."""

    recipe: Literal["sft"]
    """What the run does: the first line of a run file."""

    model: SupervisedModelSettings = SupervisedModelSettings()  # pyright: ignore[reportIncompatibleVariableOverride]
    """The model."""

    tracking: TrackingSettings = TrackingSettings()
    """Weights & Biases, TensorBoard, MLflow."""

    lora: LoraSettings = LoraSettings()
    """Adapters, or full fine-tuning."""

    data: DataSettings
    """The conversations."""

    train: SupervisedTrainSettings = SupervisedTrainSettings()
    """The loop."""

    eval: EvalSettings = EvalSettings()
    """The evaluation by sampling."""

    launch: LaunchSettings = LaunchSettings()
    """Processes and machines."""

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, run: Any) -> Any:
        return with_rate_of_full(run, 1e-5)

    @model_validator(mode="after")
    def _checks(self) -> SftRun:
        check_sections(self.model, self.lora, self.train, self.launch)
        check_eval_tasks(self.eval.tasks, self.launch)
        check_figures(self.train, self.eval.every, held_out_figures(self.data.valid_sets, "loss"))
        return self


class DpoRun(RunSettings):
    """Learning from pairs of a wanted and an unwanted completion, or from completions that are rated one by one."""

    recipe: Literal["dpo"]
    """What the run does: the first line of a run file."""

    tracking: TrackingSettings = TrackingSettings()
    """Weights & Biases, TensorBoard, MLflow."""

    lora: LoraSettings = LoraSettings()
    """Adapters, or full fine-tuning."""

    data: PairSettings
    """The pairs, rows with a `label`, or conversations of which pairs are made."""

    dpo: DpoSettings = DpoSettings()
    """What is compared, and the loss."""

    train: TrainSettings = TrainSettings(learning_rate=5e-5)
    """The loop; a step takes `batch_rows` x `accumulation` pairs, or rated completions, in each process."""

    eval: EvalSettings = EvalSettings()
    """The evaluation by sampling."""

    launch: LaunchSettings = LaunchSettings()
    """Processes and machines."""

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, run: Any) -> Any:
        return with_rate_of_full(run, 1e-6)

    @model_validator(mode="after")
    def _checks(self) -> DpoRun:
        per_step = self.train.batch_rows * self.train.accumulation * self.launch.processes * self.launch.nodes
        if self.dpo.losses == ("kto",) and per_step < 2:
            raise ValueError("`dpo.losses: kto` compares the rows of a step: set `train.batch_rows` to 2 or more")
        if self.dpo.negatives and (off := [name for name, weight in self.data.weights if weight == 0]):
            raise ValueError(
                f"`data.weights.{off[0]}: 0` does not reach the pairs that `dpo.negatives` makes, whose turns are "
                "compared whole: leave one of them out"
            )
        check_sections(self.model, self.lora, self.train, self.launch)
        check_eval_tasks(self.eval.tasks, self.launch)
        check_no_dropout(self.lora, self.recipe)
        kinds = ("loss",) if self.dpo.rated else ("loss", "accuracy", "margin")
        check_figures(self.train, self.eval.every, held_out_figures(self.data.valid_sets, *kinds))
        return self


class GrpoRun(RunSettings):
    """Learning from rewards on groups of rollouts."""

    recipe: Literal["grpo"]
    """What the run does: the first line of a run file."""

    tracking: TrackingSettings = TrackingSettings()
    """Weights & Biases, TensorBoard, MLflow."""

    lora: LoraSettings = LoraSettings()
    """Adapters, or full fine-tuning."""

    data: PromptSettings
    """The prompts."""

    rollout: RolloutSettings = RolloutSettings()
    """Sampling."""

    tools: ToolSettings = ToolSettings()
    """Tools that are run inside a rollout."""

    rewards: tuple[Annotated[RewardSettings, BY_TYPE], ...] = ()
    """What a rollout earns: each with its weight. May be empty where `rollout.environment` gives rewards."""

    grpo: GrpoSettings = GrpoSettings()
    """Groups and the loss."""

    train: TrainSettings = TrainSettings(learning_rate=1e-5, no_learning_steps=20)
    """The loop; `batch_rows` counts rollouts, and `batch_rows` times `accumulation` are those of one step."""

    eval: EvalSettings = EvalSettings()
    """The evaluation by sampling."""

    launch: RewardLaunchSettings = RewardLaunchSettings()
    """Processes, machines and servers."""

    @model_validator(mode="before")
    @classmethod
    def _rate(cls, run: Any) -> Any:
        return with_rate_of_full(run, 1e-6)

    @model_validator(mode="after")
    def _checks(self) -> GrpoRun:
        check_grpo(self.grpo, self.train, self.rollout, self.lora)
        if self.launch.strategy == "fsdp2" and self.rollout.engine != "server":
            raise ValueError(
                "`launch.strategy: fsdp2` has no process with the whole model to sample from: use `ddp`, or "
                "`rollout.engine: server`"
            )
        check_paid(self.rewards, self.rollout, taught=self.grpo.teacher is not None)
        check_driven(self.rollout, self.tools)
        if self.rollout.engine != "transformers":
            check_served(self.rollout, self.model, self.lora, self.launch)
        check_serve(self.launch, self.rollout)
        check_sections(self.model, self.lora, self.train, self.launch)
        check_rollouts(self.train, self.rollout, self.grpo.iterations)
        check_no_dropout(self.lora, self.recipe)
        names = [task.name for task in self.data.valid_tasks], [reward.name for reward in self.rewards]
        check_figures(self.train, self.eval.every, reward_figures(*names) if self.data.valid else [])
        return self


class DistillRun(RunSettings):
    """Reasoning for rows that hold answers only, sampled until it ends in the row's answer."""

    recipe: Literal["distill"]
    """What the run does: the first line of a run file."""

    data: QuestionSettings
    """The rows: conversations that end in an answer without reasoning, or questions with an `answer`."""

    distill: DistillSettings = DistillSettings()
    """Sampling and acceptance."""

    device: Device = "auto"
    """`auto` takes CUDA where there is one."""


class EvaluateRun(RunSettings):
    """Evaluation of a checkpoint by sampling, without training."""

    recipe: Literal["evaluate"]
    """What the run does: the first line of a run file."""

    checkpoint: Text | None = None
    """A run folder, a checkpoint, or an adapter folder to put on `model`; null evaluates `model` itself."""

    eval: SuiteSettings = SuiteSettings()
    """Tasks and sampling."""

    device: Device = "auto"
    """`auto` takes CUDA where there is one."""


TrainingRun = SftRun | DpoRun | GrpoRun
Run = TrainingRun | DistillRun | EvaluateRun

RECIPES: dict[str, type[Run]] = {
    "sft": SftRun,
    "dpo": DpoRun,
    "grpo": GrpoRun,
    "distill": DistillRun,
    "evaluate": EvaluateRun,
}


class _UntitledSchema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema(recipe: str) -> dict[str, Any]:
    """JSON schema of a recipe's run files, for editors; `extends` included. KeyError for an unknown recipe."""
    schema = RECIPES[recipe].model_json_schema(schema_generator=_UntitledSchema)
    extends = "A run file next to this one, or a built-in name, whose settings this one changes."
    properties = schema["properties"]
    first = {"extends": {"type": "string", "description": extends}, "recipe": properties.pop("recipe")}
    schema["properties"] = first | properties
    # What a run file must hold may as well come from the one it extends.
    schema["anyOf"] = [{"required": ["extends"]}, {"required": schema.pop("required")}]
    for section in ("DataSettings", "PairSettings", "PromptSettings", "QuestionSettings"):
        schema["$defs"].get(section, {}).pop("required", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
