"""The files of an export: weights, what other programs read first, and what comes from the base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from transformers.utils.hub import cached_file

from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings
from counterpoint.train.adapters.projections import projections
from counterpoint.train.adapters.quantization import QUANTIZATION_FILE
from counterpoint.train.checkpoints.find import Found
from counterpoint.train.checkpoints.weights import ADAPTER_FILE, save_weights
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import LoadedModel, base_path

TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_adapter(place: Path, found: Found, live: LoadedModel, names: Sequence[str]) -> list[str]:
    """The adapter in PEFT's format, with its base's tokenizer. Returns notes."""
    assert found.adapter is not None
    shutil.copyfile(found.adapter / ADAPTER_FILE, place / ADAPTER_FILE)
    config = json.loads((found.adapter / "adapter_config.json").read_bytes())
    config["base_model_name_or_path"] = base_path(found.base)
    (place / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    notes = copy_tokenizer(place, found.base, live, names)
    if (found.adapter / QUANTIZATION_FILE).is_file():
        shutil.copyfile(found.adapter / QUANTIZATION_FILE, place / QUANTIZATION_FILE)
        notes.append(
            "this adapter was trained to be merged and rounded to MXFP4; beside its base, as a server puts it, it is "
            "another model: serve what --to mxfp4 writes"
        )
    return notes


def tokenizer_names(own_template: bool) -> list[str]:
    """Files of a tokenizer; without the base's template where the export has one of its own."""
    return [name for name in TOKENIZER_FILES if not (own_template and name == TEMPLATE_FILE)]


def complete_merged(place: Path, found: Found, live: LoadedModel, packed: bool, names: Sequence[str]) -> list[str]:
    """What belongs to merged weights besides them. Returns notes."""
    side = _side_base(found)
    _start_from_base(place, side, live)
    _check_config(place, live, packed)
    return copy_tokenizer(place, side, live, names)


def _side_base(found: Found) -> ModelSettings:
    """Where tokenizer and generation settings come from: of a run that trained all weights, the model it began with."""
    return found.run.model if found.run is not None and found.adapter is None else found.base


def _start_from_base(place: Path, base: ModelSettings, live: LoadedModel) -> None:
    """Generation settings and token ids of the base's own files, where it has them. Both stop tokens are added, since a
    server that does not stop at them runs on behind a call or an answer."""
    if (source := _base_file(base, "generation_config.json")) is not None:
        own = json.loads(source.read_bytes())
        stops = own.get("eos_token_id") or []
        stops = [stops] if isinstance(stops, int) else stops
        own["eos_token_id"] = [*stops, *(row for row in live.stop_rows if row not in stops)]
        (place / source.name).write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
    if (source := _base_file(base, "config.json")) is not None:
        own, written = (json.loads((path / source.name).read_bytes()) for path in (source.parent, place))
        written |= {key: own[key] for key in TOKEN_IDS if own.get(key) is not None}
        (place / source.name).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def write_merged(place: Path, live: LoadedModel) -> None:
    """All weights in bf16. The live model is merged into."""
    for part in projections(live.model):
        if part.module is not None and part.module.rounded is not None:
            # What it computed with is on a grid that bf16 holds exactly.
            part.weight.copy_(part.module.rounded.dense())
            for name in part.module.active_adapters:
                part.module.lora_B[name].weight.data.zero_()
    model = live.model.merge_and_unload() if isinstance(live.model, PeftModel) else live.model
    model = model.to(torch.bfloat16)
    config = model.config
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    config.architectures = ["GptOssForCausalLM"]
    model.generation_config.eos_token_id = live.stop_rows
    save_weights(model, place)


def _check_config(place: Path, live: LoadedModel, packed: bool) -> None:
    """What other programs read first must be true of the weights in the same folder."""
    written = json.loads((place / "config.json").read_bytes())
    method = (written.get("quantization_config") or {}).get("quant_method")
    stops = json.loads((place / "generation_config.json").read_bytes()).get("eos_token_id")
    assert written.get("architectures") == ["GptOssForCausalLM"], written.get("architectures")
    assert method == ("mxfp4" if packed else None), method
    assert set(live.stop_rows) <= set(stops), stops


def copy_tokenizer(place: Path, base: ModelSettings, live: LoadedModel, names: Sequence[str]) -> list[str]:
    if not live.vocabulary_map.is_identity:
        live.vocabulary_map.save(place)
        return []
    missing = []
    for name in names:
        source = _base_file(base, name)
        if source is None:
            missing.append(name)
        else:
            shutil.copyfile(source, place / name)
    return [f"{', '.join(missing)}: not in {base.name}, so not in the export either"] if missing else []


def _base_file(base: ModelSettings, name: str) -> Path | None:
    folder = tiny_folder() if base.name == EMBEDDED_MODEL else Path(base.name).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = cached_file(base.name, name, revision=base.revision, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None
