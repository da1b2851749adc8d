"""Training on what a judge says, through the real command line and a real server."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from json_server import serving_json

from counterpoint.recipes.cli import main

RUN = """
recipe: grpo
extends: grpo/tiny_sums
output: .
data: {{train: {{type: file, path: rows.jsonl}}, shuffle: false}}
rollout: {{action_tokens: 48, completion_tokens: 48}}
rewards:
  - {{type: judge, url: "{url}/v1", model: m, cache: answers.sqlite, retries: 0, template: "{{{{row.wish}}}} {{{{final}}}}"}}
grpo: {{group: 4}}
train: {{steps: 2, batch_rows: 8, checkpoint_every: 1}}
eval: {{at_start: false, at_end: false}}
tracking: {{wandb: "off"}}
"""
pytestmark = pytest.mark.slow


class Judge:
    """Scores a text by its hash. asked: how often. refuses: for which requests, counted from 0, it has no answer."""

    def __init__(self) -> None:
        self.asked, self.lock = 0, threading.Lock()
        self.refuses = range(0)

    def __call__(self, path: str, body: Any) -> Any:
        with self.lock:
            number, self.asked = self.asked, self.asked + 1
        if number in self.refuses:
            return None
        text = body["messages"][-1]["content"]
        score = hashlib.sha256(text.encode()).digest()[0] / 255
        said = json.dumps({"explanation": "By its hash.", "score": score})
        return {"choices": [{"message": {"content": said}}], "usage": {"total_tokens": 10}}


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"What is {n} + {n}?", "wish": "short"} for n in range(4)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = Judge()
    with serving_json(made) as url:
        Path("run.yaml").write_text(RUN.format(url=url))
        yield made


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_judge_pays_rollouts_and_a_second_run_asks_nothing(judge: Judge) -> None:
    assert main(["train", "run.yaml", "name=a"]) == 0
    asked = judge.asked
    (run,) = Path().glob("a-*")
    rows = lines(run / "rollouts.jsonl")
    assert len({row["rewards"]["judge"] for row in rows}) == asked > 8
    steps = [line for line in lines(run / "metrics.jsonl") if "rewards/judge/tokens" in line]
    assert steps[-1]["rewards/judge/tokens"] == 10 * asked
    assert steps[0]["grad_norm"] > 0
    assert main(["train", "run.yaml", "name=b"]) == 0
    assert judge.asked == asked
    (again,) = Path().glob("b-*")
    assert [row["rewards"] for row in lines(again / "rollouts.jsonl")] == [row["rewards"] for row in rows]


def test_a_judge_without_an_answer_makes_rollouts_invalid(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    judge.refuses = range(2, 5)
    assert main(["train", "run.yaml", "name=a", "train.steps=1"]) == 0
    (run,) = Path().glob("a-*")
    rows = lines(run / "rollouts.jsonl")
    invalid = [row for row in rows if "invalid" in row]
    assert len(invalid) == 3
    assert all(row["rewards"]["judge"] is None and "HTTP 404" in row["invalid"] for row in invalid)
    assert 0.0 not in [row["rewards"]["judge"] for row in rows]
    (step,) = (line for line in lines(run / "metrics.jsonl") if "rewards/judge/failures" in line)
    valid = [row["rewards"]["judge"] for row in rows if "invalid" not in row]
    assert step["reward"] == pytest.approx(sum(valid) / 5)
    assert "reward judge failed and makes its rollout invalid: 3 of 8" in capsys.readouterr().out
    gone = "rewards=[{type: judge, url: 'http://127.0.0.1:9/v1', model: m, retries: 0, template: '{{transcript}}'}]"
    assert main(["train", "run.yaml", "name=b", gone]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "step 1: reward judge failed for every rollout of a step (8 of 8 rollouts): http://127.0.0.1:9"
    )


def test_a_spent_budget_ends_the_run_with_its_checkpoint(judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("run.yaml").read_text()
    Path("run.yaml").write_text(text.replace("retries: 0", "retries: 0, max_tokens_total: 95"))
    assert main(["train", "run.yaml", "name=a"]) == 1
    err = capsys.readouterr().err.strip().splitlines()
    assert err[-1].startswith("step 2: reward judge: its judge has taken ")
    assert err[-1].endswith("tokens, and max_tokens_total is 95: raise it and resume the run")
    (run,) = Path().glob("a-*")
    (checkpoint,) = (run / "checkpoints").glob("*")
    assert checkpoint.name.endswith("1")
    Path("run.yaml").write_text(text)
    assert main(["train", "run.yaml", "name=a", "--resume", str(run), "--overwrite"]) == 0
    assert {row["step"] for row in lines(run / "rollouts.jsonl")} == {0, 1}
