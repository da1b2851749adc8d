"""Public benchmarks by their short names: rows in their published layouts become prompts, truths and verdicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError, CounterpointError, DataError
from counterpoint.configs.eval_section import ReadyTask
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import EvaluateRun, SuiteSettings
from counterpoint.data.formats.registry import check_format
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.tasks import Task, build_tasks
from counterpoint.train.scoring.ready_tasks import ready_prompts, settled
from counterpoint.train.scoring.scorers import ExpectedCall, Scorers

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
SCHOOL = {
    "question": "A barn holds 1,200 bales and gets 34 more. How many bales does it hold?",
    "answer": "It holds 1200 + 34 = <<1200+34=1234>>1234 bales.\n#### 1,234",
}
CHEMISTRY = {
    "Pre-Revision Question": "?",
    "Question": "Which of these boils first at sea level?\n",
    "Correct Answer": "Ether",
    "Incorrect Answer 1": "Water",
    "Incorrect Answer 2": "Ethanol",
    "Incorrect Answer 3": "Octane\n",
    "Record ID": "rec0",
}
NO_COMMAS = {
    "key": 1000,
    "prompt": "Praise the sun in lower case, without commas.",
    "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    "kwargs": [{"num_words": None}, {}],
}
AREA = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "How large is a circle of radius 3?"}]],
    "function": [
        {
            "name": "circle.area",
            "description": "Area of a circle.",
            "parameters": {
                "type": "dict",
                "properties": {
                    "radius": {"type": "float", "description": "Radius."},
                    "type": {"type": "any"},
                    "points": {"type": "tuple", "items": {"type": "dict", "properties": {"x": {"type": "float"}}}},
                },
                "required": ["radius", "note"],
            },
        }
    ],
}
AREA_ANSWER = {
    "id": "simple_python_0",
    "ground_truth": [{"circle.area": {"radius": [3, 3.0], "type": ["", "cm"], "note": [""]}}],
}


def file_of(folder: Path, *rows: Any, name: str = "rows.jsonl") -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def task_of(**task: Any) -> Task:
    (built,) = build_tasks(SuiteSettings.model_validate({"tasks": [task], "scorer_seconds": 60}))
    return built


def said(text: str) -> Completion:
    raw = f"<|channel|>analysis<|message|>.<|end|><|start|>assistant<|channel|>{text}"
    return parse_completion(load_vocabulary().encode_with_specials(raw))


@pytest.fixture(scope="module")
def scorers() -> Iterator[Scorers]:
    with Scorers(seconds=60) as made:
        yield made


def verdicts(scorers: Scorers, task: Task, *finals: str, row: int = 0) -> list[float]:
    prompt = task.prompts[row]
    assert prompt.scorer is not None
    found = [said(text if "<|" in text else f"final<|message|>{text}<|return|>") for text in finals]
    return [scorers.score(prompt.scorer, each, prompt.reference).value for each in found]


def asked(task: Task, row: int = 0) -> str:
    (message,) = task.prompts[row].conversation.messages
    assert message.role == "user"
    return message.content


def test_gsm8k(tmp_path: Path, scorers: Scorers) -> None:
    task = task_of(type="gsm8k", path=file_of(tmp_path, SCHOOL))
    assert (task.name, task.samples, task.max_new_tokens, task.temperature) == ("gsm8k", 1, 4096, 1.0)
    (prompt,) = task.prompts
    assert (prompt.id, prompt.scorer, prompt.reference.answer) == ("rows.jsonl:1", "number", "1234")
    assert asked(task) == SCHOOL["question"] + BOXED
    assert verdicts(scorers, task, "\\boxed{1,234}", "#### 1234", "\\boxed{1{,}234}", "\\boxed{234}") == [1, 1, 1, 0]


def test_settings_of_the_task_stand_before_the_defaults(tmp_path: Path) -> None:
    told = {"scorer": "exact", "samples": 3, "max_new_tokens": 99, "instructions": "Only the number.", "name": "mine"}
    task = task_of(type="aime", path=file_of(tmp_path, {"problem": "1 + 1?", "answer": 2}), **told)
    assert (task.name, task.samples, task.max_new_tokens, task.prompts[0].scorer) == ("mine", 3, 99, "exact")
    assert (asked(task), task.prompts[0].conversation.instructions) == ("1 + 1?", "Only the number.")


@pytest.mark.parametrize(
    "row",
    [
        {"id": 60, "problem": "Find $x$.", "solution": "... \\boxed{073}", "answer": "073", "year": "2024"},
        {"ID": "60", "Problem": "Find $x$.", "Solution": "It is 7.", "Answer": 73},
        {"question": "Find $x$.", "answer": "73^\\circ"},
        {"Question": "Find $x$.", "Answer": 73.0},
    ],
)
def test_aime_under_the_names_in_use(row: dict[str, Any], tmp_path: Path, scorers: Scorers) -> None:
    task = task_of(type="aime", path=file_of(tmp_path, row))
    assert (task.samples, task.max_new_tokens, task.size) == (8, 32768, 24)
    assert (asked(task), task.prompts[0].reference.answer) == ("Find $x$." + BOXED, "73")
    assert task.prompts[0].id == ("60" if {"id", "ID"} & set(row) else "rows.jsonl:1")
    assert task.notices == ()
    assert verdicts(scorers, task, "So $\\boxed{073}$.", "\\boxed{73}", "73 or 74", "\\boxed{730}") == [1, 1, 0, 0]


def test_gpqa_s_options_are_in_an_order_that_hangs_on_the_row_alone(tmp_path: Path, scorers: Scorers) -> None:
    rows = [{**CHEMISTRY, "Question": f"Question {n}?", "Record ID": f"rec{n}"} for n in range(40)]
    task = task_of(type="gpqa", path=file_of(tmp_path, CHEMISTRY, *rows))
    (first, *others) = task.prompts
    assert (first.id, task.samples, first.scorer) == ("rows.jsonl:1", 8, "choice"), "rec0 is there twice"
    assert first.reference.answer == "C"
    assert asked(task) == (
        "Which of these boils first at sea level?\n\n(A) Water\n(B) Ethanol\n(C) Ether\n(D) Octane\n\n"
        "End with a line `Answer: ` and the letter of the right option: A, B, C or D."
    )
    assert verdicts(scorers, task, "Answer: C", "(C)", "It is ether.", "Answer: A", "C or A") == [1, 1, 1, 0, 0]
    assert {prompt.reference.answer for prompt in others} == set("ABCD")
    turned = [{key: row[key] for key in reversed(row)} for row in (*reversed(rows), CHEMISTRY)]
    again = task_of(type="gpqa", path=file_of(tmp_path, *turned))
    assert {p.conversation.messages for p in again.prompts} == {p.conversation.messages for p in task.prompts}


@pytest.mark.slow
def test_ifeval_is_right_where_every_instruction_is_kept(tmp_path: Path, scorers: Scorers) -> None:
    path = file_of(tmp_path, NO_COMMAS)
    measures = {
        None: [1, 0, 0], "instructions": [1, 0.5, 0], "instructions_loose": [1, 0.5, 1],
        "instructions_all_loose": [1, 0, 1],
    }  # fmt: skip
    tasks = [{"type": "ifeval", "path": path, "scorer": name, "name": str(name)} for name in measures]
    built = build_tasks(SuiteSettings.model_validate({"tasks": tasks, "scorer_seconds": 60}))
    assert (asked(built[0]), built[0].prompts[0].id, built[0].samples) == (NO_COMMAS["prompt"], "1000", 1)
    for task, values in zip(built, measures.values(), strict=True):
        kept = verdicts(scorers, task, "oh bright sun", "oh, bright sun", "Here, it is:\noh bright sun")
        assert kept == values, task.name


@pytest.mark.slow
def test_ifbench_has_instructions_of_its_own_loosely_read(tmp_path: Path, scorers: Scorers) -> None:
    row = {
        "key": "0", "prompt": "Name a fruit.", "instruction_id_list": ["count:word_count_range"],
        "kwargs": [{"min_words": 2, "max_words": 3, "N": None}],
    }  # fmt: skip
    path = file_of(tmp_path, row, {**row, "key": "1", "instruction_id_list": ["count:word_range"]})
    [prompt, _] = ready_prompts(settled(ReadyTask(type="ifbench", path=path)))
    given = [said(f"final<|message|>{text}<|return|>") for text in ("A pear", "Pear", "Sure, here it is:\nA pear")]
    kept = [scorers.score("instructions_all_loose", each, prompt.reference).value for each in given]
    assert (prompt.conversation.messages[0].content, kept) == ("Name a fruit.", [1, 0, 1])
    with pytest.raises(
        ConfigError, match="task ifbench: 1: neither IFEval nor IFBench has an instruction `count:word_range`"
    ):
        task_of(type="ifbench", path=path)


def test_bfcl_s_calls_are_joined_from_the_file_of_answers(tmp_path: Path, scorers: Scorers) -> None:
    other = {**AREA, "id": "irrelevance_7", "function": []}
    path = file_of(tmp_path, AREA, other, name="BFCL_v4_simple_python.json")
    answers = file_of(tmp_path, AREA_ANSWER, name="mine.json")
    with pytest.raises(DataError, match=r"json:1: no `ground_truth` of `simple_python_0`: name the file of answers"):
        task_of(type="bfcl", path=path)
    task = task_of(type="bfcl", path=path, answers=answers)
    file_of(tmp_path, AREA_ANSWER, name="possible_answer/BFCL_v4_simple_python.json")
    assert task == task_of(type="bfcl", path=path)
    first, second = task.prompts
    (tool,) = first.conversation.tools
    assert (first.id, asked(task), tool.name) == ("simple_python_0", AREA["question"][0][0]["content"], "circle_area")
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "radius": {"type": "number", "description": "Radius."},
            "type": {},
            "points": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}}},
        },
        "required": ["radius", "note"],
    }
    accepted = {"radius": [3, 3.0], "type": ["", "cm"], "note": [" "]}
    expected = ExpectedCall("functions.circle_area", accepted, any_of=True)
    assert (first.reference.calls, second.reference.calls) == ((expected,), ())

    def call(arguments: str) -> str:
        return f"commentary to=functions.circle_area <|constrain|>json<|message|>{arguments}<|call|>"

    made = (
        call('{"radius": 3, "note": ""}'), call('{"radius": 3.0, "type": "CM", "note": ""}'),
        call('{"radius": 4, "note": ""}'), "About 28.", call('{"radius": 3}'),
    )  # fmt: skip
    assert verdicts(scorers, task, *made) == [1, 1, 0, 0, 0]
    cut = "analysis<|message|>I could"
    assert verdicts(scorers, task, *made, cut, row=1) == [0, 0, 0, 1, 0, 0]


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


@pytest.mark.parametrize(
    ("type", "row", "told"),
    [
        ("gsm8k", without(SCHOOL, "answer"), "`answer` is missing: the row has `question`"),
        ("gsm8k", {**SCHOOL, "answer": "1234"}, "answer: `1234` does not end in `#### ` and a number"),
        ("gsm8k", {**SCHOOL, "question": ""}, "question: `` is not what the benchmark has there"),
        ("gsm8k", ["question"], "row|object"),
        ("aime", {"text": "?", "Answer": 3}, "`problem` or `Problem` or `question` or `Question` is missing: the row has `text`"),
        ("aime", {"problem": "?", "answer": "1000"}, "answer: `1000` is no whole number from 0 to 999"),
        ("aime", {"problem": "?", "answer": True}, "answer: `true` is not what"),
        ("aime", {"problem": "?", "answer": -1}, "no whole number"),
        ("gpqa", without(CHEMISTRY, "Incorrect Answer 3"), "`Incorrect Answer 3` is missing: the row has `Pre-Revision"),
        ("gpqa", {**CHEMISTRY, "Incorrect Answer 1": "Ether "}, "two of the options are the same"),
        ("ifeval", without(NO_COMMAS, "kwargs"), "`kwargs` is missing"),
        ("ifeval", {**NO_COMMAS, "kwargs": [{}]}, "kwargs: not one object for each of the 2"),
        ("ifbench", {**NO_COMMAS, "instruction_id_list": []}, "instruction_id_list: an empty list is not"),
        ("bfcl", without(AREA, "question"), "`question` is missing"),
        ("bfcl", {**AREA_ANSWER, **without(AREA, "function")}, "`function` is missing"),
        ("bfcl", {**AREA_ANSWER, **AREA, "function": ["f"]}, "function: not a list of objects alone"),
        ("bfcl", {**AREA_ANSWER, **AREA, "ground_truth": [["f()"]]}, "ground_truth: not a list of objects alone"),
        ("bfcl", {**AREA_ANSWER, **AREA, "id": "multi_turn_base_0"}, "`multi_turn_base_0` is of a category"),
        ("bfcl", {**AREA_ANSWER, **AREA, "id": "simple_java_0"}, "`simple_java_0` is of a category"),
        ("bfcl", {**AREA_ANSWER, **AREA, "question": [[{"role": "user"}]]}, "rows.jsonl:1: messages"),
    ],
)  # fmt: skip
def test_what_a_row_lacks_is_one_line(type: str, row: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1: ") as raised:
        task_of(type=type, path=file_of(tmp_path, row))
    assert "\n" not in str(raised.value)
    assert told.split("|")[-1] in str(raised.value)


def test_a_file_or_the_public_data_set_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked_for: list[Any] = []

    def offline(*names: Any, **more: Any) -> None:
        asked_for.append((*names, more["split"]))
        raise ConnectionError("the hub cannot be reached")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    for type in ("gsm8k", "aime", "gpqa", "ifeval", "ifbench"):
        with pytest.raises(CounterpointError, match=r"hf:\S+: cannot be loaded .*: check name, split and network$"):
            task_of(type=type)
    assert asked_for == [
        ("openai/gsm8k", "main", "test"), ("math-ai/aime25", None, "test"),
        ("Idavidrein/gpqa", "gpqa_diamond", "train"), ("google/IFEval", None, "train"),
        ("allenai/IFBench_test", None, "train"),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="task bfcl: path: null: name the benchmark's file"):
        task_of(type="bfcl")


def test_run_files_take_the_names_and_refuse_others(tmp_path: Path) -> None:
    def run(*tasks: Any) -> Any:
        return load_run(None, values={"recipe": "evaluate", "eval": {"tasks": list(tasks)}}, check_format=check_format)

    settings = run({"type": "gsm8k", "path": file_of(tmp_path, SCHOOL)}, {"type": "aime", "path": file_of(tmp_path, {"Problem": "?", "Answer": 7}, name="a.jsonl")})  # fmt: skip
    assert isinstance(settings, EvaluateRun)
    assert [task.name for task in build_tasks(settings.eval)] == ["gsm8k", "aime"]
    with pytest.raises(ConfigError, match="`answers` has no effect: the rows of `gsm8k` hold their answers"):
        run({"type": "gsm8k", "answers": "a.json"})
    with pytest.raises(ConfigError, match="gsm8k"):
        run({"type": "gsm9k"})
