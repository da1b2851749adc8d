"""counterpoint chat: a conversation over piped stdin, with tools that run, tools that are asked for, and efforts."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.recipes.cli import main

CALL = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}<|call|>"
FINAL = "<|channel|>final<|message|>{}<|return|>"
THINK = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
TOOLS = "def double(number: int) -> int:\n    '''Twice a number.'''\n    return 2 * number\n"


def chat(monkeypatch: pytest.MonkeyPatch, said: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    return main(["chat", "tiny", "--device", "cpu", "--plain", "--temperature", "0", *arguments])


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(prompt, action) of each sample; what is in it at first is what the model says."""
    vocabulary, turns = load_vocabulary(), []
    actions: Iterator[str] = iter(())

    def stream(loaded: Any, prompt: list[int], *_: Any) -> Iterator[int]:
        nonlocal actions
        if not turns or turns[0][0] == "":
            actions = iter([text for _, text in turns])
            turns.clear()
        text = next(actions)
        turns.append((vocabulary.decode(list(prompt)), text))
        yield from vocabulary.encode_with_specials(text)

    monkeypatch.setattr("counterpoint.recipes.commands.chat_turn.stream", stream)
    return turns


def test_two_messages_of_the_tiny_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat(monkeypatch, "What is 12 + 15?\n\n/what\n", "--max-new-tokens", "50") == 0
    out, err = capsys.readouterr()
    assert out.startswith("┃ analysis\n")
    assert "\x1b" not in out
    assert "┃ final\n" in out
    assert err == "commands: /effort low|medium|high, /new, /quit\n"


def test_calls_are_run_and_the_conversation_goes_on(
    scripted: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text(TOOLS)
    scripted += [("", THINK + CALL.format("double", '{"number": 4}')), ("", FINAL.format("It is 8."))]
    scripted += [("", THINK + FINAL.format("Welcome.")), ("", THINK + FINAL.format("Hello."))]
    said = "Twice 4?\n/effort high\nThanks.\n/new\nHello\n/quit\nnever\n"
    assert chat(monkeypatch, said, "--function", "tools.py:double", "--effort", "low") == 0
    out = capsys.readouterr().out
    assert out.startswith("tools: double\n")
    assert '┃ commentary → functions.double\n{"number": 4}\n┃ result of functions.double\n8\n┃ final\nIt is 8.\n' in out
    first, second, third, fourth = (prompt for prompt, _ in scripted)
    assert "Reasoning: low" in first
    assert "<|start|>functions.double<|channel|>commentary to=assistant<|message|>8<|end|>" in second
    assert "Reasoning: high" in third
    assert "<|channel|>final<|message|>It is 8.<|end|>" in third
    assert "Hm." not in third
    assert "Twice 4?" not in fourth


def test_the_result_of_a_declared_tool_is_asked_for(
    scripted: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    (tmp_path / "tool.json").write_text(json.dumps(tool))
    scripted += [("", THINK + CALL.format("weather", "{}")), ("", FINAL.format("Rain."))]
    assert chat(monkeypatch, "Weather?\nrain in Oslo\n", "--tool", str(tmp_path / "tool.json")) == 0
    assert "<|message|>rain in Oslo<|end|>" in scripted[1][0]


def test_an_answer_that_does_not_end_is_taken_back(
    scripted: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted += [("", "<|channel|>analysis<|message|>Hm"), ("", THINK + FINAL.format("Yes."))]
    assert chat(monkeypatch, "One?\nTwo?\n") == 0
    assert "no answer (length): the message is taken back" in capsys.readouterr().err
    assert "One?" not in scripted[1][0]


def test_code_of_a_run_is_not_run_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from argparse import Namespace

    from counterpoint.configs.load import load_run
    from counterpoint.recipes.commands.chat import _tools

    settings = ["tools.functions=[tools.py:double, counterpoint.train.episodes.example_tools:calculator]"]
    found: Any = Namespace(run=load_run("grpo/tiny_calculator", settings))
    asked = Namespace(function=[], python=False, no_tools=False)
    own = "counterpoint.train.episodes.example_tools:calculator"
    assert _tools(asked, found).functions == (own,)
    assert "not run: tools.py:double" in capsys.readouterr().err
    asked.function = ["tools.py:double"]
    assert _tools(asked, found).functions == ("tools.py:double", own)
    asked.no_tools = True
    assert _tools(asked, found).functions == ("tools.py:double",)
