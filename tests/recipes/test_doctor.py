"""counterpoint doctor: a sound machine passes, and each injected fault is told with what to do, by exit code 1."""

from __future__ import annotations

import json

import pytest
import torch

from counterpoint.configs.errors import ModelError
from counterpoint.recipes import cli
from counterpoint.recipes.commands import doctor
from counterpoint.train import parity


def failures(capsys, *arguments: str) -> tuple[int, list[str]]:
    """(exit code, failed lines), leaving out that the embedded weights are not made yet in a fresh checkout."""
    code = cli.main(["doctor", "--json", *arguments])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    failed = [f for f in found if f["status"] == "FAIL"]
    assert code == (1 if failed else 0)
    assert all(f["fix"] for f in failed)
    assert len(found) > 10
    return code, [f"{f['section']}: {f['what']}" for f in failed if not f["what"].startswith("embedded model")]


def test_a_sound_machine_passes(capsys):
    _, failed = failures(capsys, "--device", "cpu")
    assert failed == []


def test_what_is_printed(capsys):
    code = cli.main(["doctor"])
    out = capsys.readouterr().out
    for line in ("machine\n", "versions\n", "vocabulary\n", "  ok    sliding attention: error", "lean path on cpu"):
        assert line in out
    assert ("checks failed" in out) == (code == 1)


def test_a_window_off_by_one_is_found(capsys, monkeypatch):
    plan = parity.AttentionPlan
    monkeypatch.setattr(parity, "AttentionPlan", lambda p, e, window: plan(p, e, window and window + 1))
    code, failed = failures(capsys)
    assert code == 1
    assert {line.split(":")[1].strip() for line in failed} == {"sliding attention", "tree rows, sliding"}


def test_forgotten_sinks_are_found(capsys, monkeypatch):
    real = parity.lean_attention_forward

    def without(*args, s_aux, **kwargs):
        return real(*args, s_aux=torch.full_like(s_aux, -1e4), **kwargs)

    monkeypatch.setattr(parity, "lean_attention_forward", without)
    _, failed = failures(capsys)
    assert any("attention with sinks" in line for line in failed)


def test_a_part_that_raises_is_told(capsys, monkeypatch):
    def broken(*args, lean, **kwargs):
        if lean:
            raise RuntimeError("no such kernel\nand more")
        return parity_nll(*args, lean=lean, **kwargs)

    parity_nll = parity.weighted_nll
    monkeypatch.setattr(parity, "weighted_nll", broken)
    _, failed = failures(capsys)
    assert len(failed) == 2
    assert "loss raised RuntimeError (no such kernel)" in failed[0]


@pytest.mark.parametrize("found", ["5.25.0", None])
def test_versions_outside_the_range_stop_before_the_paths(capsys, monkeypatch, found):
    real = doctor.metadata.version

    def version(name):
        if name == "transformers":
            if found is None:
                raise doctor.metadata.PackageNotFoundError(name)
            return found
        return real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    code, failed = failures(capsys)
    assert code == 1
    assert len(failed) == 1
    assert failed[0].startswith("versions: transformers")


def test_no_cuda_although_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, failed = failures(capsys, "--device", "cuda")
    assert failed == ["devices: no CUDA device"]


def test_a_broken_vocabulary_is_told(capsys, monkeypatch):
    from counterpoint.data.harmony import vocabulary

    def broken():
        raise ModelError("hash is wrong")

    monkeypatch.setattr(vocabulary, "load_vocabulary", broken)
    _, failed = failures(capsys)
    assert failed == ["vocabulary: cannot be loaded (hash is wrong)"]
