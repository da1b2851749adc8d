"""Settings of the model and its adapter: sections `model` and `lora`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from counterpoint.configs.base import BelowOne, Count, CountOrZero, Positive, Settings, Text, Unique

Implementation = Literal["lean", "reference"]
EMBEDDED_MODEL = "tiny"


class ModelSettings(Settings):
    """Which gpt-oss is trained, and on which implementation."""

    name: Text = EMBEDDED_MODEL
    """`tiny` for the embedded model, a Hugging Face name (`openai/gpt-oss-20b`), or a checkpoint folder."""

    adapter: Text | None = None
    """A run folder, a checkpoint or a PEFT folder whose LoRA adapter is put on the model: a run that trains goes on
    from it (SFT, then DPO or GRPO) and takes it as its reference. `name` may then be left out, and so may `lora`,
    which an adapter brings along. A run folder as `name` means the same, or its weights after full fine-tuning."""

    revision: Text | None = None
    """Branch, tag or commit of a Hugging Face name; null takes the newest."""

    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only the shape of the model and draws its weights from the seed."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the weights; `auto` is bfloat16 on a GPU that has it and float32 elsewhere."""

    base: Literal["bf16", "mxfp4"] = "bf16"
    """How frozen expert weights are stored in memory; `mxfp4` keeps an original checkpoint's blocks (LoRA only)."""

    attention: Implementation = "lean"
    """Attention with sinks: `lean` is fused and exact, `reference` is transformers' eager attention."""

    experts: Implementation = "lean"
    """Experts and their adapters: `lean` never forms the adapter's delta, `reference` is PEFT's own forward."""

    norms: Implementation = "lean"
    """RMS norms: `lean` keeps their inputs as they are, `reference` is transformers', which keeps float32 copies."""

    kernels: Literal["auto", "triton", "torch"] = "auto"
    """Kernels of our own for experts: `auto` takes those that give torch's numbers on this GPU, `triton` asks for all,
    `torch` for none. Only CUDA has them."""

    @model_validator(mode="after")
    def _checks(self) -> ModelSettings:
        if self.name == EMBEDDED_MODEL and self.revision is not None:
            raise ValueError("`revision` belongs to a Hugging Face name, and `name` is tiny: remove one of them")
        if self.base == "mxfp4" and self.init == "random":
            raise ValueError("`base: mxfp4` reads an original checkpoint, and `init` is random: change one of them")
        if self.base == "mxfp4" and self.name == EMBEDDED_MODEL:
            raise ValueError("`base: mxfp4` reads an original checkpoint, which `name: tiny` is not: use `base: bf16`")
        return self


class SupervisedModelSettings(ModelSettings):
    """Which gpt-oss is trained, on which implementation, and how its loss is formed."""

    loss: Implementation = "lean"
    """Loss over the vocabulary: `lean` in chunks over weighted positions only, `reference` with all logits."""


class LoraSettings(Settings):
    """Low-rank adapters, in PEFT's own format. Switched off, all weights are trained."""

    enabled: bool = True
    """Without adapters every weight is trained (full fine-tuning), and the other settings here mean nothing."""

    rank: Count = 16
    """Rank of the adapters on attention, and on experts where `expert_rank` is null."""

    alpha: Positive = 32.0
    """Scale of the adapters: their output is multiplied by alpha / rank."""

    attention: bool = True
    """Adapters on the four projections of attention (q, k, v, o)."""

    experts: bool = True
    """Adapters on both projections of every expert (gate_up and down)."""

    expert_rank: Count | None = None
    """Rank of the adapters on experts; null takes `rank`. rank / active experts keeps the capacity per token."""

    expert_alpha: Positive | None = None
    """Alpha of the adapters on experts, over `expert_rank`; null takes the one that gives them the scale of attention,
    since vLLM before 0.32 reads one scale for a whole adapter."""

    router: bool = False
    """Adapters on the router. Off by default: it moves which experts see which tokens."""

    layers: Annotated[tuple[CountOrZero, ...], Unique] | None = None
    """Layers that get adapters, counted from 0; null means all."""

    rslora: bool = False
    """Scale by alpha / sqrt(rank) in place of alpha / rank."""

    dropout: BelowOne = 0.0
    """Share of the inputs of the adapters on attention that is dropped in training (`recipe: sft`). PEFT has none for
    experts and router, whose adapters must then be off."""

    dora: bool = False
    """DoRA: attention's adapters also learn the length of every output's weights. PEFT has none for experts and
    router, whose adapters must then be off. vLLM serves it merged only, and no second stage begins from it."""

    @property
    def one_scale(self) -> bool:
        """Whether experts and attention share their scale, which is all that vLLM before 0.32 reads."""
        power, rank = 0.5 if self.rslora else 1.0, self.expert_rank or self.rank
        return self.expert_alpha in (None, self.alpha * (rank / self.rank) ** power)

    @model_validator(mode="after")
    def _checks(self) -> LoraSettings:
        if self.enabled and not (self.attention or self.experts or self.router):
            raise ValueError("it is enabled with no target: set attention, experts or router to true, or enabled false")
        if self.enabled and self.layers == ():
            raise ValueError("`layers` is empty, so nothing would be trained: name layers, or write null for all")
        for name in ("dropout", "dora"):
            if self.enabled and getattr(self, name) and (self.experts or self.router):
                raise ValueError(
                    f"`{name}` is for adapters on attention alone, since PEFT has none for those on experts and "
                    "router: set `experts: false` and `router: false`, or leave it out"
                )
        return self
