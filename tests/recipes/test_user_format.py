"""`format: file.py:function` through the real command, wherever a format is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError, RowError
from counterpoint.data.conversation import Conversation, Message, Preference
from counterpoint.data.counts.counter import kind_of
from counterpoint.data.formats.convert import convert
from counterpoint.recipes.cli import main

CODE = """
import sys
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Message, Preference

ANSWERED = {True: "right", False: "wrong"}


def rows(row):
    match row.get("do"):
        case "none":
            return None
        case "value":
            raise ValueError("not this one")
        case "row":
            raise RowError("odd", "q", "is odd", "make it even")
        case "key":
            return row["no such key"]
        case "exit":
            sys.exit(3)
        case "number":
            return 3
        case "channel":
            return Conversation((Message("user", "a"), Message("assistant", "b")))
        case "conversation":
            return Conversation((Message("user", row["q"]), Message("assistant", row["a"], "final")))
        case "list":
            return [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]
        case "prompt":
            return {"question": row["q"], "answer": row["a"]}
    return {"messages": [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row["a"]}]}


def pairs(row):
    prompt = Conversation((Message("user", row["q"]),))
    return Preference(prompt, (Message("assistant", row["a"], "final"),), (Message("assistant", "no", "final"),))
"""
REASONS = {
    "none": "row: my.py:rows returned None: fix the row, or the function",
    "value": "row: not this one: fix the row, or the function",
    "row": "q: is odd: make it even",
    "key": "row: my.py:rows: KeyError: 'no such key': fix the row, or the function",
    "exit": "row: my.py:rows: SystemExit: 3: fix the row, or the function",
    "number": "row: my.py:rows: it returned a number, not a Conversation, a Preference, a dict or a list: "
    "fix the function",
    "channel": "row: my.py:rows: messages[1] has a channel that is none of analysis, commentary, final: "
    "fix the function",
}
RUN = "recipe: sft\nmodel: {name: no/model}\ndata:\n"
GOOD = ("conversation", "list", "prompt", None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(CODE)
    return tmp_path


def write(name: str, *does: str | None, copies: int = 1) -> None:
    rows = [{"q": f"question {n}", "a": "answer", "do": do} for n in range(copies) for do in does]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "counterpoint.recipes.cli", *arguments], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_what_it_returns_is_read_and_what_it_refuses_is_set_aside() -> None:
    write("a.jsonl", *GOOD, *REASONS)
    done = command("validate", "a.jsonl", "--format", "my.py:rows", "--quarantine", "bad.jsonl")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines[: len(REASONS)] == [f"a.jsonl:{n}: {reason}" for n, reason in enumerate(REASONS.values(), 5)]
    assert lines[len(REASONS) + 1 : len(REASONS) + 3] == [
        "kind: 3 conversations, 1 prompts",
        "format: openai 2, my.py:rows 1, rl 1",
    ]
    kinds = [json.loads(line)["kind"] for line in Path("bad.jsonl").read_text().splitlines()]
    assert kinds == ["refused", "refused", "odd", *["format_failed"] * 4]
    assert json.loads(json.loads(Path("bad.jsonl").read_text().splitlines()[0])["raw"])["do"] == "none"


@pytest.mark.parametrize(
    ("format", "told"),
    [
        ("my.py:nothing", "AttributeError: module 'my' has no attribute 'nothing'"),
        ("my.py:ANSWERED", "is of type dict"),
        ("your.py:rows", "FileNotFoundError: [Errno 2] No such file or directory: '{}/your.py'"),
    ],
)
@pytest.mark.parametrize("recipe", ["sft", "dpo"])
def test_a_function_that_is_not_there_is_told_before_anything_is_loaded(
    format: str, told: str, recipe: str, folder: Path
) -> None:
    """No model and no data is there either."""
    run = f"recipe: {recipe}\nmodel: {{name: no/model}}\ndata:\n  train: a.jsonl\n  valid: {{path: b, format: {format}}}\n"
    Path("run.yaml").write_text(run)
    done = command("train", "run.yaml")
    text = f"function `{format}`: {told.format(folder)}: write module:function or path/file.py:function\n"
    assert (done.returncode, done.stderr) == (2, f"run.yaml:5: `data.valid.0.format` is `{format}`: {text}")


def test_a_wrong_name_is_told_by_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.yaml").write_text(f"{RUN}  train: {{path: a.jsonl, format: opnai}}\n")
    for arguments in (["train"], ["plan"], ["configs", "validate"], ["show", "--config"], ["validate", "--config"]):
        assert main([*arguments, "run.yaml"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("run.yaml:4: `data.train.0.format` is `opnai`: it must be one of auto, alpaca, ")
        assert ", sharegpt, or your own as file.py:function; did you mean `openai`?" in error
    Path("run.yaml").write_text(f"{RUN}  train: a.jsonl\n")
    assert main(["show", "--config", "run.yaml", "--format", "opnai"]) == 2
    assert capsys.readouterr().err.startswith("--format opnai: it must be one of auto, alpaca, ")
    Path("run.yaml").write_text(
        "recipe: evaluate\nmodel: {name: no/model}\neval:\n  tasks: [{type: file, path: a, format: my.py:no}]\n"
    )
    assert main(["evaluate", "--config", "run.yaml"]) == 2
    assert "run.yaml:4: `eval.tasks.0.format` is `my.py:no`: function `my.py:no`: " in capsys.readouterr().err


@pytest.mark.slow
def test_show_and_prepare_take_it_with_any_number_of_workers(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", "conversation", None, "value", copies=400)
    assert main(["show", "a.jsonl", "--format", "my.py:rows", "--row", "2", "--plain"]) == 0
    assert "question 0" in capsys.readouterr().out
    Path("run.yaml").write_text(f"{RUN}  train: {{path: a.jsonl, format: 'my.py:rows'}}\n")
    arguments = ["prepare", "--config", "run.yaml", "data.bad_rows_limit=1"]
    assert main([*arguments, "--out", "one.jsonl", "--workers", "1"]) == 0
    assert main([*arguments, "--out", "two.jsonl", "--workers", "2", "--quarantine", "bad.jsonl"]) == 0
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()
    assert Path("one.jsonl").read_text().count("\n") == 800
    assert Path("bad.jsonl").read_text().count("not this one") == 400


def test_changed_code_is_prepared_again(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", "conversation")
    arguments = ["prepare", "a.jsonl", "--format", "my.py:rows", "--out", "out.jsonl"]
    assert main(arguments) == 0
    before = Path("out.jsonl").read_bytes()
    os.utime("my.py")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "out.jsonl: unchanged: same data, same settings, nothing was done\n" in capsys.readouterr().out
    Path("my.py").write_text(CODE.replace('Message("user", row["q"])', 'Message("user", row["q"].upper())'))
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("out.jsonl: prepared again, because the data changed\n")
    assert Path("out.jsonl").read_bytes() != before


def test_pairs_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", None)
    assert main(["validate", "a.jsonl", "--format", "my.py:pairs", "--for", "dpo"]) == 0
    assert "kind: 1 preferences\nformat: my.py:pairs 1\n" in capsys.readouterr().out


def refused(value: Any) -> str:
    Path("any.py").write_text("made = []\ndef f(row):\n    return row\n")
    with pytest.raises(RowError) as error:
        convert(value, "any.py:f")
    return error.value.what


def test_what_is_no_conversation_does_not_reach_the_renderer() -> None:
    user, answer = Message("user", "a"), Message("assistant", "b", "final")
    assert refused(Conversation(())) == "any.py:f: no messages"
    for message, fault in (
        ({"role": "user"}, "is of type dict, not Message"),
        (Message("bot", "x"), "has the role 'bot', which is none of developer, user, assistant, tool"),  # pyright: ignore
        (Message("user", 3), "has a content that is no text"),  # pyright: ignore
        (Message("tool", "x", "commentary"), "is a tool's, without the tool's name"),
    ):
        assert refused(Conversation((user, message))) == f"any.py:f: messages[1] {fault}"  # pyright: ignore
    assert refused(Conversation((user, answer), effort="max")).endswith("`effort` is none of low, medium, high")  # pyright: ignore
    assert refused(Conversation((user, answer), date=2025)).endswith("`instructions` and `date` are texts or None")  # pyright: ignore
    for pair in (
        Preference(Conversation((user,)), (answer,), (answer,)),
        Preference(Conversation((user,)), (user,), (answer,)),
    ):
        assert refused(pair).endswith("needs two different answers, each ending in the assistant's message")
    assert kind_of(
        convert(Preference(Conversation((user,)), (answer,), (Message("assistant", "c", "final"),)), "any.py:f")
    )
    with pytest.raises(ConfigError, match="has no attribute 'g'"):
        convert({}, "any.py:g")
