"""What the sections of a training run say against each other. A check raises ValueError, for pydantic to explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from counterpoint.configs.environment_section import check_asked_by_package
from counterpoint.configs.eval_section import TruncationSettings
from counterpoint.configs.foreign_section import ForeignSettings
from counterpoint.configs.launch_section import RewardLaunchSettings
from counterpoint.configs.model_section import EMBEDDED_MODEL, LoraSettings, ModelSettings
from counterpoint.configs.reward_section import RewardSettings
from counterpoint.configs.rl_section import GrpoSettings, RolloutSettings
from counterpoint.configs.tool_section import ToolSettings
from counterpoint.configs.train_section import LaunchSettings, TrainSettings

_ONLY_IN_FULL = ("embeddings", "head", "norms")


def check_sections(model: ModelSettings, lora: LoraSettings, train: TrainSettings, launch: LaunchSettings) -> None:
    """What every recipe that trains refuses."""
    if model.base == "mxfp4" and not lora.enabled:
        raise ValueError("`model.base: mxfp4` is frozen, and `lora.enabled: false` trains it: use `model.base: bf16`")
    _check_sharded(model, lora, train, launch)
    if train.activation_checkpointing == "experts" and (model.experts == "reference" or not lora.enabled):
        raise ValueError(
            "`train.activation_checkpointing: experts` is a part of the lean experts under an adapter: use `true`"
        )
    if train.activation_offload and train.activation_checkpointing is not True:
        raise ValueError(
            "`train.activation_offload` keeps what whole layers are computed again from, and "
            f"`train.activation_checkpointing` is {str(train.activation_checkpointing).lower()}: set it to true, or "
            "leave the offload out"
        )
    if lora.enabled and (train.frozen or train.frozen_layers):
        name = "frozen" if train.frozen else "frozen_layers"
        raise ValueError(
            f"`train.{name}` is for full fine-tuning, and an adapter leaves every weight as it is: leave it out, or "
            "see `lora.layers`, `lora.attention` and `lora.experts`"
        )
    _check_rates(lora, train)
    _check_quantized(model, lora, train, launch)


def with_rate_of_full(run: Any, rate: float) -> Any:
    """A run file with the learning rate of full fine-tuning, where it trains all weights and names none: that of an
    adapter is tens of times as high."""
    if not isinstance(run, Mapping):
        return run
    lora, train = run.get("lora") or {}, run.get("train") or {}
    enabled = lora.get("enabled", True) if isinstance(lora, Mapping) else getattr(lora, "enabled", True)
    if enabled is not False or not isinstance(train, Mapping) or "learning_rate" in train:
        return run
    return {**run, "train": {**train, "learning_rate": rate}}


def check_eval_tasks(tasks: Sequence[object], launch: LaunchSettings) -> None:
    if tasks and launch.strategy == "fsdp2":
        raise ValueError("`eval.tasks` samples in each process, and with `fsdp2` none has the whole model: use `ddp`")


def check_paid(rewards: Sequence[RewardSettings], rollout: RolloutSettings, taught: bool) -> None:
    """taught: by a teacher, which needs no reward of a weight."""
    if not rewards and not rollout.in_environments:
        raise ValueError("`rewards` is empty: name what a rollout earns, or a `rollout.environment` that says so")
    if rollout.user is not None and not rollout.in_environments:
        raise ValueError("`rollout.user` is asked by environments alone: set `rollout.environment`, or leave it out")
    paid = rollout.in_environments or any(reward.weight for reward in rewards)
    if not paid and not taught:
        raise ValueError("all `rewards` have weight 0, so nothing would be learned: give one of them a weight")


def check_grpo(grpo: GrpoSettings, train: TrainSettings, rollout: RolloutSettings, lora: LoraSettings) -> None:
    """Whole groups, and what the policy is compared with: a divergence between distributions of which each has lost
    another part is none."""
    rows = train.batch_rows * train.accumulation
    if rows % grpo.group:
        raise ValueError(
            f"`train.batch_rows` x `train.accumulation` ({rows}) does not hold whole groups of `grpo.group` "
            f"({grpo.group}): change one of them"
        )
    if grpo.teacher is not None and grpo.teacher.server is not None and rollout.temperature != 1:
        raise ValueError(
            "`grpo.teacher.server` says how likely tokens are at temperature 1, and `rollout.temperature` is "
            f"{rollout.temperature:g}: set it to 1, or hold the teacher in memory (`grpo.teacher.model`)"
        )
    if grpo.beta and not lora.enabled:
        raise ValueError("`grpo.beta` compares with the model under the adapter: set `lora.enabled: true`, or 0")
    cut = next((name for name in TruncationSettings.model_fields if name in rollout.model_fields_set), None)
    other = "grpo.teacher" if grpo.teacher is not None else "grpo.beta" if grpo.beta else None
    if other and cut and (rollout.top_p, rollout.top_k, rollout.min_p) != (1.0, None, 0.0):
        raise ValueError(
            f"`rollout.{cut}` cuts the distribution that is learned, and `{other}` compares whole ones: leave one out"
        )


def check_driven(rollout: RolloutSettings, tools: ToolSettings) -> None:
    """What acts nowhere where packages alone drive the rollouts."""
    chosen = [each for each in (rollout.environment, *rollout.environments.values()) if each is not None]
    driven = [each for each in chosen if isinstance(each, ForeignSettings)]
    if not driven:
        return
    if len(driven) == len(chosen):
        if tools != ToolSettings():
            raise ValueError(f"`tools` are not run in an environment of type {driven[0].type}, which has its own")
        check_asked_by_package(rollout.user)
    elif rollout.user is not None and rollout.user.model is None:
        raise ValueError("`rollout.user.model` is missing: a package asks for it by name")


def check_rollouts(train: TrainSettings, rollout: RolloutSettings, iterations: int) -> None:
    """What rollouts of another engine, or of other weights, cannot be learned from with."""
    if train.quantization_aware and rollout.engine != "transformers":
        raise ValueError(
            "`train.quantization_aware` samples with rounded experts, and "
            f"`rollout.engine: {rollout.engine}` is given weights that are not: use `rollout.engine: transformers`"
        )
    if rollout.staleness and iterations > 1:
        raise ValueError(
            "`rollout.staleness` counts steps that each have rollouts of their own: set `grpo.iterations: 1`, or leave "
            "it out"
        )


def check_no_dropout(lora: LoraSettings, recipe: str) -> None:
    """Recipes that compare probabilities take them from the whole adapter."""
    if lora.enabled and lora.dropout:
        raise ValueError(
            f"`lora.dropout` is for `recipe: sft`: {recipe} compares probabilities, which must be those of the whole "
            "adapter: leave it out"
        )


def check_served(
    rollout: RolloutSettings, model: ModelSettings, lora: LoraSettings, launch: RewardLaunchSettings
) -> None:
    """What vLLM cannot serve is reported here, before anything loads."""
    engine = rollout.engine
    where = f"`rollout.engine: {engine}`"
    if model.name == EMBEDDED_MODEL and (engine == "vllm" or launch.serve.servers):  # `counterpoint serve` has it
        raise ValueError(f"{where} loads no embedded model, whose vocabulary is a part: name another `model.name`")
    if engine == "vllm" and launch.processes * launch.nodes > 1:
        raise ValueError(f"{where} is one process: set `rollout.engine: server` with several")
    if rollout.weights == "merged":
        if engine == "server":
            raise ValueError(f"{where} is given adapters only: set `rollout.weights: adapter`, or `engine: vllm`")
        if model.base == "mxfp4":
            raise ValueError("`rollout.weights: merged` writes into the experts: set `model.base: bf16`")
        return
    merged = "set `rollout.engine: vllm` and `rollout.weights: merged`"
    if model.init == "random":
        raise ValueError(f"{where} cannot load a base that is random: set `model.init: pretrained`, or {merged}")
    if not lora.enabled:
        raise ValueError(f"{where} with `rollout.weights: adapter` needs `lora.enabled: true`; else {merged}")
    if lora.dora:
        raise ValueError(f"{where}: vLLM serves no DoRA adapters: set `lora.dora: false`, or {merged}")


def check_serve(launch: RewardLaunchSettings, rollout: RolloutSettings) -> None:
    """Servers that the run starts itself are those that it samples on."""
    if not launch.serve.servers:
        return
    if rollout.engine != "server":
        raise ValueError(f"`launch.serve` is for `rollout.engine: server`, and it is {rollout.engine}")
    if launch.nodes > 1:
        raise ValueError(
            "`launch.serve` starts servers on one machine: with `launch.nodes` start them yourself, and name them in "
            "`rollout.server.url`"
        )
    server = rollout.server
    own = launch.serve.urls, type(server).model_fields["url"].default  # recorded by a run, or by none
    if tuple(server.url) not in own or server.url_file is not None:
        raise ValueError("`launch.serve` starts the servers: leave `rollout.server.url` and `url_file` out")


def _check_sharded(model: ModelSettings, lora: LoraSettings, train: TrainSettings, launch: LaunchSettings) -> None:
    if launch.strategy != "fsdp2":
        return
    if train.optimizer == "adamw_8bit":
        raise ValueError(
            "`launch.strategy: fsdp2` leaves parts of tensors, which `train.optimizer: adamw_8bit` of bitsandbytes "
            "cannot update: use `adamw_torch_8bit` or `adamw`"
        )
    if model.base == "mxfp4" and model.experts == "reference":
        raise ValueError(
            "`launch.strategy: fsdp2` shards `model.base: mxfp4` under the lean experts only: use `model.experts: lean`"
        )
    if lora.enabled and lora.dora:
        raise ValueError(
            "`launch.strategy: fsdp2` leaves parts of weights, and `lora.dora` needs their whole length: use `ddp`"
        )
    if train.keep_best is not None and not lora.enabled:
        raise ValueError(
            "`launch.strategy: fsdp2` without adapters keeps checkpoints in shards, of which `train.keep_best` makes "
            "no result: leave it out"
        )


def _check_rates(lora: LoraSettings, train: TrainSettings) -> None:
    """A factor of what does not train would do nothing."""
    for name in type(train.rates).model_fields:
        if getattr(train.rates, name) == 1:
            continue
        where = f"`train.rates.{name}` is a factor of what does not train"
        if name == "lora_b":
            if not lora.enabled:
                raise ValueError(f"{where}, since `lora.enabled` is false: leave it out")
        elif lora.enabled:
            if name in _ONLY_IN_FULL or not getattr(lora, name):
                raise ValueError(f"{where} under this adapter (section `lora`): leave it out")
        elif name in train.frozen:
            raise ValueError(f"{where}, since `train.frozen` names it: leave it out of one of them")


def _check_quantized(model: ModelSettings, lora: LoraSettings, train: TrainSettings, launch: LaunchSettings) -> None:
    where, start = "`train.quantization_aware`", "quantization_from"
    if train.quantization_aware is None:
        if getattr(train, start) != type(train).model_fields[start].default:
            raise ValueError(f"`train.{start}` is where {where} begins, which is null: set it to mxfp4")
        return
    if not (lora.enabled and lora.experts):
        raise ValueError(f"{where} rounds experts with adapters: set `lora.enabled` and `lora.experts` to true")
    if model.experts == "reference":
        raise ValueError(f"{where} is a part of the lean experts: use `model.experts: lean`")
    if launch.strategy == "fsdp2":
        raise ValueError(f"{where} needs the whole adapter in each process: use `launch.strategy: ddp`")
