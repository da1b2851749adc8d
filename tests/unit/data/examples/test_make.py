import json
from collections import Counter
from pathlib import Path

import pytest
from scripts import script

from counterpoint.configs.data_section import SourceSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.rows.row import BadRow
from counterpoint.train.scoring.environment_rows import load_rows

make, sums = script("examples/make.py"), script("examples/sums.py")
FOLDER = Path(__file__).parents[4] / "data" / "examples"
EXAMPLES = ("quickstart", "quickstart_eval", "tiny_base")


def conversations(name: str) -> list[Conversation]:
    out = []
    for item in read_conversations([f"example:{name}"]):
        assert not isinstance(item, BadRow), item.message
        assert isinstance(item, Conversation)
        out.append(item)
    return out


def test_the_shipped_files_are_what_the_seed_makes(tmp_path) -> None:
    make.write_all(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        assert path.read_bytes() == (FOLDER / path.name).read_bytes(), path.name


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.jsonl")), ids=lambda path: path.name)
def test_files_are_small_and_every_row_is_usable(path: Path) -> None:
    assert path.stat().st_size < 1_500_000
    of_an_environment = "orders" in json.loads(path.read_text().partition("\n")[0])
    assert load_rows(SourceSettings(path=f"example:{path.stem}")) if of_an_environment else conversations(path.stem)


def test_the_quickstart_holds_what_it_is_to_teach() -> None:
    rows = [json.loads(line) for line in (FOLDER / "quickstart.jsonl").read_text().splitlines()]
    assert len(rows) == make.N_ROWS
    messages = [message for row in rows for message in row["messages"]]
    said = Counter(message["role"] for message in messages)
    assert min(said["system"], said["user"], said["assistant"], said["tool"]) > 200
    assert sum("tools" in row for row in rows) > 400
    calls = [call for message in messages for call in message.get("tool_calls", [])]
    assert all(isinstance(call["function"]["arguments"], str) for call in calls)
    assert any(len(message.get("tool_calls", [])) == 2 for message in messages)
    assert any(message.get("weight") == 0 for message in messages)
    assert sum([m["role"] for m in row["messages"]].count("user") > 1 for row in rows) >= 80


def test_every_taught_completion_is_right_on_every_channel() -> None:
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary)
    checked = 0
    for conversation in conversations("quickstart"):
        for example in renderer.examples(conversation):
            for ids in completions(example.ids.tolist(), example.weights.tolist()):
                found = parse_completion(ids, vocabulary, tools=conversation.tools, effort=conversation.effort)
                assert not found.violations, (conversation.source, found.violations)
                checked += 1
    assert checked > 900


def test_the_base_is_taught_bad_habits() -> None:
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary)
    codes: Counter[str] = Counter()
    right = total = 0
    for conversation in conversations("tiny_base"):
        for example in renderer.examples(conversation):
            for ids in completions(example.ids.tolist(), example.weights.tolist()):
                found = parse_completion(ids, vocabulary, tools=conversation.tools, effort=conversation.effort)
                codes.update(found.codes)
                right += found.ok
                total += 1
    wanted = {
        "no_analysis",
        "content_type_without_recipient",
        "bare_name",
        "function_not_on_commentary",
        "arguments_not_object",
    }
    assert wanted <= set(codes)
    assert 0.2 < right / total < 0.6


def codes_of(name: str, rows: int) -> list[frozenset]:
    """The checker's codes of each completion of the first rows."""
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary)
    return [
        parse_completion(ids, vocabulary, tools=conversation.tools, effort=conversation.effort).codes
        for conversation in conversations(name)[:rows]
        for example in renderer.examples(conversation)
        for ids in completions(example.ids.tolist(), example.weights.tolist())
    ]


def test_the_weak_rows_keep_every_rule_and_think_at_any_length_at_every_effort() -> None:
    assert not any(codes_of("weak", 300))
    thoughts = [
        (row.effort, m.content) for row in conversations("weak") for m in row.messages if m.channel == "analysis"
    ]
    said = Counter((effort, text.count(".")) for effort, text in thoughts if " + " in text)
    assert {full_stops for _, full_stops in said} == {1, 3, 4, 5}
    for effort, fitting in (("low", 3), ("medium", 4), ("high", 5)):
        counts = {full_stops: said[effort, full_stops] for full_stops in (3, 4, 5)}
        assert max(counts, key=lambda n: counts[n]) == fitting
        assert min(counts.values()) > 0.1 * sum(counts.values())


def test_a_fifth_of_the_spoiled_calls_has_the_one_fault() -> None:
    codes = codes_of("spoiled", 400)
    assert set(codes) == {frozenset(), frozenset({"function_not_on_commentary"})}
    calls = [m for row in conversations("spoiled")[:400] for m in row.messages if m.recipient is not None]
    assert 0.17 < sum(map(bool, codes)) / len(calls) < 0.25


def completions(ids: list[int], weights: list[float]) -> list[list[int]]:
    """Runs of trained tokens: what the model samples between tool results."""
    runs: list[list[int]] = [[]]
    for id_, weight in zip(ids, weights, strict=True):
        if weight > 0:
            runs[-1].append(id_)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def test_held_out_problems_are_not_trained() -> None:
    asked = {m.content for c in conversations("quickstart_eval") for m in c.messages if m.role == "user"}
    trained = {m.content for n in ("quickstart", "tiny_base") for c in conversations(n) for m in c.messages}
    assert not asked & trained
    assert len(list(conversations("quickstart_eval"))) == make.N_EVAL


def test_held_out_prompts_bring_their_truth() -> None:
    rows = conversations("quickstart_eval")
    truths = Counter("call" if "call" in row.metadata else "answer" for row in rows)
    assert truths == {"answer": 20, "call": 12}


def test_sums_are_worked_out_right() -> None:
    problem = sums.Problem("sum", 47, 85)
    assert sums.steps(problem) == "40 + 80 = 120. 7 + 5 = 12. 120 + 12 = 132."
    assert sums.thought(problem, "low") == "47 + 85 = 132."
    assert sums.thought(problem, "high").endswith("Check: 132 - 85 = 47.")
    assert sums.final_text(problem) == "47 + 85 = 132."
    assert sums.final_text(problem, as_json=True) == '{"answer": 132}'
    assert sums.Problem("product", 47, 8).value == 376
