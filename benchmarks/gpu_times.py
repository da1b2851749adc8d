"""Parts of gpu.py: the machine; time and memory of one layer, of whole steps, and of transformers + PEFT's steps."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from gpu_bench import Bench, tree_row
from gpu_kernels import own_kernels
from gpu_model import BF, adapted, narrow_loss, random_base, random_rows, use_paths
from torch.profiler import ProfilerActivity, profile
from transformers import GptOssConfig

from counterpoint.train.model.attention_inputs import attention_inputs

GIB = 1 << 30
PACKAGES = ("torch", "transformers", "peft", "triton", "accelerate", "trl", "pydantic")


def environment(bench: Bench) -> None:
    numbers: dict[str, Any] = {"python": sys.version.split()[0], **{package: _version(package) for package in PACKAGES}}
    if bench.cuda:
        numbers["gpu"] = torch.cuda.get_device_name()
        numbers["capability"] = str(torch.cuda.get_device_capability())
        square = torch.randn(8192, 8192, device=bench.device, dtype=BF)
        numbers["bf16_tflops"] = round(2 * 8192**3 / bench.timed(lambda: square @ square) / 1e12, 1)
        source = torch.empty(1 << 30, device=bench.device, dtype=BF)
        copy = torch.empty_like(source)
        numbers["copy_TBs"] = round(2 * source.nbytes / bench.timed(lambda: copy.copy_(source)) / 1e12, 2)
        free, total = torch.cuda.mem_get_info()
        numbers["context_GiB"] = round((total - free - torch.cuda.memory_reserved()) / GIB, 2)
    bench.measured("env", **numbers)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def kernels(bench: Bench, work: Callable[[], Any]) -> dict[str, Any]:
    """How many kernels ran on the device, for how long, and the five longest."""
    if not bench.cuda:
        return {}
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        work()
        bench.sync()
    events: list[Any] = [event for event in found.key_averages() if event.device_type.name == "CUDA"]
    events.sort(key=lambda event: -event.self_device_time_total)
    top = "; ".join(f"{e.key[:40]} x{e.count} {e.self_device_time_total / 1e3:.2f}ms" for e in events[:5])
    busy = sum(event.self_device_time_total for event in events) / 1e3
    return {"kernels": sum(event.count for event in events), "busy_ms": round(busy, 2), "top": top}


def layer(bench: Bench) -> None:
    """One layer, operator by operator, at 8,192 tokens."""
    for packed in (False, True):
        with bench.attempt(f"layer {'mxfp4' if packed else 'bf16'}"):
            _layer_case(bench, packed, 128 if bench.tiny else 8192)


def layer_kernels(bench: Bench) -> None:
    """The same with kernels of our own, those that are right on this device."""
    if own_kernels(bench):
        layer(replace(bench, mark=" own kernels"))


def _layer_case(bench: Bench, packed: bool, tokens: int) -> None:
    """Where weights are packed the experts alone, computed again in the backward pass."""
    config = GptOssConfig(**bench.two_layers())
    model = adapted(bench, config, packed)
    use_paths(model, lean=True, recompute_experts=packed)
    base = model.get_base_model()
    x = torch.randn(1, tokens, config.hidden_size, device=bench.device).to(BF).requires_grad_()
    d_out = torch.randn_like(x)
    position, end = (part[None].to(bench.device) for part in tree_row(tokens, "plain"))
    masks = attention_inputs(base, position, end)["attention_mask"]
    rotation = base.model.rotary_emb(x, position)
    first, second = base.model.layers
    calls: dict[str, Callable[[], torch.Tensor]] = {"experts": lambda: first.mlp(x)[0]}
    if not packed:
        calls["norm"] = lambda: first.input_layernorm(x)
        for which, kind in zip((first, second), base.config.layer_types, strict=True):
            more = {"hidden_states": x, "position_embeddings": rotation, "attention_mask": masks[kind]}
            calls[f"attention {kind}"] = lambda which=which, more=more: which.self_attn(**more)[0]

    def forward(call: Callable[[], torch.Tensor]) -> torch.Tensor:
        with torch.autocast(bench.device, BF):
            return call()

    def both(call: Callable[[], torch.Tensor]) -> None:
        forward(call).backward(d_out)

    for name, call in calls.items():
        once, twice = bench.timed(partial(forward, call)), bench.timed(partial(both, call))
        bench.measured(
            f"layer {name} {'mxfp4 recompute' if packed else 'bf16'} {tokens}", fwd_ms=round(once * 1e3, 2),
            fwd_bwd_ms=round(twice * 1e3, 2), **kernels(bench, partial(both, call)),
        )  # fmt: skip


def bf16_steps(bench: Bench) -> None:
    _steps(bench, packed=False)


def mxfp4_steps(bench: Bench) -> None:
    _steps(bench, packed=True)


def kernel_steps(bench: Bench) -> None:
    """Steps with kernels of our own: what the goals of 4,096 and 8,192 tokens are held against."""
    if own_kernels(bench):
        marked = replace(bench, mark=" own kernels")
        _steps(marked, packed=False, sizes=(4096, 8192), modes=("false",))
        _steps(marked, packed=True, sizes=(4096, 8192), modes=("experts",))


def long_steps(bench: Bench) -> None:
    """Rows of 32,768 and 131,072 tokens on an MXFP4 base, whole layers again in the backward pass."""
    own_kernels(bench)
    _steps(bench, packed=True, sizes=(32768, 131072), modes=("true",))


def _steps(
    bench: Bench, packed: bool, sizes: Sequence[int] = (2048, 4096, 8192, 16384), modes: Sequence[str] = ()
) -> None:
    """Forward, loss, backward, clipping and AdamW of the whole model, as the trainer does them."""
    base, config = "mxfp4" if packed else "bf16", GptOssConfig(**bench.shape())
    begin = time.perf_counter()
    model = adapted(bench, config, packed)
    bench.sync()
    seconds = time.perf_counter() - begin
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    allocated = {"allocated_GiB": round(torch.cuda.memory_allocated() / GIB, 2)} if bench.cuda else {}
    bench.measured(f"build {base}", seconds=round(seconds, 1), trainable_M=round(trained / 1e6, 1), **allocated)
    step = _Step(bench, model)
    modes = modes or (("true", "experts") if packed else ("false", "experts", "true"))
    for tokens in (64, 128) if bench.tiny else sizes:
        for mode in modes[:1] if tokens == 2048 else modes:
            name = f"step {base} checkpointing={mode} {tokens}"
            with bench.attempt(name):
                use_paths(model, lean=True, recompute_experts=mode == "experts", checkpointing=mode == "true")
                rows = random_rows(bench, config, tokens)
                planned = planned_peak(packed, mode, tokens, len(rows.place)) if bench.cuda and not bench.tiny else {}
                loss = partial(narrow_loss, bench, model, rows)
                step.measure(name, tokens, loss, profiled=tokens in (2048, 8192), **planned)


def planned_peak(packed: bool, mode: str, tokens: int, targets: int) -> dict[str, float]:
    """What `counterpoint plan` counts for the step, where what it needs is installed."""
    try:
        from counterpoint.configs.schema import SftRun
        from counterpoint.train.plan.estimate import Estimate
        from counterpoint.train.plan.memory import Batch
    except ImportError:
        return {}
    run = SftRun.model_validate(
        {
            "recipe": "sft",
            "model": {"name": "openai/gpt-oss-20b", "base": "mxfp4" if packed else "bf16"},
            "lora": {"rank": 16, "alpha": 32},
            "data": {"train": "rows.jsonl", "max_tokens": tokens},
            "train": {"activation_checkpointing": {"true": True, "false": False}.get(mode, mode), "accumulation": 1},
        }
    )
    return {"plan_GiB": round(Estimate.of(run, Batch(1, tokens, targets), "cuda").memory.total / GIB, 1)}


def sampling(bench: Bench) -> None:
    """Tokens a second of the hook's own sampler, greedy, by samples at a time."""
    try:
        from counterpoint.data.harmony.vocabulary import load_vocabulary
        from counterpoint.train.model.load import LoadedModel
        from counterpoint.train.model.vocabulary_map import VocabularyMap
        from counterpoint.train.sampling.sample import Sampler
    except ImportError as error:
        bench.measured("sampling", left_out=f"{error.name} is not installed")
        return
    own_kernels(bench)
    prompt, new = (16, 4) if bench.tiny else (1024, 128)
    for packed in (False, True):
        config = GptOssConfig(**bench.shape())
        ids = [*range(400), *range(199_998, 200_020)] if bench.tiny else range(config.vocab_size)
        mapping = VocabularyMap.from_ids(ids)
        config.vocab_size = mapping.n_rows
        model = adapted(bench, config, packed)
        use_paths(model, lean=True)
        vocabulary = load_vocabulary()
        loaded = LoadedModel(model.eval(), vocabulary, mapping, "random weights")
        for rows in (1, 2) if bench.tiny else (1, 8, 32):
            name = f"sampling {'mxfp4' if packed else 'bf16'}, {rows} at a time, {prompt} + {new} tokens"
            with bench.attempt(name):
                asked = torch.randint(2, 400, (rows, prompt)).tolist()
                sampler = Sampler(loaded, batch_rows=rows)
                seconds = bench.timed(partial(sampler.sample, asked, new, stop_ids=()), times=2, warm=1)
                bench.measured(name, tok_s=round(rows * new / seconds), ms_a_token=round(1e3 * seconds / new, 2))
        del model, loaded
        if bench.cuda:
            torch.cuda.empty_cache()


class _Step:
    """An optimizer step of one model."""

    def __init__(self, bench: Bench, model: Any) -> None:
        self.bench = bench
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=bench.cuda)

    def run(self, loss: Callable[[], torch.Tensor]) -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def measure(self, name: str, tokens: int, loss: Callable[[], torch.Tensor], profiled: bool, **numbers: Any) -> None:
        """The median of three steps after two others; memory is that of the steps after the first."""
        bench, step = self.bench, partial(self.run, loss)
        step()
        if bench.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = bench.timed(step, times=3, warm=1)
        numbers = {"ms": round(seconds * 1e3, 1), "tok_s": round(tokens / seconds), **numbers}
        if bench.cuda:
            free, total = torch.cuda.mem_get_info()
            numbers["peak_GiB"] = round(torch.cuda.max_memory_allocated() / GIB, 1)
            numbers["reserved_GiB"] = round(torch.cuda.max_memory_reserved() / GIB, 1)
            numbers["device_GiB"] = round((total - free) / GIB, 1)
            numbers |= kernels(bench, step) if profiled else {}
            torch.cuda.empty_cache()
        bench.measured(name, **numbers)


def peer_steps(bench: Bench) -> None:
    """transformers + PEFT as they come: eager attention, grouped_mm experts, layers checkpointed."""
    from peft import LoraConfig, get_peft_model

    config = GptOssConfig(**bench.shape())
    base = random_base(bench, config, packed=False)
    base.set_attn_implementation("eager")
    base.set_experts_implementation("grouped_mm" if bench.cuda else "eager")
    lora = LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM",
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    model: Any = get_peft_model(base, lora).train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    step = _Step(bench, model)
    for tokens in (64,) if bench.tiny else (2048, 4096, 8192):
        name = f"step transformers+PEFT checkpointed {tokens}"
        with bench.attempt(name):
            ids = torch.randint(2, config.vocab_size, (1, tokens), device=bench.device)
            masked = torch.arange(tokens, device=bench.device) // 64 % 2 == 0
            step.measure(name, tokens, partial(_peer_loss, bench, model, ids, ids.masked_fill(masked, -100)), False)


def _peer_loss(bench: Bench, model: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    with torch.autocast(bench.device, BF):
        return model(input_ids=ids, labels=labels, use_cache=False).loss
