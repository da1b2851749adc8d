"""A task of one's own through the real command line: trained in, measured by the hook, evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.recipes.cli import main

TASK = '''
from counterpoint import Environment

class Odd(Environment):
    """Paid by its tokens, over two turns: something that a random model can learn."""

    def setup(self, settings):
        self.shared = settings["bonus"]

    def reset(self, row, ctx):
        self.row = row
        return f"Say {row['word']}."

    def respond(self, final, ctx):
        return "More."

    def reward(self, rollout, ctx):
        if self.row.get("broken") and ctx.sample in self.row["broken"] and ctx.training:
            raise ValueError("a broken world")
        ids = [i for turn in rollout.turns for i in turn.completion.ids]
        return {"odd": sum(i % 2 for i in ids) / len(ids), "bonus": self.shared, "seed": ctx.seed % 997}
'''
RUN = """
recipe: grpo
extends: grpo/tiny_sums
model: {init: random}
output: .
data: {train: {type: file, path: rows.jsonl}, shuffle: false}
rollout:
  action_tokens: 10
  completion_tokens: 10
  environment: {class: "task.py:Odd", settings: {bonus: 2}, weights: {bonus: 0.5, seed: 0}, turns: 2, max_invalid: 0.2}
rewards: []
grpo: {group: 4}
train: {steps: 2, batch_rows: 8}
eval:
  at_start: false
  max_new_tokens: 10
  samples: 1
  tasks:
    - {type: environment, class: "task.py:Odd", path: rows.jsonl, settings: {bonus: 2}, efforts: [low], name: odd}
tracking: {wandb: "off"}
"""


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    write([{"word": "one"}, {"word": "two", "broken": [1]}])


def write(rows: list[dict[str, Any]]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_in_an_environment_and_its_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "run.yaml"]) == 0
    out = capsys.readouterr().out
    assert "warning: step 1: invalid rollouts, left out of their groups: 1 of 8, the first: reward: ValueError" in out
    assert "raise ValueError" in out, "the first traceback"
    assert "reward " in next(line for line in out.splitlines() if line.startswith("step 2/2"))
    (run,) = Path().glob("run-*")
    rows = lines(run / "rollouts.jsonl")
    assert len(rows) == 16
    invalid = [row for row in rows if "invalid" in row]
    assert [row["id"] for row in invalid] == ["rows.jsonl:2"] * 2
    valid = [row for row in rows if row["step"] == 0 and "invalid" not in row]
    assert {row["rewards"]["environment/bonus"] for row in valid} == {2.0}
    worlds = {(row["id"], row["rewards"]["environment/seed"]) for row in valid}
    assert len(worlds) == 2, "one world a group"
    first = next(line for line in lines(run / "metrics.jsonl") if line.get("step") == 1 and "loss" in line)
    paid = [row["rewards"]["environment/odd"] + 0.5 * 2 for row in valid]
    assert first["reward"] == pytest.approx(sum(paid) / 7), "the mean of what is valid"
    assert first["rewards/environment/odd/mean"] == pytest.approx(sum(paid) / 7 - 1)
    assert (first["invalid"], first["grad_norm"] > 0) == (1 / 8, True)

    measured = lines(run / "eval" / "metrics.jsonl")[-1]
    samples = [line for line in lines(run / "eval" / "step-000002-tuned.jsonl") if line["task"] == "odd"]
    assert measured["odd/rewards/odd"] == pytest.approx(sum(line["rewards"]["odd"] for line in samples) / 2)

    suite = "recipe: evaluate\neval:\n  base: false\n  max_new_tokens: 10\n  tasks:\n    - " + (
        '{type: environment, class: "task.py:Odd", path: rows.jsonl, settings: {bonus: 2}, efforts: [low], name: odd}'
    )
    Path("suite.yaml").write_text(suite)
    assert main(["evaluate", str(run), "--config", "suite.yaml", "--out", "out"]) == 0
    assert [row["rewards"] for row in lines(Path("out/tuned/samples.jsonl"))] == [line["rewards"] for line in samples]


@pytest.mark.slow
def test_rows_name_their_environment(capsys: pytest.CaptureFixture[str]) -> None:
    """Two classes in one run: each row is in its own, is paid by it, and counted by it; a row of neither is left out."""
    named = [("one", "odd"), ("two", "more"), ("three", "more"), ("four", "other"), ("five", None)]
    rows: list[dict[str, Any]] = [{"word": word, "environment": name} for word, name in named]
    write([{key: value for key, value in row.items() if value is not None} for row in rows])
    odd = '{class: "task.py:Odd", settings: {bonus: 2}, weights: {seed: 0}, turns: 2}'
    more = '{class: "task.py:Odd", settings: {bonus: 7}, weights: {odd: 0, seed: 0}, turns: 1}'
    task = 'type: environment, class: "task.py:Odd", path: rows.jsonl, efforts: [low]'
    changes = [
        "rollout.environment=null", f"rollout.environments={{odd: {odd}, more: {more}}}", "train.batch_rows=12",
        "train.steps=1", f"eval.tasks=[{{{task}, settings: {{bonus: 7}}, environment: more, name: of_more, turns: 1}}]",
    ]  # fmt: skip
    assert main(["train", "run.yaml", *changes]) == 0
    out = capsys.readouterr().out
    assert (
        "data.train: 2 of 5 rows name no environment of rollout.environments: left out, the first: rows.jsonl:4: "
        "environment: 'other' is none of the run's: take one of odd, more"
    ) in out
    (run,) = Path().glob("run-*")
    bad = [(row["source"], row["kind"]) for row in lines(run / "bad_rows.jsonl")]
    assert bad == [("rows.jsonl:4", "unknown_environment"), ("rows.jsonl:5", "no_environment")]
    played = lines(run / "rollouts.jsonl")
    ids = {"odd": {"rows.jsonl:1"}, "more": {"rows.jsonl:2", "rows.jsonl:3"}}
    assert {name: {row["id"] for row in played if row["environment"] == name} for name in ids} == ids
    assert {(row["environment"], row["rewards"]["environment/bonus"]) for row in played} == {
        ("odd", 2.0),
        ("more", 7.0),
    }
    measured = next(line for line in lines(run / "metrics.jsonl") if "reward" in line)
    paid = [row["rewards"]["environment/odd"] for row in played if row["environment"] == "odd"]
    assert measured["environments/odd/reward"] == pytest.approx(sum(paid) / 4 + 2)
    assert measured["reward"] == pytest.approx((sum(paid) + 2 * 4 + 7 * 8) / 12)
    assert (measured["environments/more/reward"], measured["environments/more/rewards/bonus"]) == (7, 7)
    turns = [row["turn"] + 1 for row in played if row["environment"] == "odd"]
    assert (measured["environments/odd/turns"], measured["environments/more/invalid"]) == (sum(turns) / 4, 0)
    samples = [line for line in lines(run / "eval" / "step-000001-tuned.jsonl") if line["task"] == "of_more"]
    assert [(line["id"], line["rewards"]["bonus"]) for line in samples] == [("rows.jsonl:2", 7), ("rows.jsonl:3", 7)]

    assert main(["train", "run.yaml", *changes, f"rollout.environments={{x: {odd}, y: {odd}}}", "name=b"]) == 1
    assert "data.train: no row names an environment of rollout.environments; the first: " in capsys.readouterr().err
    assert main(["train", "run.yaml", f"rollout.environments={{odd: {odd}}}", "name=c"]) == 2
    assert "`environment` and `environments` exclude each other" in capsys.readouterr().err
    assert (
        main(["train", "run.yaml", "rollout.environment=null", f"rollout.environments={{a/b: {odd}}}", "name=d"]) == 2
    )
    assert "a name without `/`" in capsys.readouterr().err


def test_too_many_invalid_rollouts_and_mistakes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    write([{"word": "one"}, {"word": "two", "broken": [0, 1]}])
    assert main(["train", "run.yaml", "eval.tasks=[]"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("step 1: 2 of 8 rollouts are invalid, more than rollout.environment.max_invalid (0.2) allows")
    assert main(["train", "run.yaml", "rollout.environment.class=task.py:Even", "name=b"]) == 2
    assert "has no attribute 'Even'" in capsys.readouterr().err
    assert main(["train", "run.yaml", "rollout.environment=null", "name=c"]) == 2
    assert "`rewards` is empty" in capsys.readouterr().err
    assert main(["train", "run.yaml", "rewards=[{type: channel, gate: answer}]", "name=d"]) == 2
    assert "gate: no other reward is named `answer`: take one of environment/NAME" in capsys.readouterr().err
