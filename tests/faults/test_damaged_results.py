"""A bit of a result, a checkpoint or a marker flips: asked wherever it is read, and said."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faulty import Place, flip, losses, weights
from safetensors.torch import save_file

from counterpoint.train.model.tiny import random_tiny

ADAPTER = "adapter_model.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped bit": (lambda r: flip(r / ADAPTER), f"{ADAPTER} is damaged (its sha256 differs)"),
    "cut": (lambda r: (r / ADAPTER).write_bytes((r / ADAPTER).read_bytes()[:-100]), f"{ADAPTER} has "),
    "junk": (lambda r: (r / ADAPTER).write_bytes(b"junk" * 100), f"{ADAPTER} has 400 bytes instead of"),
    "gone": (lambda r: (r / ADAPTER).rename(r / "elsewhere"), f"{ADAPTER} is missing"),
    "settings": (lambda r: flip(r / "adapter_config.json"), "adapter_config.json is damaged"),
    "marker": (lambda r: flip(r / "complete.json"), "complete.json "),
    "no marker": (lambda r: (r / "complete.json").unlink(), "adapter: not finished: go on with `counterpoint train"),
}
READERS = {
    "evaluate": ("evaluate", "{}", "eval.max_new_tokens=2", "device=cpu"),
    "sample": ("sample", "{}", "hi"),
    "export": ("export", "{}", "--out", "out"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_command_takes_a_damaged_result(finished: Place, damage: str, reader: str) -> None:
    inflict, told = DAMAGES[damage]
    inflict(finished.run / "adapter")
    error = finished.error(*(part.format(finished.run) for part in READERS[reader]))
    assert told in error or "holds neither a run, an adapter nor a model" in error
    assert not (finished.folder / "out").exists()


def test_an_undamaged_one_is_taken(finished: Place) -> None:
    assert "gate passed" in finished("export", str(finished.run), "--out", "out")


@pytest.mark.slow
def test_a_copy_of_an_adapter_is_asked_too(finished: Place) -> None:
    """Away from its run, and as an export."""
    finished("export", str(finished.run), "--out", "out")
    flip(finished.folder / "out" / ADAPTER)
    assert "is damaged" in finished.error("evaluate", "out", "device=cpu")
    shutil.copytree(finished.run / "adapter", finished.folder / "copy")
    flip(finished.folder / "copy" / ADAPTER)
    assert "is damaged" in finished.error("sample", "copy", "hi")


@pytest.mark.slow
def test_merged_weights_are_asked_where_a_run_begins_with_them(finished: Place) -> None:
    finished("export", str(finished.run), "--to", "bf16", "--out", "merged")
    flip(finished.folder / "merged" / "model.safetensors")
    error = finished.error("train", "my.yaml", "model.name=merged")
    assert error.startswith("merged: model.safetensors is damaged (its sha256 differs): take another copy")
    assert "is damaged" in finished.error("evaluate", "merged", "device=cpu")


def test_weights_without_a_marker_are_one_line(place: Place) -> None:
    """Of other programs: junk, and pickles that would run code."""
    plain = place.folder / "plain"
    plain.mkdir()
    (plain / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 2}')
    (plain / ADAPTER).write_bytes(b"junk" * 100)
    assert "no adapter of this model" in place.error("sample", "plain", "hi")
    (plain / ADAPTER).rename(plain / "adapter_model.bin")
    assert "holds neither a run, an adapter nor a model" in place.error("sample", "plain", "hi")
    packed = place.folder / "packed"
    random_tiny(seed=1).model.config.save_pretrained(packed)
    (packed / "model.safetensors").write_bytes(b"junk" * 100)
    for base in ("bf16", "mxfp4"):
        (place.folder / "base.yaml").write_text(
            f"recipe: evaluate\nmodel: {{name: packed, base: {base}}}\ndevice: cpu\n"
        )
        error = place.error("evaluate", "--config", "base.yaml", "--out", f"evaluation-{base}")
        assert "`packed` cannot be loaded" in error
    save_file({}, packed / "model.safetensors")
    assert "packed" in place.error("sample", "packed", "hi")


CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "optimizer": (lambda c: flip(c / "optimizer.pt"), "optimizer.pt is damaged"),
    "adapter": (lambda c: flip(c / ADAPTER), f"{ADAPTER} is damaged"),
    "marker": (
        lambda c: (c / "complete.json").write_text((c / "complete.json").read_text().replace('"tiny"', '"tiny0"')),
        "complete.json is damaged (its own checksum differs)",
    ),
    "unreadable marker": (lambda c: (c / "complete.json").write_bytes(b"\xff{"), "complete.json cannot be read"),
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_damaged_checkpoint_is_skipped_and_said_on_the_terminal(finished: Place, whole: Place, damage: str) -> None:
    shutil.rmtree(finished.run / "adapter")
    newest = finished.run / "checkpoints" / "step-000006"
    inflict, told = CHECKPOINTS[damage]
    inflict(newest)
    said = finished("train", "my.yaml", "--resume")
    assert f"warning: skipped step-000006: {told}" in said
    assert "going on from step 4" in said
    assert (losses(finished.run), weights(finished.run)) == (losses(whole.run), weights(whole.run))


def test_with_every_checkpoint_damaged_only_overwrite_starts_over(finished: Place, whole: Place) -> None:
    for checkpoint in (finished.run / "checkpoints").iterdir():
        flip(checkpoint / "optimizer.pt")
    before = {path: path.read_bytes() for path in finished.run.rglob("*.safetensors")}
    error = finished.error("train", "my.yaml", "--resume")
    assert re.search(
        r"no checkpoint is usable \(step-000006: optimizer.pt is damaged .*step-000004: .*--overwrite", error
    )
    assert {path: path.read_bytes() for path in finished.run.rglob("*.safetensors")} == before
    said = finished("train", "my.yaml", "--resume", "--overwrite")
    assert "warning: skipped step-000006" in said
    assert (losses(finished.run), weights(finished.run)) == (losses(whole.run), weights(whole.run))
