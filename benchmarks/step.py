"""A whole training step, side by side: transformers + PEFT + TRL as they come, the same tuned, and ours.

    python benchmarks/step.py                                  # CPU: tiny and mid, float32 and bfloat16
    python benchmarks/step.py --sizes 20b --dtypes bfloat16    # CUDA: the shape of gpt-oss-20b, random weights

Each contestant trains the same rows from the same weights by its own real trainer, in a process of its own, one after
the other and `--rounds` times over; the median step counts. Half of the tokens carry loss. LoRA r=16 on attention and
experts. `peak` is the highest memory above the loaded model with its adapter; on CPU the process' resident memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1 << 20
CONTESTANTS = {
    "defaults": "transformers + PEFT + TRL as they come (eager attention, activation checkpointing)",
    "tuned": "the same without checkpointing (grouped_mm experts are transformers' default)",
    "ours": "lean attention, experts, norms and loss",
    "ours_recomputed": "ours with train.activation_checkpointing=experts",
    "ours_checkpointed": "ours with train.activation_checkpointing=true",
    "ours_mxfp4": "ours on an MXFP4 base",
    "ours_mxfp4_recomputed": "both",
    "ours_mxfp4_checkpointed": "both",
}


@dataclass(frozen=True)
class Size:
    """A model's shape and the rows of a step."""

    tokens: int
    rows: int
    config: dict[str, Any]


_MID = {
    "num_hidden_layers": 2, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 512,
    "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 201088,
}  # fmt: skip
_TINY = {
    "num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 64,
    "intermediate_size": 64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1408,
}  # fmt: skip
_20B = {
    "num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 4, "hidden_size": 2880,
    "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
    "vocab_size": 201088,
}  # fmt: skip
SIZES = {
    "tiny": Size(256, 16, _TINY),
    "mid": Size(2048, 1, _MID),
    **{f"20b-{tokens}": Size(tokens, 1, _20B) for tokens in (2048, 4096, 8192, 16384)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="tiny,mid", help=f"of {', '.join(SIZES)}; 20b takes all of its lengths")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    listed = "; ".join(f"{name}: {what}" for name, what in CONTESTANTS.items())
    parser.add_argument("--contestants", default="defaults,tuned,ours", help=f"of {listed}")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a round; one more goes before them")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="append one line a result")
    parser.add_argument("--one", nargs=3, metavar=("CONTESTANT", "SIZE", "DTYPE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, steps=args.steps, threads=args.threads)))
        return
    if unknown := set(args.contestants.split(",")) - CONTESTANTS.keys():
        parser.error(f"no contestant {', '.join(sorted(unknown))}: use {', '.join(CONTESTANTS)}")
    names = [name for size in args.sizes.split(",") for name in matching(size)]
    for size in names:
        for dtype in args.dtypes.split(","):
            rounds = [
                {name: in_own_process(name, size, dtype, args) for name in args.contestants.split(",")}
                for _ in range(args.rounds)
            ]
            results = {name: merged([found[name] for found in rounds]) for name in rounds[0]}
            print(table(size, dtype, results, args.threads), flush=True)
            if args.json:
                record = {"size": size, "dtype": dtype, "date": time.strftime("%Y-%m-%d"), **results}
                with args.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")


def matching(size: str) -> list[str]:
    found = [name for name in SIZES if name.startswith(size)]
    if not found:
        sys.exit(f"step.py: no size `{size}`: use {', '.join(SIZES)}")
    return found


def in_own_process(contestant: str, size: str, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """One contestant's measurement, or {"failed": why} (out of memory counts as a result)."""
    command = [sys.executable, __file__, "--one", contestant, size, dtype, "--steps", str(args.steps)]
    command += ["--threads", str(args.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TRL_EXPERIMENTAL_SILENCE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith('{"seconds"')]
    if run.returncode == 0 and lines:
        return json.loads(lines[-1])
    memory = "out of memory" in run.stderr.lower() or run.returncode == -9
    last = (run.stderr.strip().splitlines() or ["no message"])[-1]
    return {"failed": "out of memory" if memory else last[:160]}


def merged(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    failed = [found for found in rounds if "failed" in found]
    if failed:
        return failed[0]
    times = {key: statistics.median([found[key] for found in rounds]) for key in ("seconds", "cpu_seconds")}
    return {**rounds[0], **times, "peak_mib": max(found["peak_mib"] for found in rounds)}


def table(size: str, dtype: str, results: dict[str, dict[str, Any]], threads: int) -> str:
    shape, first = SIZES[size], next(iter(results.values()))
    wide = max(12, *(len(name) + 2 for name in results))
    lines = [
        f"\n{size}, {dtype}: {shape.rows} x {shape.tokens} tokens, {first.get('device', '')}, {threads} thread(s)",
        f"{'':{wide}}{'seconds':>10}{'CPU s':>10}{'tokens/s':>12}{'peak MiB':>10}{'faster':>9}{'memory':>9}"
        f"{'loss':>10}{'|grad|':>11}",
    ]
    for name, found in results.items():
        if "failed" in found:
            lines.append(f"{name:{wide}}{found['failed']}")
            continue
        base = first if "failed" not in first else found
        lines.append(
            f"{name:{wide}}{found['seconds']:>10.3f}{found['cpu_seconds']:>10.3f}"
            f"{shape.rows * shape.tokens / found['seconds']:>12.0f}{found['peak_mib']:>10.0f}"
            f"{base['cpu_seconds'] / found['cpu_seconds']:>8.2f}x{found['peak_mib'] / base['peak_mib']:>8.2f}x"
            f"{found['loss']:>10.5f}{found['grad_norm']:>11.6f}"
            + (f"   {100 * found['share']:.1f} % of {found['tflops']:.0f} TFLOP/s" if "share" in found else "")
        )
    return "\n".join(lines)


def measure(contestant: str, size: str, dtype: str, steps: int, threads: int) -> dict[str, Any]:
    """Train `steps` + 1 steps and report the median of all but the first."""
    import torch

    torch.set_num_threads(threads)
    shape, clock = SIZES[size], Clock()
    with tempfile.TemporaryDirectory() as folder:
        make = ours if contestant.startswith("ours") else trl_trainer
        trainer = make(contestant, shape, getattr(torch, dtype), Path(folder), steps + 1)
        equal_adapters(trainer.model)
        trainer.add_callback(clock.callback())
        trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {
        "seconds": statistics.median(clock.wall[1:]),
        "cpu_seconds": statistics.median(clock.cpu[1:]),
        "peak_mib": (clock.peak - clock.before) / MIB,
        "model_mib": clock.before / MIB,
        "loss": history[0]["loss"],
        "grad_norm": history[0]["grad_norm"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
    }
    if torch.cuda.is_available():
        found["cpu_seconds"] = found["seconds"]
        found["tflops"] = measured_tflops()
        found["share"] = step_flops(shape) / found["seconds"] / (found["tflops"] * 1e12)
    return found


class Clock:
    """Time of each step, and the highest memory over all of them."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.before = self.peak = 0

    def callback(self) -> Any:
        import torch
        from transformers import TrainerCallback

        clock, cuda = self, torch.cuda.is_available()

        class Steps(TrainerCallback):
            def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
                reset_peak()
                clock.before = memory("VmRSS")

            def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
                if cuda:
                    torch.cuda.synchronize()
                self.started = time.perf_counter(), time.process_time()

            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                if cuda:
                    torch.cuda.synchronize()
                clock.wall.append(time.perf_counter() - self.started[0])
                clock.cpu.append(time.process_time() - self.started[1])
                clock.peak = memory("VmHWM")

        return Steps()


def memory(field: str) -> int:
    """Bytes in use now (VmRSS) or at most since the last reset (VmHWM)."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit("step.py: memory is read from /proc, which this system lacks")


def reset_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def build_model(shape: Size, dtype: Any) -> Any:
    """Random weights from seed 0; drawn where they are used."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(**shape.config, router_aux_loss_coef=0.0, pad_token_id=0, eos_token_id=1)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            return GptOssForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def equal_adapters(model: Any) -> None:
    """The same A for every contestant, so that losses and gradient norms can be compared."""
    import torch

    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            random = torch.Generator(parameter.device).manual_seed(zlib.crc32(name.encode()))
            with torch.no_grad():
                parameter.uniform_(-(parameter.shape[1] ** -0.5), parameter.shape[1] ** -0.5, generator=random)


def ids_and_loss(shape: Size, row: int) -> tuple[Any, Any]:
    """Random ids, and which of them carry loss: every other run of 64."""
    import numpy as np

    ids = np.random.default_rng(row).integers(2, shape.config["vocab_size"], shape.tokens).astype(np.int32)
    return ids, np.arange(shape.tokens) // 64 % 2 == 1


def common_arguments(folder: Path, shape: Size, steps: int) -> dict[str, Any]:
    import torch

    return {
        "output_dir": str(folder), "max_steps": steps, "per_device_train_batch_size": shape.rows,
        "learning_rate": 1e-4, "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(), "max_length": None,
        "router_aux_loss_coef": 0.0, "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
        "log_level": "error",
    }  # fmt: skip


def trl_trainer(contestant: str, shape: Size, dtype: Any, folder: Path, steps: int) -> Any:
    """TRL's trainer on TRL's own path: ids and labels, PEFT's LoRA, its loss, its default checkpointing."""
    import numpy as np
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [ids_and_loss(shape, row) for row in range(shape.rows * steps)]
    data = {
        "input_ids": [ids.tolist() for ids, _ in rows],
        "labels": [np.where(loss, ids, -100).tolist() for ids, loss in rows],
    }
    lora = LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM",
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )  # fmt: skip
    model = build_model(shape, dtype)
    extra = {} if contestant == "defaults" else {"gradient_checkpointing": False}
    args = SFTConfig(**common_arguments(folder, shape, steps), bf16=dtype == torch.bfloat16, **extra)
    return SFTTrainer(
        model, args, train_dataset=Dataset.from_dict(data), peft_config=lora, processing_class=tokenizer()
    )


def tokenizer() -> Any:
    """Two tokens, which TRL asks for although it gets ids."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def ours(contestant: str, shape: Size, dtype: Any, folder: Path, steps: int) -> Any:
    """Our trainer on the paths that a run file gets by default."""
    import numpy as np
    from trl.trainer.sft_config import SFTConfig

    from counterpoint.configs.model_section import LoraSettings, ModelSettings
    from counterpoint.data.layout.collate import Collator
    from counterpoint.data.layout.tree import TreeRow
    from counterpoint.train.adapters.attach import attach_lora
    from counterpoint.train.adapters.implementations import use_implementations
    from counterpoint.train.checkpoints.resume import Identity
    from counterpoint.train.loop.sft_trainer import CounterpointTrainer
    from counterpoint.train.loop.training_arguments import LoopSettings
    from counterpoint.train.model.library_versions import checkpointing_arguments

    extras = set(contestant.split("_")[1:])
    rows, position = [], np.arange(shape.tokens, dtype=np.int32)
    for row in range(shape.rows * steps):
        ids, loss = ids_and_loss(shape, row)
        source = np.flatnonzero(loss[1:]).astype(np.int32)
        ones, final = np.ones(len(source), np.float32), np.full(len(source), 3, np.uint8)
        end = np.full(shape.tokens, shape.tokens, np.int32)
        rows.append(TreeRow(ids, position, end, source, ids[source + 1], ones, final, (f"{row}#0",), shape.tokens))
    model = build_model(shape, dtype)
    if "mxfp4" in extras:
        pack_experts(model)
    model = attach_lora(model, LoraSettings(rank=16, alpha=32))
    use_implementations(model, ModelSettings(), "recomputed" in extras)
    args = SFTConfig(
        **common_arguments(folder, shape, steps), **checkpointing_arguments("checkpointed" in extras), bf16=False,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
    )  # fmt: skip
    identity = Identity({}, "benchmark", shape.rows)
    return CounterpointTrainer(model, args, rows, Collator(), LoopSettings(folder / "checkpoints"), identity)


def pack_experts(model: Any) -> None:
    """Random experts in MXFP4 in place of the model's, of the same size on the average."""
    import torch

    from counterpoint.train.model.mxfp4 import frozen_mxfp4

    for layer in model.model.layers:
        for name in ("gate_up_proj", "down_proj"):
            experts, inputs, outputs = getattr(layer.mlp.experts, name).shape
            like = {"dtype": torch.uint8, "device": model.device}
            blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), **like)
            scales = torch.full((experts, outputs, inputs // 32), 127 - 7, **like)
            setattr(layer.mlp.experts, name, frozen_mxfp4(blocks, scales, model.dtype))


def step_flops(shape: Size) -> float:
    """Floating-point operations that a step needs: forward and backward to the activations (the base is frozen)."""
    c, tokens = shape.config, shape.tokens * shape.rows
    width = c["head_dim"] * (2 * c["num_attention_heads"] + 2 * c["num_key_value_heads"])
    layer = c["hidden_size"] * width + 3 * c["num_experts_per_tok"] * c["hidden_size"] * c["intermediate_size"]
    head = c["hidden_size"] * c["vocab_size"] / 2
    pairs = sum(shape.tokens * min(shape.tokens / 2, reach) for reach in (128, shape.tokens)) / 2 * shape.rows
    attention = 2 * 2 * c["num_hidden_layers"] * pairs * c["num_attention_heads"] * c["head_dim"]
    return 2 * 2 * tokens * (layer * c["num_hidden_layers"] + head) + attention * 3.5


def measured_tflops() -> float:
    """bfloat16 TFLOP/s of a large matrix product on this GPU."""
    import torch

    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start) / 1e12


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


if __name__ == "__main__":
    main()
