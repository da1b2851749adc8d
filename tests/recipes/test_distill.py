"""`recipe: distill`: what is accepted, what is written, and a run that is cut off and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from counterpoint.data.conversation import Conversation, Message, Tool
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.recipes.cli import main
from counterpoint.train.sampling.scripted import ScriptedEngine
from counterpoint.train.scoring.rejection_sampling import distil, question_of, row_of
from counterpoint.train.scoring.scorers import Scorers

RENDERER = Renderer(load_vocabulary())
RIGHT = "<|channel|>analysis<|message|>6 and 7.<|end|><|start|>assistant<|channel|>final<|message|>So: 42<|return|>"
WRONG = RIGHT.replace("42", "41")
BARE = "<|channel|>final<|message|>42<|return|>"
ROW = Conversation(
    (
        Message("user", "hello"),
        Message("assistant", "hi", "final"),
        Message("user", "6 * 7?"),
        Message("assistant", "42", "final"),
    ),
    instructions="Be exact.",
    tools=(Tool("f", "Does.", {"type": "object", "properties": {}}),),
    effort="high",
)


def test_the_first_sample_that_is_right_by_every_rule_is_kept() -> None:
    question = question_of(0, ROW, RENDERER)
    assert question is not None
    engine = ScriptedEngine(RENDERER.vocabulary, [WRONG, BARE, "<|channel|>analysis<|message|>42", RIGHT, WRONG])
    with Scorers() as scorers:
        (done,) = distil([question], RENDERER, engine, scorers, samples=6, max_new_tokens=99, temperature=1.0, seed=0)
        (none,) = distil([question], RENDERER, engine, scorers, samples=2, max_new_tokens=99, temperature=1.0, seed=0)
    assert (done.samples, none.samples, none.completion) == (4, 2, None)
    row = row_of(done)
    again = convert(json.loads(json.dumps(row)))
    assert isinstance(again, Conversation)
    assert again.messages[-2:] == (Message("assistant", "6 and 7.", "analysis"), Message("assistant", "42", "final"))
    assert (again.instructions, again.effort) == ("Be exact.", "high")
    assert [tool.name for tool in again.tools] == ["f"]
    assert [example.turn for example in RENDERER.examples(again)] == [1], "the answer without reasoning is not trained"
    assert RENDERER.prompt(question.prompt.conversation) == engine.asked[0][0]
    assert row_of(done, keep_answer=False)["messages"][-1]["content"] == "So: 42"


def test_rows_without_a_question() -> None:
    call = Message("assistant", "{}", "commentary", "functions.f")
    assert question_of(0, Conversation((Message("user", "a"), call)), RENDERER) is None
    assert question_of(0, Conversation((Message("user", "a"),)), RENDERER) is None
    asked = question_of(0, Conversation((Message("user", "a"),), metadata={"answer": "7"}), RENDERER)
    assert asked is not None
    assert asked.prompt.scorer == "number"


RUN = """
recipe: distill
extends: distill/tiny_sums
model: {init: random}
output: .
data: {train: rows.jsonl}
distill: {samples: 2, max_new_tokens: 6, batch: 2, scorer: "anything.py:right"}
"""


def test_the_command_resumes_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "1"}]} for n in range(5)
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("run.yaml").write_text(RUN)
    Path("anything.py").write_text("def right(completion, reference): return 1\n")
    assert main(["train", "run.yaml"]) == 1
    run = next(Path().glob("run-*"))
    out, err = capsys.readouterr()
    assert "accepted 0 of 5 rows (0.00 [0.00, 0.43]) in 10 samples" in out
    assert "no answer was accepted" in err
    whole = (run / "refused.jsonl").read_bytes()
    (run / "refused.jsonl").write_bytes(whole[: whole.index(b"\n") + 9])
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 1
    assert "5 questions, 1 of them done before" in capsys.readouterr().out
    assert (run / "refused.jsonl").read_bytes() == whole
    assert (run / "data.jsonl").read_bytes() == b""
    assert main(["train", str(run / "config.yaml"), "distill.samples=3", "--resume", str(run)]) == 1
    assert "its rows or settings were others" in capsys.readouterr().err


def test_accepted_rows_outlive_a_cut_and_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sums = [(17, 25), (31, 14), (8, 7), (45, 32), (12, 66), (29, 36)]
    rows = [{"messages": [{"role": "user", "content": f"{a} + {b} = ?"}], "answer": a + b} for a, b in sums]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("distill/tiny_sums", "data.train=rows.jsonl", "output=.", "distill.batch=4", "distill.samples=3")
    assert main(["train", *settings]) == 0
    (run,) = Path().glob("tiny_sums-*")
    kept, refused, data = (run / name for name in ("distilled.jsonl", "refused.jsonl", "data.jsonl"))
    whole, lines = data.read_bytes(), kept.read_bytes().splitlines(keepends=True)
    assert len(lines) >= 2, "the embedded model adds some of them rightly"
    told = capsys.readouterr().out
    # Cut off in the middle of a line; what was refused and accepted after it is gone.
    kept.write_bytes(lines[0] + lines[1][:40])
    refused.unlink(missing_ok=True)
    data.unlink()
    assert main(["train", str(run / "config.yaml"), "--resume", str(run)]) == 0
    again = capsys.readouterr().out
    assert "6 questions, 1 of them done before" in again
    assert data.read_bytes() == whole
    assert sorted(kept.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert [line for line in told.splitlines() if "accepted" in line][-1] in again
    assert main(["train", *settings, "--overwrite"]) == 0
    assert list(Path().glob("tiny_sums-*")) == [run]
    assert data.read_bytes() == whole
