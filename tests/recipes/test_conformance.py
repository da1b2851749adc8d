"""`counterpoint conformance` as a user runs it: tables, JSON, a case in detail, files, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = ("single-001", "tool_loop-001", "malformed_completions-001")


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-P", "-m", "counterpoint.recipes.cli", "conformance", *arguments]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, env=environment)
    assert "Traceback" not in done.stderr
    return done


def with_environment(folder: Path, peer: str) -> None:
    """An environment of a peer that is this one."""
    python = folder / "cache" / "counterpoint" / "conformance" / peer / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


@pytest.mark.slow
def test_a_case_is_shown_with_what_differs(tmp_path: Path) -> None:
    done = command(tmp_path, "--reference", "vllm", "openai_harmony", "--case", *SAMPLE)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "counterpoint (vllm), single-001: a thought and an answer" in lines
    assert sum(line.startswith("counterpoint (") for line in lines) == 2 * len(SAMPLE)
    shown = done.stdout.split("counterpoint (vllm), tool_loop-001")[1].split("counterpoint (vllm), malformed")[0]
    assert "prompt under openai_harmony" in shown
    assert "prompt under vllm" not in shown
    assert "functions.get_weather<|channel|>commentary to=assistant" in shown
    assert "functions.get_weather to=assistant<|channel|>commentary" in shown


@pytest.mark.slow
def test_tables_json_files_and_page(tmp_path: Path) -> None:
    with_environment(tmp_path, "openai_harmony")
    peers = ("--peer", "counterpoint", "openai_harmony", "--reference", "vllm")
    done = command(tmp_path, *peers, "--out", "results", "--page", "page.md", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    ours, harmony = [json.loads(line) for line in done.stdout.splitlines()]
    assert (ours["peer"], ours["form"], harmony["peer"]) == ("counterpoint", "vllm", "openai_harmony")
    assert ours["references"]["vllm"]["strict"] == ours["references"]["vllm"]["exact"] > 440
    assert ours["completions"] == {"right": 143, "of": 143}
    assert harmony["completions"]["of"] == 143
    assert harmony["completions"]["right"] < 143
    (folder,) = (tmp_path / "results").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["counterpoint-vllm.json", "openai_harmony.json"]
    stored = json.loads((folder / "counterpoint-vllm.json").read_text("utf-8"))
    assert len(stored["cases"]) == 695
    assert stored["command"] == "counterpoint conformance " + " ".join([*peers, "--json"])
    page = (tmp_path / "page.md").read_text("utf-8")
    assert "| counterpoint (vllm) |" in page
    assert "openai-harmony 0.0.8" in page
    assert "| accepts: structure |" in page
    assert "`--case malformed_completions-" in page
    again = command(tmp_path, "--reference", "vllm", "--results", str(folder), "--page", "again.md")
    assert again.returncode == 0
    assert (tmp_path / "again.md").read_text("utf-8") == page
    remade = command(tmp_path, "--remake", "openai_harmony")
    assert remade.returncode == 0
    assert "0 prompts changed" in remade.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peer", "tlr"], "--peer tlr: did you mean trl?"),
        (["--peer", "nobody"], "--peer nobody: known are counterpoint, "),
        (["--reference", "vlm"], "--reference vlm: did you mean vllm?"),
        (["--case", "single-0001"], "--case single-0001: did you mean single-001?"),
        (["--remake", "trl"], "--remake trl: known are vllm, "),
    ],
)
def test_an_unknown_name_is_told_in_a_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = command(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_a_folder_without_results_is_told(tmp_path: Path) -> None:
    done = command(tmp_path, "--results", str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"--results {tmp_path}: holds no results of this suite")


def test_a_peer_without_an_environment_is_told_what_to_do(tmp_path: Path) -> None:
    done = command(tmp_path, "--peer", "trl", "--case", "single-001")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("trl: no environment in ")
    assert done.stderr.endswith(": run again with --install\n")


@pytest.mark.slow
def test_a_peer_that_dies_is_told_with_its_last_line(tmp_path: Path) -> None:
    with_environment(tmp_path, "tinker_cookbook")
    done = command(tmp_path, "--peer", "tinker_cookbook", "--case", "single-001")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "tinker_cookbook: its adapter ended with 1: ModuleNotFoundError: No module named 'tinker_cookbook'\n"
    )
