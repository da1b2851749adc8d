"""`counterpoint sample` through its command line, and its printers on right and broken completions."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.recipes.cli import main
from counterpoint.recipes.commands.sample_view import ChannelPrinter, RawPrinter
from counterpoint.train.model.tiny import random_tiny

VOCABULARY = load_vocabulary()
CALL = (
    "<|channel|>analysis<|message|>Größe? 😀\x1b[31m<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>One moment."
    '<|end|><|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>'
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    loaded = random_tiny(seed=1)
    loaded.model.save_pretrained(str(folder))
    loaded.vocabulary_map.save(folder)
    return str(folder)


def printed(printer_class: type[RawPrinter], text: str, capsys: pytest.CaptureFixture[str]) -> str:
    printer = printer_class(VOCABULARY, plain=True)
    ids = VOCABULARY.encode_with_specials(text)
    for id_ in ids:
        printer.add(id_)
    printer.end()
    printer.verdict(parse_completion(ids, VOCABULARY), 0.5)
    return capsys.readouterr().out


def test_each_message_stands_under_its_channel(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(ChannelPrinter, CALL, capsys).splitlines()
    assert lines[:6] == [
        "┃ analysis",
        "Größe? 😀⟨U+001B⟩[31m",
        "┃ commentary",
        "One moment.",
        "┃ commentary → functions.add",
        '{"a": 1}',
    ]
    assert lines[6].startswith("✓ right on every channel")
    assert "analysis " in lines[6]


def test_raw_tokens_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(RawPrinter, CALL, capsys)
    assert out.startswith(CALL.replace("\x1b", "⟨U+001B⟩"))


@pytest.mark.parametrize(
    ("text", "shown", "code"),
    [
        ("<|channel|>final<|message|>4", "┃ final\n4\n", "truncated"),
        ("<|message|>4<|return|>", "┃ no channel ()\n4\n", "no_channel"),
        ("<|channel|>final", "┃ final\n", "truncated"),
        ("<|channel|>thought<|message|>4<|return|>", "┃ no channel (<|channel|>thought)\n4\n", "unknown_channel"),
        ("", "✗", "empty"),
    ],
)
def test_broken_completions_are_shown_and_told(
    text: str, shown: str, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = printed(ChannelPrinter, text, capsys)
    assert out.startswith(shown)
    assert f"\n  {code}" in out


def test_the_same_seed_gives_the_same_answer(model_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sample", model_folder, "What is 40 + 52?", "--max-new-tokens", "12", "--device", "cpu"]
    found = []
    for seed in ("7", "7", "8"):
        assert main([*command, "--seed", seed, "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["ids"] == found[1]["ids"] != found[2]["ids"]
    assert len(found[0]["ids"]) == 12
    assert found[0]["stop"] == "length"
    assert main([*command, "--seed", "7", "--plain"]) == 0
    assert "✗" in capsys.readouterr().out
    assert main([*command, "--seed", "7", "--raw", "--temperature", "0"]) == 0
    assert capsys.readouterr().out


def test_tools_instructions_and_stdin(
    model_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "add.json"
    tools.write_text(json.dumps({"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Grüße\n".encode())))
    command = ["sample", model_folder, "-", "--tool", str(tools), "--tool", "python", "--system", "Be brief."]
    assert main([*command, "--max-new-tokens", "2", "--json", "--effort", "high"]) == 0
    assert json.loads(capsys.readouterr().out)["effort"] == "high"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["nowhere/at-all/here", "hi"], 1, "no such folder"),
        (["tiny", ""], 2, "no prompt"),
        (["tiny", "hi", "--tool", "none.json"], 2, "none.json"),
    ],
)
def test_mistakes_are_told(arguments: list[str], code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", *arguments]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"), [(["--max-new-tokens", "0"], "number from 1"), (["--temperature", "-1"], "positive")]
)
def test_wrong_options_are_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", "tiny", "hi", *arguments])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err
