"""Whole models for gpu.py, with random weights made on the device, and the part that holds their gradients against
float32."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from gpu_bench import Bench, relative_error, short, tree_row
from gpu_operators import random_packed
from transformers import GptOssConfig, GptOssForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

from counterpoint.train.adapters.attach import attach_lora
from counterpoint.train.adapters.experts import use_experts
from counterpoint.train.loop.loss import weighted_nll
from counterpoint.train.model.attention import use_attention
from counterpoint.train.model.attention_inputs import attention_inputs
from counterpoint.train.model.mxfp4 import Mxfp4Tensor
from counterpoint.train.model.norm import use_norms

BF = torch.bfloat16
EXPERT_WEIGHTS = ("gate_up_proj", "down_proj")
LORA = SimpleNamespace(
    rank=16, expert_rank=None, alpha=32.0, expert_alpha=None, rslora=False, attention=True, experts=True, router=False,
    layers=None, enabled=True, dropout=0.0, dora=False,
)  # fmt: skip
"""`LoraSettings` where there is no pydantic."""


def random_base(bench: Bench, config: Any, packed: bool) -> Any:
    """The frozen model in bfloat16, its experts in MXFP4 where `packed`."""
    config._attn_implementation, config.dtype = "eager", BF
    with torch.device("meta"):
        model: Any = cast(Any, GptOssForCausalLM(config)).to(BF)
    if packed:  # before memory is taken for them in bfloat16
        for layer in model.model.layers:
            for name in EXPERT_WEIGHTS:
                shape = getattr(layer.mlp.experts, name).shape
                parameter = torch.nn.Parameter(random_packed(bench, *shape, low=118), False)
                setattr(layer.mlp.experts, name, parameter)
    for name, parameter in list(model.named_parameters()):
        if isinstance(parameter, Mxfp4Tensor) or hasattr(parameter, "blocks"):
            continue
        owner, _, last = name.rpartition(".")
        data = torch.empty(parameter.shape, dtype=BF, device=bench.device)
        # A router of clear choices: near ties would be decided by rounding, and other experts are other gradients.
        data.fill_(1.0) if "norm" in name else data.normal_(0, 0.5 if "router.weight" in name else 0.02)
        setattr(model.get_submodule(owner), last, torch.nn.Parameter(data, False))
    model.model.rotary_emb = GptOssRotaryEmbedding(config).to(bench.device)
    return model.train()


def adapted(bench: Bench, config: Any, packed: bool) -> Any:
    """`random_base` with LoRA in float32, B not zero."""
    model: Any = attach_lora(random_base(bench, config, packed), cast(Any, LORA))
    generator = torch.Generator(bench.device).manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            data = torch.empty(parameter.shape, device=bench.device)
            parameter.data = data.normal_(0, 0.02, generator=generator)
    return model.train()


def use_paths(model: Any, lean: bool, recompute_experts: bool = False, checkpointing: bool = False) -> None:
    """As `use_implementations`, which refuses versions of torch and transformers that it was not tested with."""
    inner = model.get_base_model()
    use_attention(inner, lean)
    use_experts(inner, lean, recompute_experts)
    use_norms(inner, lean)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


class Rows(NamedTuple):
    """Token ids and tree rows (B, S); flat places, targets and weights of the trained tokens."""

    ids: torch.Tensor
    position: torch.Tensor
    subtree_end: torch.Tensor
    place: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor


def random_rows(bench: Bench, config: Any, tokens: int, kind: str = "plain") -> Rows:
    """One row; every second 64 tokens are trained."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, config.vocab_size, (1, tokens), generator=generator)
    position, end = (part[None] for part in tree_row(tokens, kind))
    place = torch.arange(tokens)[torch.arange(tokens) // 64 % 2 == 1]
    target = torch.randint(2, config.vocab_size, (len(place),), generator=generator)
    return Rows(*(part.to(bench.device) for part in (ids, position, end, place, target, torch.ones(len(place)))))


def loss_of(model: Any, rows: Rows, lean: bool = True) -> torch.Tensor:
    """The trainer's loss, but for its autocast."""
    base = model.get_base_model()
    out = model(
        input_ids=rows.ids, position_ids=rows.position, **attention_inputs(base, rows.position, rows.subtree_end),
        output_hidden_states=True, logits_to_keep=rows.ids.new_empty(0), use_cache=False,
    )  # fmt: skip
    hidden = out.hidden_states[-1].flatten(0, 1).index_select(0, rows.place)
    head = base.get_output_embeddings().weight
    return weighted_nll(hidden, head, rows.target, rows.weight, float(len(rows.place)), lean)[0]


def narrow_loss(bench: Bench, model: Any, rows: Rows) -> torch.Tensor:
    """The same under the trainer's autocast."""
    with torch.autocast(bench.device, BF):
        return loss_of(model, rows)


MODES = {  # lean, experts computed again, layers computed again
    "lean": (True, False, False),
    "experts": (True, True, False),
    "true": (True, False, True),
    "reference": (False, False, False),
}


def parity(bench: Bench) -> None:
    """Two layers at full width: lean and reference paths under autocast against float32 of the same weights."""
    for packed in (False, True):
        for kind in ("plain", "tree"):
            name = f"model {'mxfp4' if packed else 'bf16'} {kind}"
            with bench.attempt(name):
                _parity_case(bench, name, kind, packed)


def _parity_case(bench: Bench, name: str, kind: str, packed: bool) -> None:
    config = GptOssConfig(**bench.two_layers())
    model = adapted(bench, config, packed)
    rows = random_rows(bench, config, 100 if bench.tiny else 1024, kind)
    found = {}
    for mode, settings in MODES.items():
        if packed and mode == "reference":
            continue
        use_paths(model, *settings)
        bench.poison()
        loss = narrow_loss(bench, model, rows)
        found[mode] = float(loss.detach()), _gradients(model, loss)
    exact_loss, exact = _in_float32(model, rows)
    for mode, (loss, gradients) in found.items():
        assert gradients.keys() == exact.keys(), f"{mode}: other parameters have gradients"
        cosines = {which: float(F.cosine_similarity(gradients[which], exact[which], dim=0)) for which in exact}
        worst = min(cosines, key=cosines.__getitem__)
        ours, theirs = (torch.cat([side[which] for which in exact]) for side in (gradients, exact))
        errors = {"loss": abs(loss - exact_loss), "angle": 1 - float(F.cosine_similarity(ours, theirs, dim=0))}
        bench.check(
            f"{name} {mode}", errors, {"loss": 2e-2, "angle": 0.03}, gradient=short(relative_error(ours, theirs)),
            worst_cosine=round(cosines[worst], 4), worst_in=worst.replace("base_model.model.model.", "")[:48],
        )  # fmt: skip


def _gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.double().flatten() for n, p in model.named_parameters() if p.grad is not None}


def _in_float32(model: Any, rows: Rows) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the same weights by transformers' own code. The model is in float32 afterwards."""
    for layer in model.get_base_model().model.layers:
        experts = layer.mlp.experts
        while hasattr(experts, "base_layer"):
            experts = experts.base_layer
        for name in EXPERT_WEIGHTS:
            if isinstance(data := getattr(experts, name).data, Mxfp4Tensor):
                setattr(experts, name, torch.nn.Parameter(data.dense().float().contiguous(), False))
    use_paths(model, lean=False)
    model.float()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    loss = loss_of(model, rows, lean=False)
    gradients = _gradients(model, loss)
    torch.set_float32_matmul_precision(before)
    return float(loss.detach()), gradients
