"""The suite itself: its cases, its files, and that nothing of it needs more than Python."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from conformance_suite import FOLDER, ROOT, module, suite
from scripts import script

from counterpoint.data.harmony.official import official_encoding
from counterpoint.data.harmony.vocabulary import load_vocabulary, vocabulary_folder

PEERS = sorted(path.parent for path in (FOLDER / "peers").glob("*/adapter.py"))


def imported(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_the_cases_are_those_that_the_generator_makes() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "conformance" / "make.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_there_are_enough_cases_and_every_arguable_one_says_why() -> None:
    cases = suite().cases
    assert sum(case["status"] == "required" for case in cases.values()) >= 500
    assert all(case.get("why") for case in cases.values() if case["status"] == "arguable")
    assert len(cases) == sum(len(ids) for ids in suite().categories.values())


@pytest.mark.parametrize("path", sorted((FOLDER / "cases").glob("*.json")), ids=lambda path: path.stem)
def test_every_case_is_of_the_schema(path: Path) -> None:
    schema = json.loads((FOLDER / "schema.json").read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(json.loads(path.read_text("utf-8")))
    assert json.loads(path.read_text("utf-8"))["category"] == path.stem


def test_texts_of_targets_are_their_ids() -> None:
    vocabulary = load_vocabulary()
    for case in suite().cases.values():
        for message in (message for action in case.get("actions", ()) for message in action["target"]):
            assert vocabulary.encode(message["text"]) == message["body_ids"]


def test_openai_harmony_reads_every_target_in_every_spelling_of_its_header() -> None:
    from openai_harmony import Role

    seen = set()
    for case in suite().cases.values():
        for message in (message for action in case.get("actions", ()) for message in action["target"]):
            for header in message["headers"]:
                # It takes the content type of a final for a recipient.
                if tuple(header) in seen or (message["channel"] == "final" and header != message["headers"][0]):
                    continue
                seen.add(tuple(header))
                ids = [*header, *message["body_ids"], message["end"]]
                (read,) = official_encoding().parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
                assert (read.channel, read.recipient) == (message["channel"], message["recipient"])
    assert len(seen) > 20


@pytest.mark.parametrize("name", ["score", "run", "report", "tokenizer", "adapting/protocol", "adapting/clock"])
def test_the_suite_needs_python_alone(name: str) -> None:
    assert imported(FOLDER / f"{name}.py") <= set(sys.stdlib_module_names) | {"score"}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_is_complete_and_its_adapter_short(peer: Path) -> None:
    assert (peer / "adapter.py").read_text("utf-8").count("\n") <= 80
    assert (peer / "how.md").read_text("utf-8").startswith("# ")
    assert "counterpoint" not in imported(peer / "adapter.py")
    assert (peer / "requirements.txt").is_file() or peer.name == "counterpoint"


def test_every_reference_says_who_made_it_and_has_the_prompts_of_every_case() -> None:
    listed = json.loads((FOLDER / "references.json").read_text("utf-8"))
    whole = suite()
    assert set(listed) == set(whole.references)
    for name, entry in listed.items():
        assert FOLDER / "peers" / entry["peer"] in PEERS
        stored = json.loads((FOLDER / "references" / f"{name}.json").read_text("utf-8"))
        training = {id_ for id_, case in whole.cases.items() if "actions" in case}
        assert stored["versions"]
        assert set(stored["prompts"]) | set(stored["refused"]) == training
        for id_, prompts in stored["prompts"].items():
            assert len(prompts) == len(whole.cases[id_]["actions"])


def test_the_reference_of_openai_harmony_is_what_it_makes_now(tmp_path: Path) -> None:
    """Its adapter runs in this environment, which holds the same version."""
    runner, whole = module("run"), suite()
    cases = {name: case for name, case in whole.cases.items() if "actions" in case}
    (tmp_path / "openai_harmony" / "bin").mkdir(parents=True)
    python = tmp_path / "openai_harmony" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    run = runner.ask("openai_harmony", cases, environments=tmp_path, checkpoint=vocabulary_folder(), prompts=True)
    made = runner.reference_text(runner.reference("openai_harmony", run, cases))
    assert made == (FOLDER / "references" / "openai_harmony.json").read_text("utf-8")


def test_adapters_see_nothing_of_the_answers() -> None:
    for line in module("run").questions(suite().cases):
        assert set(line) <= {"id", "row", "effort", "date", "at", "ids", "tools", "builtin_tools", "response_format"}


def test_the_tokenizer_of_the_folder_is_gpt_oss_s(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    module("tokenizer").write_folder(vocabulary_folder() / "o200k_base.tiktoken", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for case in suite().cases.values():
        for message in (message for action in case.get("actions", ()) for message in action["target"]):
            if "<|" not in message["text"]:
                assert tokenizer(message["text"], add_special_tokens=False).input_ids == message["body_ids"]
    assert tokenizer("<|start|>assistant<|channel|>final<|message|>").input_ids == [
        200006,
        173781,
        200005,
        17196,
        200008,
    ]


def test_a_file_that_is_another_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.tiktoken").write_text("YQ== 0\n")
    with pytest.raises(ValueError, match=r"is not o200k_base\.tiktoken"):
        module("tokenizer").write_folder(tmp_path / "other.tiktoken", tmp_path / "out")


def test_generator_and_suite_hold_the_same_header_spellings() -> None:
    building = script("conformance/building.py")
    cases = list(suite().cases.values())
    table = {tuple(ids): name for name, spelled in building.header_table(cases).items() for ids in spelled}
    assert table == suite().headers
