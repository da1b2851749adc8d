"""Settings of the loop: sections `train`, `tracking`, `launch`."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from counterpoint.configs.base import (
    BelowOne,
    Count,
    CountOrZero,
    Device,
    NotNegative,
    OneOrMany,
    Positive,
    Settings,
    Share,
    Text,
    Unique,
)

ModelPart = Literal["attention", "experts", "router", "embeddings", "head", "norms"]


class StopSettings(Settings):
    """When a run ends before its last step: a figure has not become better for a while."""

    metric: Text
    """The figure, as `train.keep_best`."""

    patience: Count = 3
    """Measurements in a row without a better one, after which the run ends."""

    least: NotNegative = 0.0
    """What counts as better: by more than this."""


class RateSettings(Settings):
    """Factors of the learning rate for what trains; a weight that two of them name has both."""

    lora_b: Positive = 1.0
    """Of the matrices B of all adapters, which begin at 0 (LoRA+: 16 is what its authors recommend)."""

    attention: Positive = 1.0
    """Of attention: its adapters, or its weights and sinks in full fine-tuning."""

    experts: Positive = 1.0
    """Of the experts: their adapters, or their weights."""

    router: Positive = 1.0
    """Of the router: its adapters, or its weights."""

    embeddings: Positive = 1.0
    """Of the input embeddings, where they train."""

    head: Positive = 1.0
    """Of the output embeddings, where they train."""

    norms: Positive = 1.0
    """Of the norms, which train in full fine-tuning."""


class TrainSettings(Settings):
    """Steps, optimizer, checkpoints."""

    epochs: Positive = 1.0
    """Passes over the data; fractions are allowed. Not used where `steps` is given."""

    steps: Count | None = None
    """Optimizer steps; null trains `epochs`."""

    batch_rows: Count = 1
    """Rows a process takes in one forward pass."""

    accumulation: Count = 1
    """Forward passes that make one optimizer step."""

    learning_rate: Positive = 2e-4
    """Highest learning rate of the schedule. The default is one for adapters; with `lora.enabled: false` it is 1e-5 for
    `sft` and 1e-6 for `dpo` and `grpo`."""

    rates: RateSettings = RateSettings()
    """Factors of the learning rate, by what trains."""

    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Course of the learning rate after warm-up: `cosine` and `linear` fall, `wsd` (warm-up, stable, decay) stays up
    and falls in a straight line over the last steps. They would reach `min_rate` one step after the last."""

    min_rate: BelowOne = 0.0
    """Share of the learning rate to which `cosine`, `linear` and `wsd` fall. `wsd` also begins its warm-up there."""

    decay_ratio: Share | None = None
    """Share of the steps, at the end, in which `wsd` falls; null takes 0.1."""

    warmup_ratio: Share = 0.03
    """Share of the steps in which the learning rate rises from 0. Not used where `warmup_steps` is given."""

    warmup_steps: CountOrZero | None = None
    """Steps in which the learning rate rises from 0; null takes `warmup_ratio`."""

    weight_decay: NotNegative = 0.0
    """Decay of AdamW on matrices (not on biases, norms, and sinks)."""

    adam_betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    """How slowly AdamW's means of the gradient and of its square change."""

    adam_epsilon: Positive = 1e-8
    """What AdamW adds to the root of the mean square, by which it divides."""

    max_grad_norm: NotNegative = 1.0
    """Gradients whose norm is larger are scaled down to it; 0 clips none."""

    optimizer: Literal["adamw", "adamw_8bit", "adamw_torch_8bit"] = "adamw"
    """Two keep their state in 8 bits: `adamw_8bit` is bitsandbytes', `adamw_torch_8bit` is torchao's, for fsdp2 too."""

    activation_checkpointing: bool | Literal["experts"] = False
    """Compute activations again in the backward pass: `true` those of whole layers (counted for LoRA on 20b: two fifths
    more operations), `experts` the widest only, which are half of them (a fifth more; LoRA on lean experts)."""

    activation_offload: bool = False
    """Keep what whole layers are computed again from (`activation_checkpointing: true`) in pinned host memory until the
    backward pass; it comes back one layer ahead. Spares a GPU's memory in long rows, and changes no number."""

    frozen: Annotated[tuple[ModelPart, ...], Unique, OneOrMany] = ()
    """Parts of the model that full fine-tuning leaves as they are, in all layers (biases and sinks with their part)."""

    frozen_layers: Annotated[tuple[CountOrZero, ...], Unique, OneOrMany] = ()
    """Layers that full fine-tuning leaves as they are, counted from 0."""

    router_aux_loss_coef: NotNegative = 0.0
    """Weight of the router's load-balancing loss. The released configuration has 0.9, which swamps the loss."""

    on_no_learning: Literal["stop", "warn"] = "stop"
    """What follows where nothing is learned: `no_learning_steps` steps in a row without a gradient, or with a loss that
    fell back to that of a guess. Where rewards or pairs taught before, `stop` keeps a checkpoint. `warn` goes on; the
    command then ends with an error if it is still so."""

    no_learning_steps: Count = 5
    """Steps without learning after which that is clear."""

    checkpoint_every: Count | None = None
    """Steps between checkpoints; null writes only the last one, and one on SIGTERM."""

    keep_checkpoints: Count = 2
    """Newest checkpoints that are kept; the last step's is always among them."""

    keep_best: Text | None = None
    """The result is the step with the best figure instead of the last one, and its checkpoint is kept: `valid_loss`
    (or `valid_NAME_loss` of a set), `channel_correct`, `right_answers`, `right_calls`; of pairs also `valid_accuracy`
    and `valid_margin`, of rollouts `valid_reward` (or `valid_NAME_reward` of a task with a `name`, `valid_rewards/NAME`
    of a reward with one). Compared every `eval.every` steps and at the last."""

    stop_when: StopSettings | None = None
    """End the run when a figure no longer becomes better; null trains all steps."""

    quantization_aware: Literal["mxfp4"] | None = None
    """Train the experts' adapters as they will be exported: merged and rounded to MXFP4 by the thresholds of `export`,
    anew after each step. The result is for `export --to mxfp4`; null trains them as they are."""

    quantization_from: Share = 0.7
    """Share of the steps after which `quantization_aware` begins."""

    log_every: Count = 10
    """Steps between lines of metrics."""

    device: Device = "auto"
    """`auto` takes CUDA where there is one."""

    threads: Count | None = None
    """CPU threads of torch; null keeps torch's default."""

    @model_validator(mode="after")
    def _checks(self) -> TrainSettings:
        if self.min_rate and self.schedule == "constant":
            raise ValueError("`min_rate` is where a rate falls to, and `schedule: constant` falls nowhere: use another")
        if self.decay_ratio is not None and self.schedule != "wsd":
            raise ValueError(f"`decay_ratio` belongs to `schedule: wsd`, and it is {self.schedule}: leave it out")
        if set(self.frozen) == set(get_args(ModelPart)):
            raise ValueError("`frozen` names every part, so nothing would be trained: leave one out")
        return self


class SupervisedTrainSettings(TrainSettings):
    """The loop, and what happens when the loss jumps."""

    on_loss_spike: Literal["warn", "skip", "stop"] = "warn"
    """What follows a loss far above its recent mean: a warning, a step without update, or the end of the run. A loss
    or gradient that is not finite always stops the run before the step."""

    spike_factor: Annotated[float, Field(gt=1)] = 4.0
    """A loss above this multiple of its recent mean is a spike."""

    neftune_alpha: Positive | None = None
    """Noise on the input embeddings in training (NEFTune; its authors use 5 to 15): uniform, up to alpha over the root
    of the row's tokens times the hidden size. null adds none."""


class TrackingSettings(Settings):
    """Where numbers go besides the run folder, under the same names everywhere; a run continues when a tracker fails.
    Keys never belong in a run file: `wandb login` or WANDB_API_KEY."""

    wandb: Literal["offline", "online", "off"] = "offline"
    """Weights & Biases: `offline` writes into the run folder, to be synced by hand."""

    tensorboard: bool = False
    """Event files in the folder `tensorboard` of the run folder (extra `tensorboard`)."""

    mlflow: bool = False
    """MLflow (extra `mlflow`): the server of MLFLOW_TRACKING_URI, or else `mlflow.db` in the run folder."""

    project: Text = "counterpoint"
    """Project of wandb, or experiment of mlflow, that the run belongs to."""

    entity: Text | None = None
    """Team or user of wandb; null takes the account's default."""

    group: Text | None = None
    """Runs with the same group are shown together (wandb; a tag in mlflow)."""

    tags: Annotated[tuple[Text, ...], Unique, OneOrMany] = ()
    """Labels of the run (wandb, mlflow)."""


class LaunchSettings(Settings):
    """Processes on one or several machines, by accelerate's launcher."""

    processes: Count = 1
    """Processes on each node, one for each GPU."""

    nodes: Count = 1
    """Machines; each starts the same command, under SLURM or with torchrun's rendezvous in its environment."""

    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """`ddp` keeps the whole model in each process; `fsdp2` shards it by decoder layer."""

    timeout: Positive = 1800.0
    """Seconds that a process waits for the others, before the run ends with an error."""

    sampling_timeout: Positive = 86400.0
    """Seconds that a process waits for what the others sample and score: rollouts of a step, held-out prompts,
    evaluations."""
