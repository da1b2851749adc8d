"""Export of a trained checkpoint as an adapter or as merged weights, checked against the model that was trained.

An export folder is complete or absent (`save.write_folder`). `manifest.json` records what it was made from, with which
settings, and what the gate measured. The gate loads the export again from disk; a GGUF file is made from bf16 weights
that passed it.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from transformers.utils.hub import cached_file

from counterpoint.configs.data_section import OpeningSettings, RenderSettings
from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import full_fingerprint
from counterpoint.train.checkpoints.find import Found, find_checkpoint, open_checkpoint
from counterpoint.train.checkpoints.save import MARKER, write_folder
from counterpoint.train.checkpoints.weights import ADAPTER_FILE, save_weights
from counterpoint.train.export import gate
from counterpoint.train.export import gguf as gguf_export
from counterpoint.train.export.mxfp4 import write_mxfp4
from counterpoint.train.export.served import serving_of
from counterpoint.train.model.embedded import tiny_folder
from counterpoint.train.model.load import LoadedModel, base_path, load_model
from counterpoint.train.model.pin import base_pin, check_same_base
from counterpoint.train.sampling.vllm_engine import highest_rank
from counterpoint.train.serving.chat_template import chat_template
from counterpoint.train.serving.probes import TOOLS_FILE, Serving, launch_line

Target = Literal["adapter", "bf16", "mxfp4", "gguf"]
LIMITS: dict[Target, float] = {"adapter": 1e-6, "bf16": 1e-2, "mxfp4": 5e-2, "gguf": 1e-2}
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", TEMPLATE_FILE)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. `notes` are for a person: files that the base did not have, and the like. launch: the command
    that serves it in the form that it was trained for, "" for a server without one."""

    folder: Path
    gate: gate.Gate
    notes: tuple[str, ...]
    launch: str = ""


def export(
    checkpoint: Found | str,
    target: Target,
    folder: Path | str,
    *,
    limit: float | None = None,
    converter: str | None = None,
) -> Export:
    """Export a checkpoint (or what `find.find_checkpoint` finds of a name) into `folder`, which must not exist yet.

    limit: the largest KL that passes the gate; None takes `LIMITS`. converter: of llama.cpp, for gguf. ModelError when
    the gate refuses, with its numbers; nothing is then left at `folder`.
    """
    found = find_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    if found.pin is not None:
        check_same_base(found.pin, base_pin(found.base), found.source)
    folder = Path(folder)
    if folder.exists():
        raise ModelError(f"{folder}: exists already: name another folder with --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{folder}: no folder can be made there ({error.strerror}): name another with --out") from None
    if target == "adapter" and found.adapter is None:
        raise ModelError("export: this checkpoint has no adapter, it was trained in full: use --to bf16")
    script = gguf_export.find_converter(converter) if target == "gguf" else None
    if target != "adapter" and found.base.base == "mxfp4":
        # A merge writes into the experts, so they are unpacked.
        found = replace(found, base=found.base.model_copy(update={"base": "bf16"}))
    staging = folder.with_name(f".gate-{folder.name}")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        before, sequences, notes, serving = _stage(found, target, staging)
        gc.collect()
        again = _load_again(found, staging, target)
        result = gate.compare(before, gate.score(again, sequences), LIMITS[target] if limit is None else limit)
        if not result.passed:
            survival = " ".join(note for note in notes if "survives" in note)
            raise ModelError(
                f"{folder}: not written: the export is not the model that was trained: {result.line()} {survival}"
            )
        manifest = {**_manifest(found, target, again, result), "notes": notes}
        fill = _finish if script is None else partial(_finish_gguf, script)

        def write(place: Path) -> None:
            fill(staging, place, manifest)
            serving.write(place)
            _copy_tools(found, place)
            if (template := chat_template(serving.opening)) is not None:
                (place / TEMPLATE_FILE).write_text(template, encoding="utf-8")

        write_folder(folder, write, {"target": target})
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    served = serving.vocabulary == full_fingerprint()  # no server has the embedded model's
    rank = highest_rank(str(folder)) if target == "adapter" else None
    line = launch_line(serving.opening, str(folder), rank, found.base.name) if served else ""
    return Export(folder, result, tuple(notes), line)


def _stage(found: Found, target: Target, staging: Path) -> tuple[gate.Scores, Any, list[str], Serving]:
    """Score the live model, then write the export to the staging folder; the live model is freed after."""
    live = open_checkpoint(found)
    if target == "gguf" and not live.vocabulary_map.is_identity:
        raise ModelError(
            "--to gguf: this model has a vocabulary of its own, which llama.cpp does not know: use --to bf16"
        )
    sequences = gate.fixed_sequences(live)
    before = gate.score(live, sequences)
    serving = serving_of(live, _prompts_of(found), sequences)
    notes: list[str] = []
    write_folder(staging, lambda place: notes.extend(_fill(place, found, target, live)), {})
    return before, sequences, notes, serving


def _fill(place: Path, found: Found, target: Target, live: LoadedModel) -> list[str]:
    base, adapter = found.base, found.adapter
    ours = chat_template(_prompts_of(found)) is not None  # then the base's template is not the trained one
    names = [name for name in TOKENIZER_FILES if not (ours and name == TEMPLATE_FILE)]
    if target == "adapter":
        assert adapter is not None
        shutil.copyfile(adapter / ADAPTER_FILE, place / ADAPTER_FILE)
        config = json.loads((adapter / "adapter_config.json").read_bytes())
        config["base_model_name_or_path"] = base_path(base)
        (place / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return _copy_tokenizer(place, base, live, names)
    side = _side_base(found)
    notes: list[str] = []
    if target == "mxfp4":
        notes = [part.line for part in write_mxfp4(place, live.model, live.stop_rows)]
    else:
        _write_merged(place, live)
    _start_from_base(place, side, live)
    _check_config(place, live, packed=target == "mxfp4")
    return [*notes, *_copy_tokenizer(place, side, live, names)]


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


def _write_merged(place: Path, live: LoadedModel) -> None:
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


def _copy_tokenizer(place: Path, base: ModelSettings, live: LoadedModel, names: Sequence[str]) -> list[str]:
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


def _load_again(found: Found, folder: Path, target: Target) -> LoadedModel:
    if target == "adapter":
        return open_checkpoint(replace(found, adapter=folder))
    return load_model(ModelSettings(name=str(folder), base="mxfp4" if target == "mxfp4" else "bf16"))


def _manifest(found: Found, target: Target, loaded: LoadedModel, result: gate.Gate) -> Mapping[str, Any]:
    settings = _prompts_of(found)
    system = Renderer(loaded.vocabulary, settings).prompt(Conversation(()))[:-2]
    return {
        "made_by": f"counterpoint {version('counterpoint')}",
        "target": target,
        "base": EMBEDDED_MODEL if found.base.name == EMBEDDED_MODEL else base_path(found.base),
        "base_revision": found.base.revision,
        "base_pin": found.pin,
        "system_message": loaded.vocabulary.decode(system),
        "date": settings.date,
        "effort": settings.effort,
        "serving": settings.serving,
        "vocabulary": loaded.vocabulary.fingerprint,
        "gate": result.as_dict(),
    }


def _copy_tools(found: Found, place: Path) -> None:
    """The rewritten tools of the run, which its clients must send."""
    source = Path(found.source).expanduser().resolve()
    for folder in (source, *source.parents[:2]):
        if (folder / TOOLS_FILE).is_file():
            shutil.copyfile(folder / TOOLS_FILE, place / TOOLS_FILE)
            return


def _prompts_of(found: Found) -> OpeningSettings:
    return found.run.data if found.run is not None else RenderSettings()


def _finish(staging: Path, place: Path, manifest: Mapping[str, Any]) -> None:
    for path in sorted(staging.iterdir()):
        if path.name != MARKER:
            shutil.move(path, place / path.name)
    (place / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _finish_gguf(script: Path, staging: Path, place: Path, manifest: Mapping[str, Any]) -> None:
    gguf_export.convert(script, staging, place / gguf_export.GGUF_FILE)
    (place / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def push(folder: Path, repository: str) -> str:
    """Upload an export by huggingface_hub, to a private repository unless it exists; returns its address."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(repository, private=True, exist_ok=True))
        api.upload_folder(repo_id=repository, folder_path=str(folder), ignore_patterns=[MARKER])
    except Exception as error:
        raise ModelError(
            f"{repository}: not pushed ({type(error).__name__}: {error}): the export itself is in {folder}; "
            "log in with `hf auth login`, then push again"
        ) from None
    return address
