"""Export of a trained checkpoint as an adapter or as merged weights, checked against the model that was trained.

An export folder is complete or absent (`save.write_folder`). `manifest.json` records what it was made from, with which
settings, and what the gate measured. The gate loads the export again from disk; a GGUF file is made from bf16 weights
that passed it. What is written in MXFP4 lies beside the folder until then, and an export that was killed goes on there.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from counterpoint.configs.data_section import OpeningSettings, RenderSettings
from counterpoint.configs.errors import ModelError
from counterpoint.configs.model_section import EMBEDDED_MODEL, ModelSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import full_fingerprint
from counterpoint.train.adapters.quantization import Quantization
from counterpoint.train.checkpoints.find import Found, find_checkpoint, open_checkpoint
from counterpoint.train.checkpoints.save import MARKER, finish_folder, write_folder
from counterpoint.train.checkpoints.weights import ADAPTER_FILE
from counterpoint.train.export import files, gate
from counterpoint.train.export import gguf as gguf_export
from counterpoint.train.export.gate import Target
from counterpoint.train.export.layer_files import LayerFiles
from counterpoint.train.export.mxfp4 import How, Rounding, write_mxfp4
from counterpoint.train.export.rows import RunRows, example_rows, run_rows
from counterpoint.train.export.served import serving_of
from counterpoint.train.export.tasks import PROMPTS, Tasks, run_tasks
from counterpoint.train.model.load import LoadedModel, base_path, load_config, load_model
from counterpoint.train.model.marker import file_hash, read_marker, why_broken
from counterpoint.train.model.pin import base_pin, check_same_base
from counterpoint.train.sampling.vllm_engine import highest_rank
from counterpoint.train.serving.chat_template import chat_template
from counterpoint.train.serving.probes import TOOLS_FILE, Serving, launch_line

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Export:
    """What was written. `notes` are for a person: files that the base did not have, and the like. launch: the command
    that serves it in the form that it was trained for, "" for a server without one."""

    folder: Path
    gate: gate.Gate
    notes: tuple[str, ...]
    launch: str = ""


@dataclass(frozen=True)
class Options:
    """limit: the largest R that passes (gate.py); None takes the usual ones. converter: of llama.cpp, for gguf.
    rounding, seed: of mxfp4; None takes calibrated where the run's rows are at hand, else dithered. prompts: of the
    run's evaluation that live model and export answer. device: where both compute. say: told how far it is."""

    limit: float | None = None
    converter: str | None = None
    rounding: Rounding | None = None
    seed: int = 0
    prompts: int = PROMPTS
    device: torch.device | str = "cpu"
    say: Say = lambda _: None


@dataclass
class _Staged:
    """What is known once the live model has been scored and the export lies in the staging folder."""

    live: gate.Live
    rows: RunRows
    tasks: Tasks
    serving: Serving
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def export(
    checkpoint: Found | str, target: Target, folder: Path | str, options: Options | None = None, **settings: Any
) -> Export:
    """Export a checkpoint (or what `find.find_checkpoint` finds of a name) into `folder`, which must not exist yet.

    options, or its fields as arguments. ModelError when the gate refuses, with its numbers; nothing is then left at
    `folder`.
    """
    options = replace(options or Options(), **settings)
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
    if options.rounding is not None and target != "mxfp4":
        raise ModelError(f"--rounding belongs to --to mxfp4, and {target} is written: leave it out")
    script = gguf_export.find_converter(options.converter) if target == "gguf" else None
    found = replace(found, base=_base_for(found.base, target))
    staging = folder.with_name(f".gate-{folder.name}")
    staged = _stage(found, target, staging, options)
    try:
        gc.collect()
        options.say("comparing with what was written")
        # Loading compares every file with the hash that its marker has.
        again = _load_again(found, staging, target, options.device)
        scores = gate.score(again, staged.rows.held_out)
        result = gate.compare(staged.live, scores, staged.tasks.answered(again), target, options.limit)
        if not result.passed:
            raise ModelError(_refusal(folder, target, result, staged))
        manifest = {**_manifest(found, target, again, result), **staged.facts, "notes": staged.notes}
        fill = _finish if script is None else partial(_finish_gguf, script)
        hashes = read_marker(staging)["files"]

        def write(place: Path) -> None:
            fill(staging, place, manifest)
            staged.serving.write(place)
            _copy_tools(found, place)
            if (template := chat_template(staged.serving.opening)) is not None:
                (place / files.TEMPLATE_FILE).write_text(template, encoding="utf-8")

        write_folder(folder, write, {"target": target})
        _check_moved(folder, hashes)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    served = staged.serving.vocabulary == full_fingerprint()  # no server has the embedded model's
    rank = highest_rank(str(folder)) if target == "adapter" else None
    line = launch_line(staged.serving.opening, str(folder), rank, found.base.name) if served else ""
    notes = [*staged.notes]
    if result.verdict == "warned":
        notes.insert(0, f"it is not quite the model that was trained: {_advice(target, staged)}")
    return Export(folder, result, tuple(notes), line)


def _base_for(base: ModelSettings, target: Target) -> ModelSettings:
    """How the base is held: a merge into bf16 writes into the experts, and so they are unpacked; one into MXFP4 reads
    them packed where they are."""
    if target == "adapter" or base.init == "random":
        return base
    packed = target == "mxfp4" and base.name != EMBEDDED_MODEL and _is_packed(base)
    return base.model_copy(update={"base": "mxfp4" if packed else "bf16"})


def _is_packed(base: ModelSettings) -> bool:
    method = getattr(load_config(base)[0], "quantization_config", None) or {}
    return base.base == "mxfp4" or method.get("quant_method") == "mxfp4"


def _stage(found: Found, target: Target, staging: Path, options: Options) -> _Staged:
    """Score the live model, then write the export to the staging folder; the live model is freed after."""
    live = open_checkpoint(found, options.device)
    if target == "gguf" and not live.vocabulary_map.is_identity:
        raise ModelError(
            "--to gguf: this model has a vocabulary of its own, which llama.cpp does not know: use --to bf16"
        )
    rows = run_rows(found.run, live.vocabulary)
    how = _how(found, rows, options) if target == "mxfp4" else None
    tasks, why = run_tasks(found.run, options.prompts)
    options.say(f"scoring the trained model on {len(rows.held_out)} rows ({rows.source})")
    before = gate.score_live(live, rows.held_out, tasks.answered(live))
    serving = serving_of(live, _prompts_of(found), example_rows(live.vocabulary))
    staged = _Staged(before, rows, tasks, serving)
    if rows.missing or why:
        staged.notes.append(f"judged by examples of the package, not by what it was trained for: {rows.missing or why}")
    names = files.tokenizer_names(chat_template(_prompts_of(found)) is not None)
    if how is not None:
        _stage_mxfp4(found, live, how, staging, staged, names, options.say)
        return staged
    shutil.rmtree(staging, ignore_errors=True)

    def fill(place: Path) -> None:
        if target == "adapter":
            staged.notes.extend(files.write_adapter(place, found, live, names))
        else:
            files.write_merged(place, live)
            staged.notes.extend(files.complete_merged(place, found, live, False, names))

    write_folder(staging, fill, {})
    return staged


def _how(found: Found, rows: RunRows, options: Options) -> How:
    """The rounding, with a reason where another one was asked for."""
    trained = Quantization.of(found.adapter)
    if trained is not None:
        if options.rounding not in (None, "dithered"):
            raise ModelError(
                f"--rounding {options.rounding}: {found.source} was trained with a dithering of its own, which exports "
                "keep: leave --rounding out"
            )
        return How("dithered", trained.seed)
    if options.rounding == "calibrated" and not rows.training:
        raise ModelError(
            f"--rounding calibrated needs the run's rows ({rows.missing}): restore them, or use --rounding dithered"
        )
    rounding = options.rounding or ("calibrated" if rows.training else "dithered")
    return How(rounding, options.seed, rows.training if rounding == "calibrated" else ())


def _stage_mxfp4(
    found: Found, live: LoadedModel, how: How, staging: Path, staged: _Staged, names: list[str], say: Say
) -> None:
    identity = _identity(found, how)
    unfinished = staging.with_name(f".unfinished{staging.name}")
    if not _is_staged(staging, identity):
        shutil.rmtree(staging, ignore_errors=True)
        parts = LayerFiles(unfinished, identity, live.model.config.num_hidden_layers + 1)
        measured = [part.as_dict() | {"line": part.line} for part in write_mxfp4(parts, live, how, say)]
        notes = files.complete_merged(unfinished, found, live, True, names)
        parts.finish()
        finish_folder(unfinished, staging, {"export": identity, "measured": measured, "notes": notes})
        parts.check(staging)
    marker = read_marker(staging)
    staged.notes += [part["line"] for part in marker["measured"]] + marker["notes"]
    tokens = sum(map(len, how.rows))
    staged.notes.append(
        f"rounding {how.rounding}, seed {how.seed}" + (f", on {len(how.rows)} rows of {tokens} tokens" * bool(tokens))
    )
    staged.facts = {
        "quantization": {"format": "mxfp4", "rounding": how.rounding, "seed": how.seed},
        "calibration": {"rows": len(how.rows), "tokens": tokens},
        "experts": [{key: value for key, value in part.items() if key != "line"} for part in marker["measured"]],
    }


def _identity(found: Found, how: How) -> dict[str, Any]:
    """What the parts of a killed export must have been made from for the next one to go on behind them."""
    digest = hashlib.sha256()
    for ids in how.rows:
        digest.update(ids.tobytes() + b"\n")
    own = found.adapter / ADAPTER_FILE if found.adapter is not None else None
    place = found.shards or Path(found.base.name).expanduser()
    files_of = sorted(place.rglob("*.safetensors")) if place.is_dir() else []
    return {
        "by": version("counterpoint"),
        "base": [base_path(found.base), found.base.revision, found.pin],
        "weights": file_hash(own) if own is not None else [[f.name, *f.stat()[6:9:2]] for f in files_of],
        "rounding": [how.rounding, how.seed, digest.hexdigest()],
    }


def _is_staged(staging: Path, identity: Mapping[str, Any]) -> bool:
    """Whether an export that was killed later on has written this folder, and it is whole."""
    if not (staging / MARKER).is_file() or why_broken(staging) is not None:
        return False
    return read_marker(staging).get("export") == json.loads(json.dumps(identity))


def _refusal(folder: Path, target: Target, result: gate.Gate, staged: _Staged) -> str:
    left = " ".join(note for note in staged.notes if "left" in note)
    return (
        f"{folder}: not written: the export is not the model that was trained: {result.line()} {left}: "
        f"{_advice(target, staged)}, or --limit to take it as it is"
    )


def _advice(target: Target, staged: _Staged) -> str:
    rounding = staged.facts.get("quantization", {}).get("rounding")
    if target != "mxfp4":
        return "export the adapter"
    return {
        "nearest": "use --rounding calibrated",
        "dithered": "use --rounding calibrated, from the run folder with its rows at hand",
    }.get(rounding, "serve the adapter beside its base, or train with train.quantization_aware")


def _check_moved(folder: Path, hashes: Mapping[str, Any]) -> None:
    """ModelError where a file of the finished folder is not the one that was compared."""
    now = read_marker(folder)["files"]
    wrong = [name for name, each in hashes.items() if name in now and now[name]["sha256"] != each["sha256"]]
    if wrong:
        shutil.rmtree(folder)
        raise ModelError(f"{folder}: {wrong[0]} is not what was compared: check the disk, export again")


def _load_again(found: Found, folder: Path, target: Target, device: torch.device | str) -> LoadedModel:
    if target == "adapter":
        return open_checkpoint(replace(found, adapter=folder), device)
    return load_model(ModelSettings(name=str(folder), base="mxfp4" if target == "mxfp4" else "bf16"), device)


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
