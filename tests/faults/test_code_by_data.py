"""Code runs only where the command line names it, or a run file given there: not from a row, a prompt or a run
folder."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.dump import to_yaml
from counterpoint.configs.load import load_run
from counterpoint.configs.user_code import resume_command
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.scoring.scorers import Reference, Scorers

# Where it is imported, and where it is called.
EVIL = "import os\nopen(os.environ.get('PWNED', 'pwned'), 'a').write('imported')\ndef f(*a, **k):\n    return 1.0\n"
GRPO = """
recipe: grpo
model: {name: tiny, init: random}
data: {train: {type: file, path: prompts.jsonl}}
rewards: [{type: answer}]
rollout: {completion_tokens: 4, action_tokens: 4}
grpo: {group: 2}
train: {steps: 2, batch_rows: 2, device: cpu, threads: 1, checkpoint_every: 1}
eval: {prompts: prompts.jsonl, efforts: low, max_new_tokens: 2, at_start: false, at_end: false}
tracking: {wandb: "off"}
"""
DISTILL = """
recipe: distill
model: {name: tiny, init: random}
data: {train: prompts.jsonl}
distill: {samples: 1, max_new_tokens: 2}
device: cpu
"""


@pytest.fixture
def pwned(place: Any) -> Path:
    (place.folder / "evil.py").write_text(EVIL)
    (place.folder / "grpo.yaml").write_text(GRPO)
    (place.folder / "distill.yaml").write_text(DISTILL)
    return place.folder / "pwned"


@pytest.mark.parametrize("code", ["evil.py:f", "evil:f", "os:system", "counterpoint.data.user_code.loader:resolve"])
@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "tiny", "eval.prompts=prompts.jsonl", "eval.max_new_tokens=2", "device=cpu"),
        ("train", "my.yaml"),
        ("train", "grpo.yaml"),
        ("train", "distill.yaml"),
    ],
    ids=" ".join,
)
def test_a_row_names_code(place: Any, pwned: Path, command: tuple[str, ...], code: str) -> None:
    said = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]
    rows = [{"messages": said, "answer": "2", "scorer": code}]
    (place.folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    told = place.error(*command, PWNED=str(pwned), PYTHONPATH=str(place.folder))
    assert f"prompts.jsonl:1: scorer: a row names a comparison of the package (`{code}` is none), never code" in told
    assert not pwned.exists()


def test_a_follow_up_names_code(place: Any, pwned: Path) -> None:
    turns = {"prompt": "1?", "answer": 1, "follow_ups": [{"content": "2?", "answer": 2, "scorer": "evil.py:f"}]}
    (place.folder / "prompts.jsonl").write_text(json.dumps(turns) + "\n")
    told = place.error("train", "grpo.yaml", PWNED=str(pwned))
    assert "prompts.jsonl:1: follow_ups[0]: scorer: a row names a comparison" in told
    assert not pwned.exists()


def test_a_run_folder_names_prompts_that_name_code(finished: Any, pwned: Path) -> None:
    run = finished.run
    (run / "helper.py").write_text(EVIL)
    named = f"{run.relative_to(finished.folder)}/helper.py:f"
    prompt = {"messages": [{"role": "user", "content": "hi"}], "answer": "2", "scorer": named}
    (run / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("prompts: prompts.jsonl", f"prompts: {run}/prompts.jsonl"))
    told = finished.error("evaluate", str(run), "eval.max_new_tokens=2", "device=cpu", PWNED=str(pwned))
    assert "scorer: a row names a comparison of the package" in told
    assert not pwned.exists()


NAMED = {
    "rewards.0.function": ("grpo.yaml", "rewards=[{type: function, function: 'evil.py:f'}]"),
    "tools.functions.0": ("grpo.yaml", "tools.functions=evil.py:f"),
    "tools.mcp.0": ("grpo.yaml", f'tools.mcp="{sys.executable} evil.py"'),
    "data.train.0.format": ("my.yaml", "data.train={path: rows.jsonl, format: 'evil.py:f'}"),
    "distill.scorer": ("distill.yaml", "distill.scorer=evil.py:f"),
}


@pytest.mark.parametrize("setting", NAMED)
@pytest.mark.slow
def test_a_run_folder_names_code(place: Any, pwned: Path, setting: str) -> None:
    """Its own config.yaml, as `--resume RUN` reads it: refused with what to add, and what it says to add is enough."""
    config, given = NAMED[setting]
    run = place.folder / "runs" / "foreign-20260101-000000"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(load_run(place.folder / config, [given])))
    told = place.error("train", "--resume", str(run), code=2, PWNED=str(pwned))
    assert f"config.yaml: `{setting}` names code to run (" in told
    assert "which a run folder may not do by itself: give your run file as CONFIG, or add" in told
    assert not pwned.exists()
    added = re.search(r"or add (.*)$", told)
    assert added is not None
    again = place.forks.command(
        "train", "--resume", str(run), *shlex.split(added[1]), folder=place.folder, PWNED=str(pwned)
    )
    assert "names code to run" not in again.stderr
    if setting != "distill.scorer":  # which is called for samples that keep every rule, of which there are none
        assert pwned.read_text().startswith("imported"), again.stdout + again.stderr


def test_a_run_file_given_there_may_name_code_and_the_printed_command_names_it_again(place: Any, pwned: Path) -> None:
    """A run that a threshold ends prints how it goes on; typed as it is, it does."""
    given = "rewards=[{type: function, function: 'evil.py:f'}]"
    told = place("train", "grpo.yaml", given, "train.steps=1", PWNED=str(pwned))
    assert pwned.read_text().startswith("imported")
    command = resume_command(str(place.run), load_run(place.folder / "grpo.yaml", [given]))
    assert command == f"counterpoint train --resume {place.run} rewards.0.function=evil.py:f"
    told = place(*shlex.split(command)[1:], "train.steps=1", PWNED=str(pwned))
    assert "going on from step 1" in told


EVALUATED = {
    "number_sorting": "[1]", "string_insertion": "", "n_queens": "", "countdown": "", "puzzle24": "",
    "polynomial_multiplication": "", "bitwise_arithmetic": "0x1", "simple_integration": "x**2", "spiral_matrix": "",
    "binary_matrix": "", "intermediate_integration": "",
}  # fmt: skip
"""Generators of reasoning-gym whose scorer evaluates the answer of the model (here code, where none is written) or of
the row."""


def test_neither_an_answer_nor_a_row_is_evaluated_as_code(tmp_path: Path) -> None:
    code = f"__import__('os').system('touch {tmp_path}/pwned')"
    with Scorers(60) as scorers:
        for generator, answer in EVALUATED.items():
            metadata: dict[str, Any] = {
                "source_dataset": generator,
                "problem": code,
                "integrand": code,
                "variable": "x",
            }
            metadata |= {"target": 3, "numbers": [1, 2], "valid_answers": ["x"], "puzzle": []}
            reference = Reference(entry={"question": "?", "answer": code, "metadata": metadata})
            ids = load_vocabulary().encode_with_specials(f"<|channel|>final<|message|>{answer or code}<|return|>")
            scorers.score("reasoning_gym", parse_completion(ids), reference)
            scorers.score("math", parse_completion(ids), Reference(answer=code))
            assert not (tmp_path / "pwned").exists(), generator
