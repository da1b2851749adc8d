"""LoRA on attention, experts and router of a gpt-oss model through PEFT, and the proof that it is there.

Target names, nesting and tensor layout are PEFT's own, so an adapter saved here loads in plain PEFT.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

from counterpoint.configs.errors import ModelError, RunError
from counterpoint.configs.model_section import LoraSettings
from counterpoint.train.adapters.experts import ParamWrapper
from counterpoint.train.adapters.linear import AutocastLinear
from counterpoint.train.model.marker import require_whole
from counterpoint.train.model.memory_errors import is_out_of_memory

ATTENTION, GATE_UP, DOWN, ROUTER = "attention", "experts.gate_up", "experts.down", "router"
KINDS = (ATTENTION, GATE_UP, DOWN, ROUTER)
ATTENTION_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
PARAMETER_TARGETS = {GATE_UP: "mlp.experts.gate_up_proj", DOWN: "mlp.experts.down_proj", ROUTER: "mlp.router.weight"}
EXPERT_PATTERN = r"mlp\.experts\.(gate_up|down)_proj"
CUSTOM_MODULES = {GptOssExperts: ParamWrapper, torch.nn.Linear: AutocastLinear}
"""Our wrappers, registered with PEFT in place of its own."""
REFERENCE = "ref"
"""TRL's name for the copy of an adapter that stays as it is."""
_KIND_OF_PARAMETER = {target.rpartition(".")[2]: kind for kind, target in PARAMETER_TARGETS.items()}


@dataclass(frozen=True)
class AttachedRow:
    """One kind of module: which layers train, how many parameters. `rank` and `scale` are None without LoRA."""

    kind: str
    layers: tuple[int, ...]
    parameters: int
    experts: int | None = None
    rank: int | None = None
    scale: float | None = None


@dataclass(frozen=True)
class AttachmentTable:
    """What trains, by kind; `trainable` and `total` count parameters."""

    rows: tuple[AttachedRow, ...]
    trainable: int
    total: int

    @property
    def share(self) -> float:
        return self.trainable / self.total

    def text(self) -> str:
        """The table as lines for a terminal or a log."""
        cells = [("trains", "layers", "experts", "rank", "scale", "parameters")]
        for row in self.rows:
            rank, scale = ("-" if value is None else f"{value:g}" for value in (row.rank, row.scale))
            cells.append((row.kind, _ranges(row.layers), str(row.experts or "-"), rank, scale, f"{row.parameters:,}"))
        widths = [max(len(line[column]) for line in cells) for column in range(6)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]
        lines.append(f"{self.trainable:,} of {self.total:,} parameters train ({100 * self.share:.3g} %)")
        return "\n".join(line.rstrip() for line in lines)

    def as_dict(self) -> dict[str, float]:
        """Numbers for the run folder and tracking."""
        counts = {f"adapter/parameters/{row.kind}": float(row.parameters) for row in self.rows}
        return {**counts, "adapter/trainable": float(self.trainable), "adapter/share": self.share}


def attach_lora(model: PreTrainedModel, lora: LoraSettings | None = None) -> PeftModel:
    """Wrap `model` with a new LoRA adapter named "default"; B is zero, so outputs do not change.

    Without `expert_alpha` the experts keep the scale of attention, alpha / rank (rsLoRA: alpha / sqrt(rank)): vLLM
    before 0.32 reads one scale for the whole adapter. Raises `ModelError` where a requested kind is missing in a layer.
    """
    lora = lora or LoraSettings()
    layers = _checked_layers(model, lora.layers)
    wanted = [ATTENTION] * lora.attention + [GATE_UP, DOWN] * lora.experts + [ROUTER] * lora.router
    if not wanted:
        raise ModelError("lora: nothing to attach: set lora.attention, lora.experts or lora.router to true")
    config = _lora_config(lora, layers, wanted)
    with _quiet_peft():
        try:
            peft_model = cast(PeftModel, get_peft_model(model, config))
        except ValueError as error:
            raise ModelError(f"lora: PEFT found nothing to attach to in {type(model).__name__}: {error}") from error
    _require(peft_model, wanted, layers)
    return peft_model


def lora_of(folder: str | Path) -> LoraSettings:
    """The settings that make an adapter of the shape of a saved one. ModelError where the folder holds none."""
    try:
        config = cast(LoraConfig, LoraConfig.from_pretrained(str(folder)))
        parameters = " ".join(config.target_parameters or ())
        experts = "mlp.experts" in parameters
        rank, alpha = config.r, float(config.lora_alpha)
        expert_rank = next((r for name, r in (config.rank_pattern or {}).items() if "experts" in name), rank)
        expert_alpha = next((a for name, a in (config.alpha_pattern or {}).items() if "experts" in name), alpha)
        ratio = math.sqrt(expert_rank / rank) if config.use_rslora else expert_rank / rank
        layers: Any = config.layers_to_transform
        if layers is None and (named := re.findall(r"layers\.(\d+)\.", parameters)):
            layers = sorted({int(layer) for layer in named})
        found = LoraSettings(
            rank=rank,
            alpha=alpha,
            attention=any(target in str(config.target_modules) for target in ATTENTION_TARGETS),
            experts=experts,
            router="mlp.router" in parameters,
            expert_rank=expert_rank if experts and expert_rank != rank else None,
            expert_alpha=expert_alpha if experts and not math.isclose(expert_alpha, alpha * ratio) else None,
            layers=None if layers is None else tuple([layers] if isinstance(layers, int) else layers),
            rslora=bool(config.use_rslora),
            dropout=config.lora_dropout,
        )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{folder}: no LoRA adapter of PEFT ({reason}): give the folder of one") from error
    further = [name for name in ("use_dora", "modules_to_save", "trainable_token_indices") if getattr(config, name)]
    if config.bias != "none":
        further.append("bias")
    if further:
        raise ModelError(
            f"{folder}: it has more than LoRA's two matrices ({', '.join(further)}), which is not trained here: merge "
            "it into its base, and name that as `model.name`"
        )
    return found


def is_fresh(model: torch.nn.Module) -> bool:
    """Whether an adapter adds nothing yet: all B are zero. Collective where it is sharded."""
    parts = [(module, name) for _, _, module in lora_parts(model) for name in module.active_adapters]
    moved = [bool(whole(cast(torch.Tensor, module.lora_B[name].weight)).any()) for module, name in parts]
    return not any(moved)


def add_reference(model: PeftModel) -> None:
    """A frozen copy of the adapter as it is now, "ref"."""
    model.add_adapter(REFERENCE, model.peft_config["default"])
    for name, parameter in list(model.named_parameters()):
        if ".default." in name:
            model.get_parameter(name.replace(".default.", f".{REFERENCE}.")).data.copy_(parameter.data)
    _freeze_reference(model)


@contextmanager
def as_reference(model: PeftModel) -> Iterator[None]:
    """The model as it was before training: with the adapter "ref", or without any where there is none."""
    if REFERENCE not in model.peft_config:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter("default")
        _freeze_reference(model)


def _freeze_reference(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if f".{REFERENCE}." in name:
            parameter.requires_grad_(False)


def load_lora(
    model: PreTrainedModel | PeftModel, folder: str | Path, trainable: bool = False, name: str = "default"
) -> PeftModel:
    """Put a saved PEFT adapter (safetensors) on `model`, with the same choice of paths as `attach_lora`.

    A model that has adapters gets one more, which is not active. ModelError where the folder holds none, or one that is
    damaged or of another model.
    """
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder}: no adapter_model.safetensors: give the folder of a saved adapter")
    require_whole(Path(folder))
    try:
        config = cast(LoraConfig, LoraConfig.from_pretrained(str(folder)))
        config.inference_mode = not trainable
        # Experimental in PEFT, and not in a saved configuration: each loaded one is given the layers anew.
        config._register_custom_module(cast(Any, CUSTOM_MODULES))
        with _quiet_peft():
            if not isinstance(model, PeftModel):
                return PeftModel.from_pretrained(model, str(folder), name, config=config, is_trainable=trainable)
            weights = load_peft_weights(str(folder), device=str(model.device))
            model.add_adapter(name, config)
            if unknown := set_peft_model_state_dict(model, weights, name).unexpected_keys:
                raise ValueError(f"{len(unknown)} tensors belong to nothing here, the first {unknown[0]}")
            return model
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"{folder}: no adapter of this model ({reason}): is the copy complete, and the base right?"
        ) from error


def without_lora(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with its own layers again, whatever an adapter that failed to load has left around them."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BaseTunerLayer):
                setattr(module, name, child.get_base_layer())
    vars(model).pop("peft_config", None)
    return model


def attachment_table(model: torch.nn.Module) -> AttachmentTable:
    """What trains in `model`: adapter parts by kind, and any further trainable parameter by its part of the model."""
    kinds: dict[str, list[tuple[int, LoraLayer]]] = {}
    for kind, layer, module in lora_parts(model):
        kinds.setdefault(kind, []).append((layer, module))
    rows, inside_lora = [], set()
    for kind, parts in sorted(kinds.items(), key=lambda item: _order(item[0])):
        parameters = [p for _, module in parts for p in lora_weights(module) if p.requires_grad]
        inside_lora.update(id(p) for p in parameters)
        module = parts[0][1]
        adapter = module.active_adapters[0]
        experts = module.num_experts if isinstance(module, ParamWrapper) else None
        layers = tuple(sorted({layer for layer, _ in parts}))
        count = sum(p.numel() for p in parameters)
        rows.append(AttachedRow(kind, layers, count, experts, module.r[adapter], module.scaling[adapter]))
    plain: dict[str, list[tuple[int | None, int]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in inside_lora:
            plain.setdefault(_part(name), []).append((layer_of(name), parameter.numel()))
    for kind, parts in plain.items():
        layers = tuple(sorted({layer for layer, _ in parts if layer is not None}))
        rows.append(AttachedRow(kind, layers, sum(count for _, count in parts)))
    total = sum(p.numel() for p in model.parameters())
    return AttachmentTable(tuple(rows), sum(row.parameters for row in rows), total)


def check_attached_before_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Every adapter weight is trainable and known to the optimizer, else `RunError` naming kind and layers."""
    known = None if optimizer is None else {id(p) for group in optimizer.param_groups for p in group["params"]}
    frozen: dict[str, list[int]] = {}
    for kind, layer, module in lora_parts(model):
        for parameter in lora_weights(module):
            if not parameter.requires_grad or (known is not None and id(parameter) not in known):
                frozen.setdefault(kind, []).append(layer)
    if frozen:
        raise RunError(f"adapter: frozen or unknown to the optimizer: {_spelled(frozen)}: it would not train")


def check_attached_after_step(model: torch.nn.Module) -> None:
    """After an optimizer step with a rate above zero, B of every kind in every layer has moved, else `RunError`."""
    still: dict[str, list[int]] = {}
    for kind, layer, module in lora_parts(model):
        for adapter in module.active_adapters:
            if adapter in module.lora_B and not bool(whole(cast(torch.Tensor, module.lora_B[adapter].weight)).any()):
                still.setdefault(kind, []).append(layer)
    if still:
        raise RunError(f"adapter: still zero after the first step: {_spelled(still)}: no gradient reaches it")


def lora_parts(model: torch.nn.Module) -> Iterator[tuple[str, int, LoraLayer]]:
    """(kind, layer, PEFT module) of everything LoRA is attached to, in the model's order."""
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        parameter_name = getattr(module, "parameter_name", None)
        kind = ATTENTION if parameter_name is None else _KIND_OF_PARAMETER.get(str(parameter_name), str(parameter_name))
        yield kind, layer_of(name) or 0, module


def lora_weights(module: LoraLayer) -> list[torch.nn.Parameter]:
    """A, B and DoRA's lengths of the active adapters of one PEFT module."""
    kinds = (module.lora_A, module.lora_B, module.lora_magnitude_vector)
    parts = [part[a] for a in module.active_adapters for part in kinds if a in part]
    return [cast(torch.nn.Parameter, part.weight) for part in parts]


def layer_of(name: str) -> int | None:
    """The decoder layer in a module's or parameter's name."""
    match = re.search(r"\blayers\.(\d+)\.", name + ".")
    return int(match[1]) if match else None


def _lora_config(lora: LoraSettings, layers: list[int] | None, wanted: list[str]) -> LoraConfig:
    rank, expert_rank = lora.rank, lora.expert_rank or lora.rank
    ratio = math.sqrt(expert_rank / rank) if lora.rslora else expert_rank / rank
    expert_alpha = lora.expert_alpha if lora.expert_alpha is not None else lora.alpha * ratio
    parameters = [PARAMETER_TARGETS[kind] for kind in wanted if kind != ATTENTION]
    if layers is not None:
        parameters = [f"layers.{layer}.{target}" for layer in layers for target in parameters]
    config = LoraConfig(
        r=rank,
        lora_alpha=_whole_number(lora.alpha),
        target_modules=list(ATTENTION_TARGETS) if ATTENTION in wanted else [],
        target_parameters=parameters or None,
        layers_to_transform=layers if ATTENTION in wanted else None,
        rank_pattern={EXPERT_PATTERN: expert_rank} if GATE_UP in wanted and expert_rank != rank else {},
        alpha_pattern={EXPERT_PATTERN: _whole_number(expert_alpha)}
        if GATE_UP in wanted and expert_alpha != lora.alpha
        else {},
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        lora_dropout=lora.dropout,
        task_type="CAUSAL_LM",
    )
    config._register_custom_module(cast(Any, CUSTOM_MODULES))
    return config


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT looks for rank patterns among modules only; ours name parameters, and do apply.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        # PEFT asks transformers in a way that it will rename.
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*is_gradient_checkpointing")
        # `_require` makes an error of it.
        warnings.filterwarnings("ignore", message="target_(modules|parameters)=.* were set but no")
        yield


def _checked_layers(model: PreTrainedModel, layers: Sequence[int] | None) -> list[int] | None:
    if layers is None:
        return None
    count = model.config.num_hidden_layers
    wrong = [layer for layer in layers if not 0 <= layer < count]
    if wrong or not layers:
        raise ModelError(
            f"lora.layers: this model has layers 0 to {count - 1}, not {wrong or 'none'}: correct the list"
        )
    return sorted(set(layers))


def _require(model: PeftModel, wanted: list[str], layers: list[int] | None) -> None:
    expected = layers if layers is not None else range(model.config.num_hidden_layers)  # pyright: ignore
    found: dict[tuple[str, int], int] = {}
    for kind, layer, _ in lora_parts(model):
        found[kind, layer] = found.get((kind, layer), 0) + 1
    missing: dict[str, list[int]] = {}
    for kind in wanted:
        parts = len(ATTENTION_TARGETS) if kind == ATTENTION else 1
        missing_layers = [layer for layer in expected if found.get((kind, layer), 0) != parts]
        if missing_layers:
            missing[kind] = missing_layers
    if missing:
        raise ModelError(f"lora: requested but not found in the model: {_spelled(missing)}: is it a gpt-oss model?")


def _whole_number(value: float) -> int:
    """32 for 32.0, as other readers of adapter_config.json expect; a fraction stays one."""
    return int(value) if value == int(value) else cast(int, value)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full value of a tensor that may be sharded. Collective where it is: every process has to call it."""
    gather = getattr(tensor, "full_tensor", None)
    return (tensor if gather is None else gather()).detach()


def _part(name: str) -> str:
    for word, part in (
        ("embed_tokens", "embedding"), ("lm_head", "head"), ("router", ROUTER), ("gate_up_proj", GATE_UP),
        ("down_proj", DOWN), ("sinks", "sinks"), ("self_attn", ATTENTION), ("norm", "norms"),
    ):  # fmt: skip
        if word in name:
            return part
    return "other"


def _order(kind: str) -> int:
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def _ranges(numbers: Sequence[int]) -> str:
    """0-3,5 for [0, 1, 2, 3, 5]; - for nothing."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "-"


def _spelled(parts: dict[str, list[int]]) -> str:
    return "; ".join(f"{kind} in layers {_ranges(parts[kind])}" for kind in sorted(parts, key=_order))
