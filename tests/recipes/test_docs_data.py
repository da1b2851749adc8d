"""The examples of docs/data.md are what they are said to be."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

from counterpoint.configs.schema import DataSettings, SourceSettings
from counterpoint.data.conversation import Conversation, Preference
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.formats.registry import FORMATS
from counterpoint.recipes.cli import main

DOC = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_example_of_a_format_is_read_as_it(tmp_path: Path) -> None:
    named: list[str] = []
    for paragraph, block in re.findall(r"(?<=\n\n)(`[^\n]*(?:\n[^\n]+)*)\n\n((?:    \{.*\n)+)", DOC):
        names = [name for name in re.findall(r"`(\w+)`", paragraph) if name in FORMATS]
        file = tmp_path / f"{names[0]}.jsonl"
        file.write_text(re.sub("(?m)^    ", "", block), encoding="utf-8")
        items = list(read_conversations([str(file)]))
        found = []
        for item in items:
            assert isinstance(item, (Conversation, Preference)), item.message
            found.append((item.prompt if isinstance(item, Preference) else item).format)
        assert list(dict.fromkeys(found)) == (names if len(items) > 2 else names[:1])
        named += names
    assert len(named) == len(set(named))
    assert "openai" in named


def test_the_format_of_one_s_own_reads_and_refuses_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    section = DOC.partition("### Your own")[2].partition("## Ambiguous")[0]
    code, command = (block for block in section.split("\n\n") if block.startswith("    "))
    Path("my.py").write_text(textwrap.dedent(code), encoding="utf-8")
    thread = [{"by": "customer", "text": "It is slow."}, {"by": "agent", "text": "Now it is quick."}]
    rows = [{"id": 7, "state": "closed", "thread": thread}, {"id": 8, "state": "open", "thread": thread}]
    Path("tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    called, told = textwrap.dedent(command).strip().splitlines()
    assert main(called.removeprefix("$ counterpoint ").split()) == 1
    assert capsys.readouterr().out.splitlines()[0] == told
    good, _ = read_conversations([SourceSettings(path="tickets.jsonl", format="my.py:tickets")])
    assert isinstance(good, Conversation)
    assert [message.content for message in good.messages] == ["It is slow.", "Now it is quick."]
    assert good.metadata == {"ticket": 7}


def test_settings_that_are_named_exist() -> None:
    for name, values in re.findall(r"\| `(\w+)(?:: ([^`;]+))?`", DOC.partition("## Bad rows")[0]):
        if name in DataSettings.model_fields:
            for value in filter(None, values.split(", ")):
                DataSettings.model_validate({"train": "x.jsonl", name: value})


def test_what_prepare_writes_has_the_fields_of_the_table(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["prepare", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "b.jsonl")]) == 0
    table = re.findall(r"^\| `(.+?)` \| ", DOC.partition("## prepare")[2].partition("A folder has")[0], re.MULTILINE)
    fields = [name for cell in table for name in re.split(r"`, `", cell)]
    assert list(json.loads((tmp_path / "b.jsonl").read_text())) == fields
