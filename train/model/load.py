"""A gpt-oss model with the vocabulary that goes with it: the embedded one, a folder, or a Hugging Face name.

Weights are read from safetensors only and no code of a checkpoint is ever run.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import GptOssConfig, GptOssForCausalLM, PretrainedConfig
from transformers.utils.hub import cached_file
from transformers.utils.logging import disable_progress_bar

from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings
from counterpoint.data.harmony.vocabulary import (
    ENDOFTEXT,
    STOP_IDS,
    Vocabulary,
    load_vocabulary,
    ranks_of_tokenizer_json,
)
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.marker import require_whole
from counterpoint.train.model.memory_errors import is_out_of_memory
from counterpoint.train.model.mxfp4_load import load_mxfp4
from counterpoint.train.model.released_shapes import known_shape
from counterpoint.train.model.vocabulary_map import MAP_FILE, VocabularyMap

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@dataclass(frozen=True)
class LoadedModel:
    """A model and what encodes text for it.

    model: `GptOssForCausalLM`, or a `PeftModel` around one. vocabulary: encodes text to real ids that the model has.
    vocabulary_map: real ids <-> rows of `input_ids` and logits. source: where it came from, for a person.
    """

    model: Any
    vocabulary: Vocabulary
    vocabulary_map: VocabularyMap
    source: str

    @property
    def pad_row(self) -> int:
        """The row that fills batches (`<|endoftext|>`)."""
        return self.vocabulary_map.row(ENDOFTEXT)

    @property
    def stop_rows(self) -> list[int]:
        """Rows of `<|return|>` and `<|call|>`."""
        return self.vocabulary_map.rows(STOP_IDS).tolist()

    def with_model(self, model: Any) -> LoadedModel:
        """The same vocabulary around another model (an adapter attached to this one)."""
        return replace(self, model=model)


def device_of(setting: str = "auto") -> torch.device:
    """The device of this process: `auto` is its own GPU where there are any, by the launcher's LOCAL_RANK.

    ModelError for `cuda` without a GPU, and for more processes than GPUs.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ModelError("device: cuda was asked for and torch sees none: use `auto` or `cpu`")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = os.environ.get("LOCAL_RANK")
    if rank is None:
        return torch.device("cuda", torch.cuda.current_device())
    if int(rank) >= (count := torch.cuda.device_count()):
        raise ModelError(
            f"launch.processes: process {int(rank) + 1} of this machine has no GPU of its own, torch sees {count}: "
            "start as many processes as there are GPUs"
        )
    # Always with an index: safetensors takes a bare `cuda` for the first GPU, in every process.
    return torch.device("cuda", int(rank))


def dtype_of(setting: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU that has it and float32 elsewhere."""
    if setting == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]


def load_model(settings: ModelSettings | str, device: torch.device | str = "cpu") -> LoadedModel:
    """The model of a run file's section `model` (or of its `name` alone), on `device`, with reference attention and
    experts.

    `init: random` draws the weights from torch's global generator. ModelError for everything that is not a complete
    gpt-oss checkpoint in safetensors.
    """
    device = torch.device(device)
    settings = ModelSettings(name=settings) if isinstance(settings, str) else settings
    folder = tiny_folder() if settings.name == EMBEDDED_MODEL else Path(settings.name).expanduser()
    name = str(folder) if folder.is_dir() else settings.name
    if folder.is_dir() and settings.init != "random":
        require_whole(folder)
    config = _config(name, settings)
    mapping = _map(folder, config)
    dtype = dtype_of(settings.dtype, device)
    if settings.init == "random":
        model = cast(Any, _random(config, dtype)).to(device)
    elif settings.base == "mxfp4":
        model = _packed(snapshot_of(settings), settings, config, dtype, device)
        _check_tokenizer(name, settings)
    else:
        model = _pretrained(name, settings, config, dtype, device)
    if settings.init == "pretrained":
        model.name_or_path = base_path(settings)  # what PEFT writes into an adapter
    return finish_model(model, mapping, settings.name)


def base_path(settings: ModelSettings) -> str:
    """The base as other programs find it from any folder: an absolute path, or a Hugging Face name."""
    folder = tiny_folder() if settings.name == EMBEDDED_MODEL else Path(settings.name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else settings.name


def load_vocabulary_of(settings: ModelSettings) -> Vocabulary:
    """The vocabulary that `load_model` would give with the model, without loading any weights."""
    folder = tiny_folder() if settings.name == EMBEDDED_MODEL else Path(settings.name).expanduser()
    return VocabularyMap.load(folder).vocabulary(load_vocabulary())


def load_config(settings: ModelSettings) -> tuple[GptOssConfig, str]:
    """A model's configuration without its weights, and where it comes from. The released models need no network."""
    folder = tiny_folder() if settings.name == EMBEDDED_MODEL else Path(settings.name).expanduser()
    shape = None if folder.is_dir() else known_shape(settings.name)
    if shape is not None and settings.name.startswith("openai/"):
        return GptOssConfig(**shape), "its published shape"
    try:
        return _config(str(folder) if folder.is_dir() else settings.name, settings), "its config.json"
    except ModelError:
        if shape is None:
            raise
        origin = "the published shape of the model in its name, since its config.json is not available"
        return GptOssConfig(**shape), origin


def finish_model(model: GptOssForCausalLM, mapping: VocabularyMap, source: str) -> LoadedModel:
    """Put a vocabulary with a model and set what ends sampling: both `<|return|>` and `<|call|>`."""
    loaded = LoadedModel(model, mapping.vocabulary(load_vocabulary()), mapping, source)
    config = model.generation_config
    assert config is not None
    config.eos_token_id, config.pad_token_id, config.bos_token_id = loaded.stop_rows, loaded.pad_row, None
    config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
    model.config.pad_token_id, model.config.eos_token_id = loaded.pad_row, loaded.stop_rows
    return loaded


def _config(name: str, settings: ModelSettings) -> GptOssConfig:
    fix = "give `tiny`, a checkpoint folder, or a Hugging Face name such as openai/gpt-oss-20b"
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise ModelError(f"model.name: there is no folder `{settings.name}`: {fix}")
    try:
        # The values alone, before any class is made from them: a foreign `auto_map` is never followed.
        values, _ = PretrainedConfig.get_config_dict(name, revision=settings.revision)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.name: no config.json at `{settings.name}` ({_first_line(error)}): {fix}") from None
    if not values:
        raise ModelError(f"model.name: no config.json in `{settings.name}`: {fix}")
    if values.get("model_type") != "gpt_oss":
        kind = values.get("model_type", "unknown")
        raise ModelError(f"model.name: `{settings.name}` is a model of type {kind}, not gpt_oss: {fix}")
    values.pop("auto_map", None)
    if settings.init == "random":
        values.pop("quantization_config", None)
    return GptOssConfig.from_dict(values)


def _map(folder: Path, config: GptOssConfig) -> VocabularyMap:
    mapping = VocabularyMap.load(folder, n_rows=config.vocab_size)
    if mapping.n_rows != config.vocab_size:
        path = folder / MAP_FILE
        raise ModelError(f"{path}: {mapping.n_rows} ids for {config.vocab_size} rows: copy it from the model again")
    return mapping


def _random(config: GptOssConfig, dtype: torch.dtype) -> GptOssForCausalLM:
    config._attn_implementation = "eager"  # where the constructor reads it; `use_implementations` chooses later on
    return cast(Any, GptOssForCausalLM(config)).to(dtype)


def _pretrained(
    name: str, settings: ModelSettings, config: GptOssConfig, dtype: torch.dtype, device: torch.device
) -> GptOssForCausalLM:
    if _is_small(Path(name)):
        disable_progress_bar()
    options: dict[str, Any] = {}
    if getattr(config, "quantization_config", None) is not None:
        options["quantization_config"] = _dequantised(settings, config)
    if device.type == "cuda":
        options["device_map"] = {"": device}
    library = logging.getLogger("transformers")
    level = library.level
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            library.setLevel(logging.ERROR)  # its table of what is missing comes here as one line
            model, info = cast(Any, GptOssForCausalLM).from_pretrained(
                name,
                config=config,
                revision=settings.revision,
                dtype=dtype,
                attn_implementation="eager",
                use_safetensors=True,
                weights_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise _load_error(settings.name, error) from error
    finally:
        library.setLevel(level)
    if "quantization_config" in options:
        for parameter in model.parameters():  # transformers 5.19 unpacks to bfloat16, whatever it is asked for
            parameter.data = parameter.data.to(dtype)
    if wrong := sorted(info["missing_keys"]) or sorted(str(k) for k in info["mismatched_keys"]):
        raise ModelError(f"model.name: `{settings.name}` lacks {wrong[0]} ({len(wrong)} in all): is the copy complete?")
    _check_tokenizer(name, settings)
    return model


def _packed(
    folder: Path, settings: ModelSettings, config: GptOssConfig, dtype: torch.dtype, device: torch.device
) -> GptOssForCausalLM:
    try:
        return load_mxfp4(folder, config, dtype, device)
    except (SafetensorError, OSError, json.JSONDecodeError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise _load_error(settings.name, error) from error


def _is_small(folder: Path) -> bool:
    """Whether its weights are read in a moment, so that transformers' progress bars only disturb."""
    return folder.is_dir() and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < 1 << 30


def snapshot_of(settings: ModelSettings) -> Path:
    """A checkpoint's folder on this machine; one of the hub is downloaded, without its copies in other formats."""
    name = settings.name
    if (folder := Path(name).expanduser()).is_dir():
        return folder
    if not _HUB_NAME.fullmatch(name):
        _config(name, settings)  # raises: neither a folder nor a name
    try:
        others = ["original/*", "metal/*"]
        wanted = ["*.safetensors", "*.json"]
        found = snapshot_download(name, revision=settings.revision, allow_patterns=wanted, ignore_patterns=others)
    except (OSError, ValueError) as error:
        raise _load_error(settings.name, error) from error
    return Path(found)


def _dequantised(settings: ModelSettings, config: GptOssConfig) -> Any:
    from transformers.utils.quantization_config import Mxfp4Config

    method = config.quantization_config.get("quant_method")  # pyright: ignore[reportAttributeAccessIssue]
    if method != "mxfp4":
        raise ModelError(f"model.name: `{settings.name}` is quantised by {method}: use an original or bf16 checkpoint")
    return Mxfp4Config(dequantize=True)


def _check_tokenizer(name: str, settings: ModelSettings) -> None:
    """ModelError where the checkpoint has a tokenizer.json that is not o200k."""
    if Path(name).is_dir():
        found = Path(name) / "tokenizer.json"
        path = found if found.is_file() else None
    else:
        found = cached_file(
            name,
            "tokenizer.json",
            revision=settings.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        path = Path(found) if found else None
    if path is not None:
        ranks_of_tokenizer_json(path)


def _load_error(name: str, error: Exception) -> ModelError:
    folder = Path(name)
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern)]
        what = f"only pickled weights ({pickles[0]}), which are never loaded" if pickles else "no weights"
        return ModelError(f"model.name: `{name}` holds {what}: save them as safetensors")
    return ModelError(f"model.name: `{name}` cannot be loaded ({_first_line(error)}): is the copy complete?")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
