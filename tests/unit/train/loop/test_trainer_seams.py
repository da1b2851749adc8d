"""The private parts of libraries that this code overrides, calls or reads, each with its signature.

A new version of a library that changes one of them fails here by name. The table is complete: what the code touches is
looked up in the classes as they are and in the source, and the table must hold all of it and nothing else.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
SOURCES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for layer in ("configs", "data", "train", "recipes")
    for path in sorted((ROOT / layer).rglob("*.py"))
}
PUBLIC = {"_replace", "_exit", "_abc_impl"}  # documented: of named tuples, of os; of every abstract class
VALUE = "a value"
SEAMS: dict[str, str] = {
    "trl.trainer.base_trainer:_BaseTrainer._send_telemetry": "(self)",
    "trl.trainer.sft_trainer:SFTTrainer._save_checkpoint": "(self, model, trial)",
    "transformers.configuration_utils:PretrainedConfig._attn_implementation": VALUE,
    "transformers.configuration_utils:PretrainedConfig._experts_implementation": VALUE,
    "transformers.modeling_utils:PreTrainedModel._gradient_checkpointing_func": VALUE,
    "transformers.trainer:Trainer._get_grad_norm": "(self, model, grad_norm=None)",
    "transformers.trainer:Trainer._get_num_items_in_batch": (
        "(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None"
    ),
    "transformers.trainer:Trainer._init_training_state": (
        "(self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial) -> "
        "tuple[int, int]"
    ),
    "transformers.trainer:Trainer._load_from_checkpoint": (
        "(self, resume_from_checkpoint: str, model: torch.nn.modules.module.Module | None = None) -> None"
    ),
    "transformers.trainer:Trainer._load_optimizer_and_scheduler": "(self, checkpoint: str | None) -> None",
    "transformers.trainer:Trainer._save_checkpoint": (
        "(self, model: torch.nn.modules.module.Module, trial: 'optuna.Trial | dict[str, Any] | None') -> None"
    ),
    "transformers.trainer:Trainer._maybe_log_save_evaluate": (
        "(self, tr_loss: torch.Tensor, grad_norm: torch.Tensor | float | None, model: "
        "torch.nn.modules.module.Module, trial: 'optuna.Trial | dict[str, Any] | None', epoch: float, "
        "ignore_keys_for_eval: list[str] | None, start_time: float, learning_rate: float | None = None) -> None"
    ),
    "transformers.trainer:Trainer._prepare_inputs": (
        "(self, inputs: dict[str, torch.Tensor | typing.Any]) -> dict[str, torch.Tensor | typing.Any]"
    ),
    "transformers.trainer:Trainer._run_epoch": (
        "(self, model, epoch, train_dataloader, steps_in_epoch, num_update_steps_per_epoch, trial, "
        "ignore_keys_for_eval, start_time, resume_from_checkpoint, epochs_trained, "
        "steps_trained_in_current_epoch)"
    ),
    "transformers.trainer:Trainer._save": (
        "(self, output_dir: str | None = None, state_dict: dict | None = None) -> None"
    ),
    "transformers.trainer:Trainer._save_optimizer_and_scheduler": "(self, output_dir: str) -> None",
    "transformers.trainer:Trainer._save_rng_state": "(self, output_dir: str) -> None",
    "transformers.trainer:Trainer._save_scaler": "(self, output_dir: str) -> None",
    "transformers.training_args:TrainingArguments._n_gpu": VALUE,
    "peft.tuners.lora.config:LoraConfig._register_custom_module": (
        "(self, mapping: 'dict[type[nn.Module], type[nn.Module]]') -> 'None'"
    ),
    "peft.tuners.lora.layer:ParamWrapper._did_swap_in_out_features": VALUE,
    "transformers.integrations.moe:use_experts_implementation._is_expert_parallel": VALUE,
    "peft.tuners.lora.layer:ParamWrapper._activate_lora": "(self, active_adapters: 'list[str]')",
    "peft.tuners.tuners_utils:BaseTunerLayer._cast_input_dtype": "(self, x, dtype: 'torch.dtype')",
    "torch:Tensor._make_wrapper_subclass": "written in C",
    "torch:cpu._is_amx_tile_supported": "() -> bool",
    "torch:ops.aten._flash_attention_backward": (
        "aten::_flash_attention_backward(Tensor grad_out, Tensor query, Tensor key, Tensor value, Tensor out, "
        "Tensor logsumexp, Tensor cum_seq_q, Tensor cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, bool "
        "is_causal, Tensor rng_state, Tensor unused, *, float? scale=None, SymInt? window_size_left=None, "
        "SymInt? window_size_right=None) -> (Tensor, Tensor, Tensor)"
    ),
    "torch:ops.aten._flash_attention_forward": (
        "aten::_flash_attention_forward(Tensor query, Tensor key, Tensor value, Tensor? cum_seq_q, Tensor? "
        "cum_seq_k, SymInt max_q, SymInt max_k, float dropout_p, bool is_causal, bool return_debug_mask, *, "
        "float? scale=None, SymInt? window_size_left=None, SymInt? window_size_right=None, Tensor? "
        "seqused_k=None, Tensor? alibi_slopes=None, Tensor? block_table=None, int? num_splits=None) -> (Tensor "
        "output, Tensor softmax_logsumexp, Tensor rng_state, Tensor unused, Tensor debug_attn_mask)"
    ),
    "torch:ops.aten._fused_rms_norm": (
        "aten::_fused_rms_norm(Tensor input, int[] normalized_shape, Tensor? weight, float? eps) -> (Tensor, Tensor)"
    ),
    "torch:ops.aten._fused_rms_norm_backward": (
        "aten::_fused_rms_norm_backward(Tensor grad_out, Tensor input, int[] normalized_shape, Tensor rstd, "
        "Tensor? weight, bool[2] output_mask) -> (Tensor, Tensor)"
    ),
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu": (
        "aten::_scaled_dot_product_flash_attention_for_cpu(Tensor query, Tensor key, Tensor value, float "
        "dropout_p=0., bool is_causal=False, *, Tensor? attn_mask=None, float? scale=None) -> (Tensor output, "
        "Tensor logsumexp)"
    ),
    "torch:ops.aten._scaled_dot_product_flash_attention_for_cpu_backward": (
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward(Tensor grad_out, Tensor query, Tensor key, "
        "Tensor value, Tensor out, Tensor logsumexp, float dropout_p, bool is_causal, *, Tensor? attn_mask=None, "
        "float? scale=None) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value)"
    ),
    "torch:ops.aten._to_copy": (
        "aten::_to_copy(Tensor self, *, ScalarType? dtype=None, Layout? layout=None, Device? device=None, bool? "
        "pin_memory=None, bool non_blocking=False, MemoryFormat? memory_format=None) -> Tensor"
    ),
    "atexit:_run_exitfuncs": "written in C",
    "torch._functorch:config": VALUE,
    "torch.optim.lr_scheduler:LRScheduler._last_lr": VALUE,
    "torch._ops:OpOverload._schema": VALUE,
    "torch.nn.parallel:DistributedDataParallel._set_params_and_buffers_to_ignore_for_model": (
        "(module, params_and_buffers_to_ignore)"
    ),
    "torch.utils._pytree:tree_map_only": (
        "(type_or_types_or_pred: type[typing.Any] | tuple[type[typing.Any], ...] | types.UnionType | "
        "collections.abc.Callable[[typing.Any], bool], /, func: collections.abc.Callable[[typing.Any], "
        "typing.Any], tree: Any, is_leaf: collections.abc.Callable[[typing.Any], bool] | None = None) -> Any"
    ),
    "tiktoken:Encoding._core_bpe": VALUE,
    "tiktoken:Encoding._mergeable_ranks": VALUE,
    "argparse:ArgumentParser._actions": VALUE,
}
OLDER = {"transformers.integrations.moe:use_experts_implementation._is_expert_parallel": "gone"}
"""What a seam is in the oldest tested versions, where train/model/library_versions.py does without it."""


@pytest.mark.parametrize("seam", SEAMS)
def test_a_seam_is_as_it_was(seam: str) -> None:
    assert signature(seam) in (SEAMS[seam], OLDER.get(seam)), (
        f"{seam} changed: read what relies on it before the new version is allowed"
    )


def test_the_table_is_complete() -> None:
    shared = {seam for kind in our_classes() for seam in shared_with_a_library(kind)}
    reached = set(reached_from_outside())
    assert sorted(shared - set(SEAMS)) == []
    assert sorted(reached - {name_of(seam) for seam in SEAMS}) == []
    assert sorted(seam for seam in SEAMS if seam not in shared and name_of(seam) not in reached) == []


def signature(seam: str) -> str:
    """What `module:Class.name` is at the installed versions, as text; "gone" where nothing of that name is left."""
    path, _, name = seam.rpartition("." if "." in seam.partition(":")[2] else ":")
    owner: Any = pkgutil.resolve_name(path)
    if not hasattr(owner, name):
        return VALUE if any(sets(kind, name) for kind in getattr(owner, "__mro__", (owner, object))[:-1]) else "gone"
    value = getattr(owner, name)
    if hasattr(value, "default"):
        return str(value.default._schema)
    if not callable(value):
        return VALUE
    try:
        return str(inspect.signature(value))
    except ValueError:
        return "written in C"


def needs_triton(path: Path) -> bool:
    """Kernels, and what compares them: without classes of a library."""
    kernel = path.parts[1] == "kernels" and path.stem not in ("__init__", "registry")
    return kernel or path.stem == "kernel_checks"


def our_classes() -> Iterator[type]:
    for path in SOURCES:
        if path.parts[0] == "train" and path.stem != "sandbox_runner" and not needs_triton(path):  # which is a script
            module = importlib.import_module(f"counterpoint.{'.'.join(path.with_suffix('').parts)}")
            yield from (k for k in vars(module).values() if inspect.isclass(k) and k.__module__ == module.__name__)


def shared_with_a_library(kind: type) -> Iterator[str]:
    """Private names that a class of ours defines or uses on itself, and a library's class that it extends as well."""
    libraries = ("trl", "transformers", "peft", "accelerate")
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("counterpoint."):
            names |= {name for name in vars(base) if is_private(name)}
            tree = ast.parse(textwrap.dedent(source_of(base)))
            names |= {name for name, of in private_attributes(tree) if of in ("self", "super()")}
    for name in names:
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in libraries and (name in vars(base) or sets(base, name)):
                yield f"{base.__module__}:{base.__qualname__}.{name}"
                break


def reached_from_outside() -> Iterator[str]:
    """Private names that are none of ours: `config._name`, `getattr(x, "_name")`, `import _name`; all of `super()`."""
    ours: set[str] = set()
    for kind in (node for tree in SOURCES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for node in ast.walk(kind):
            if isinstance(node, ast.FunctionDef):
                ours.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                ours.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                ours |= {node.attr} if is_name(node.value, "self") else set()
    for tree in SOURCES.values():
        yield from (name for name, of in private_attributes(tree) if name not in ours or of == "super()")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("counterpoint."):
                names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
                yield from (names[-1] for name in names if is_private(name))
            elif isinstance(node, ast.Call) and is_name(node.func, "getattr", "setattr", "hasattr"):
                yield from (a.value for a in node.args if isinstance(a, ast.Constant) and is_private(str(a.value)))


def private_attributes(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr, ast.unparse(node.value)


def sets(owner: Any, name: str) -> bool:
    """Whether a class declares `name`, or its methods (or those in a function) set `self.name`."""
    if name in getattr(owner, "__annotations__", ()):
        return True
    return re.search(rf"self\.{name}\b(: [^=]+)? = ", source_of(owner)) is not None


@cache
def source_of(owner: Any) -> str:
    return inspect.getsource(owner)


def is_name(node: ast.expr, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def name_of(seam: str) -> str:
    return re.split(r"[.:]", seam)[-1]


def is_private(name: str) -> bool:
    """Not `__name__`, and not `_name_`, which enum documents."""
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_") and name not in PUBLIC
