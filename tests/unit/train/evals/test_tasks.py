"""Suites become tasks, and what is wrong with one is reported before anything is sampled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.errors import ConfigError, CounterpointError
from counterpoint.configs.load import load_run
from counterpoint.configs.schema import EvaluateRun, SuiteSettings
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.evals.generators import ONLY_THE_ANSWER
from counterpoint.train.evals.sampling_plan import plan
from counterpoint.train.evals.tasks import Task, build_tasks
from counterpoint.train.scoring.prompts import load_prompts
from counterpoint.train.scoring.scorers import ExpectedCall, Scorers


def tasks_of(*tasks: dict[str, Any], **suite: Any) -> list[Task]:
    return build_tasks(SuiteSettings.model_validate({"tasks": tasks, **suite}))


def rows_file(folder: Path, *rows: Any, name: str = "mine.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def final(text: str) -> Any:
    raw = f"<|channel|>analysis<|message|>.<|end|><|start|>assistant<|channel|>final<|message|>{text}<|return|>"
    return parse_completion(load_vocabulary().encode_with_specials(raw))


def test_arithmetic_is_fixed_by_its_seed() -> None:
    one, other, again = tasks_of(
        {"type": "arithmetic", "size": 50, "options": {"operations": ["add", "subtract", "multiply"], "terms": 3}},
        {"type": "arithmetic", "name": "other", "size": 50, "seed": 1},
        {"type": "arithmetic", "name": "again", "size": 50, "seed": 1},
    )
    assert [p.id for p in other.prompts] == [p.id for p in again.prompts]
    assert len({p.id for p in one.prompts}) == 50
    assert {p.id for p in one.prompts}.isdisjoint({p.id for p in other.prompts})
    for prompt in one.prompts:
        assert prompt.conversation.messages[0].content == f"What is {prompt.id}?"
        assert prompt.reference.answer == str(eval(prompt.id))
        assert prompt.cluster == prompt.id


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"operations": "divide"}, "operations"),
        ({"operations": []}, "operations"),
        ({"digits": 0}, "digits"),
        ({"digits": True}, "digits"),
        ({"terms": 21}, "terms"),
        ({"base": 2}, "no option `base`"),
        ({"digits": 1}, "fewer than 100"),
    ],
)
def test_wrong_arithmetic_is_told(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tasks_of({"type": "arithmetic", "options": options})


def test_reasoning_gym_s_right_answers_are_right() -> None:
    names = ["chain_sum", "gsm_symbolic", "simple_equations", "spell_backward", "number_sequence"]
    settings = [{"type": "reasoning_gym", "generator": name, "size": 4, "seed": 3} for name in names]
    tasks = tasks_of(*settings)
    assert [p.conversation for task in tasks_of(*settings[:2]) for p in task.prompts] == [
        p.conversation for task in tasks[:2] for p in task.prompts
    ]
    assert [task.name for task in tasks] == names
    with Scorers(seconds=60) as scorers:
        for task in tasks:
            assert [p.id for p in task.prompts] == [f"{task.name}-3-{n}" for n in range(4)]
            for prompt in task.prompts:
                assert prompt.conversation.instructions == ONLY_THE_ANSWER
                right = scorers.score("reasoning_gym", final(str(prompt.reference.entry["answer"])), prompt.reference)
                assert right.value == 1


def test_reasoning_gym_s_traps() -> None:
    def task(generator: str, **more: Any) -> dict[str, Any]:
        return {"type": "reasoning_gym", "generator": generator, "size": 2, **more}

    with pytest.raises(ConfigError, match="gives points to texts that are no answer"):
        tasks_of(task("propositional_logic"))
    with pytest.raises(ConfigError, match="did you mean `chain_sum`"):
        tasks_of(task("chain_sums"))
    with pytest.raises(ConfigError, match="min_terms"):
        tasks_of(task("chain_sum", options={"min_terms": -1}))
    (factors,) = tasks_of(task("prime_factorization"))
    assert factors.notices, "its scorer raises on words, and that is told"


def test_files_of_questions_and_answers(tmp_path: Path) -> None:
    gsm8k = rows_file(tmp_path, {"question": "2+3?", "answer": "2+3=<<2+3=5>>5\n#### 5"}, name="gsm8k.jsonl")
    aime = rows_file(tmp_path, {"problem": "Compute x.", "answer": "\\frac{1}{2}", "id": "I-1"}, name="aime.jsonl")
    school, contest = tasks_of(
        {"type": "file", "path": gsm8k, "efforts": ["low"], "samples": 3, "temperature": 0, "max_new_tokens": 9},
        {"type": "file", "path": aime, "scorer": "math"},
        samples=2,
    )
    assert (school.name, school.efforts, school.samples, school.temperature, school.max_new_tokens) == (
        "gsm8k", ("low",), 3, 0, 9,
    )  # fmt: skip
    assert (contest.samples, contest.temperature, contest.max_new_tokens, contest.size) == (2, 1.0, 512, 6)
    assert [p.id for p in school.prompts] == ["gsm8k.jsonl:1"]
    assert [p.id for p in contest.prompts] == ["I-1"]
    with Scorers(seconds=60) as scorers:

        def value(task: Task, text: str) -> float:
            prompt = task.prompts[0]
            assert prompt.scorer is not None
            return scorers.score(prompt.scorer, final(text), prompt.reference).value

        assert [value(school, text) for text in ("It is 5.", "5 or 6")] == [1, 0]
        assert [value(contest, text) for text in ("$\\boxed{0.5}$", "$\\boxed{2}$")] == [1, 0]


def test_tools_and_instructions_are_offered_where_a_row_brings_none(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps([tool]))
    own = {"messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "b"}], "tools": [tool]}
    path = rows_file(tmp_path, {"messages": [{"role": "user", "content": "a"}]}, own)
    (task,) = tasks_of({"type": "file", "path": path, "tools": ["python", str(tools)], "instructions": "Be brief."})
    bare, full = (prompt.conversation for prompt in task.prompts)
    assert (bare.instructions, [t.name for t in bare.tools], bare.builtin_tools) == ("Be brief.", ["add"], ("python",))
    assert (full.instructions, [t.name for t in full.tools], full.builtin_tools) == ("Own.", ["add"], ())


def test_a_scorer_of_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def half(completion, reference):\n    return 0.5\n")
    path = rows_file(tmp_path, {"messages": [{"role": "user", "content": "a"}]})
    (task,) = tasks_of({"type": "file", "path": path, "scorer": f"{tmp_path}/mine.py:half"})
    with Scorers(seconds=60) as scorers:
        assert scorers.score(str(task.prompts[0].scorer), final("x"), task.prompts[0].reference).value == 0.5
    with pytest.raises(ConfigError, match=r"mine\.py:whole"):
        tasks_of({"type": "file", "path": path, "scorer": f"{tmp_path}/mine.py:whole"})


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        ([{"prompt": "a", "id": "x", "answer": 1}, {"prompt": "b", "id": "x", "answer": 1}], {}, "`x`"),
        ([{"prompt": "a", "answer": 1}], {"scorer": "nubmer"}, "nubmer"),
        ([{"prompt": "a", "answer": 1}, {"prompt": "b"}], {"scorer": "number"}, "mine.jsonl:2: .*answer"),
        ([{"prompt": "a"}], {"scorer": "calls"}, "calls"),
        ([{"prompt": "a"}], {"tools": "none.json"}, "none.json"),
        ([{"prompt": 3}], {}, "mine.jsonl:1"),
        ([], {}, "mine.jsonl"),
    ],
)
def test_what_is_wrong_is_told_at_once(tmp_path: Path, rows: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(CounterpointError, match=told):
        tasks_of({"type": "file", "path": rows_file(tmp_path, *rows), **settings})


def test_tasks_have_names_of_their_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="named `arithmetic`"):
        tasks_of({"type": "arithmetic"}, {"type": "arithmetic"})
    path = rows_file(tmp_path, {"prompt": "a", "answer": 1})
    (alone,) = build_tasks(SuiteSettings(prompts=path))
    assert alone.name == "mine"


FILES: list[tuple[dict[str, Any], str, str]] = [
    ({"question": "48 and 24?", "answer": "48+24=<<48+24=72>>72\n#### 72"}, "number", "It is 72."),
    ({"id": "2025-I-1", "problem": "Half of one?", "answer": "\\frac{1}{2}"}, "math", "$0.5$"),
    ({"prompt": "2 + 2?", "answer": 4}, "number", "4"),
    ({"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}, "instructions", "Yes"),
    ({"prompt": "?", "answer": "x"}, "FILE:short", "x"),
]


@pytest.mark.parametrize(("made", "scorer", "right"), FILES, ids=["gsm8k", "aime", "plain", "ifeval", "python"])
def test_files_of_every_kind_are_scored(tmp_path: Path, made: dict[str, Any], scorer: str, right: str) -> None:
    (tmp_path / "mine.py").write_text("def short(completion, reference):\n    return len(completion.final) < 4\n")
    (tmp_path / "rows.jsonl").write_text(json.dumps(made) + "\n")
    scorer = scorer.replace("FILE", str(tmp_path / "mine.py"))
    chosen = {"scorer": scorer} if scorer == "math" or ":" in scorer else {}
    task = {"type": "file", "path": str(tmp_path / "rows.jsonl"), **chosen}
    [built] = build_tasks(SuiteSettings.model_validate({"tasks": [task]}))
    [prompt] = built.prompts
    assert prompt.scorer == scorer
    ids = load_vocabulary().encode_with_specials(f"<|channel|>final<|message|>{right}<|return|>")
    with Scorers(60) as scorers:
        assert scorers.score(scorer, parse_completion(ids), prompt.reference).value == 1.0
        wrong = load_vocabulary().encode_with_specials("<|channel|>final<|message|>No, 99.<|return|>")
        assert scorers.score(scorer, parse_completion(wrong), prompt.reference).value == 0.0


def test_bfcl_s_truth_is_read_under_its_own_name_and_dots_belong_to_functions(tmp_path: Path) -> None:
    tool = {"name": "math.area", "description": "", "parameters": {"type": "dict", "properties": {"base": {"type": "integer"}}}}  # fmt: skip
    row = {
        "messages": [{"role": "user", "content": "Area?"}],
        "tools": [tool],
        "ground_truth": [{"math.area": {"base": [10], "unit": ["", "cm"]}}],
    }
    (tmp_path / "bfcl.jsonl").write_text(json.dumps(row) + "\n")
    [prompt] = load_prompts(str(tmp_path / "bfcl.jsonl"))
    assert prompt.scorer == "calls"
    name = "functions.math.area"
    assert prompt.reference.calls == (ExpectedCall(name, {"base": [10], "unit": ["", "cm"]}, any_of=True),)
    text = f'<|channel|>commentary to={name} <|constrain|>json<|message|>{{"base": 10}}<|call|>'
    made = parse_completion(load_vocabulary().encode_with_specials(text), tools=prompt.conversation.tools)
    with Scorers() as scorers:
        assert scorers.score("calls", made, prompt.reference).value == 1.0


def test_an_instruction_that_nobody_knows_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    row = {"id": "a", "prompt": "?", "instruction_id_list": ["punctuation:no_coma"], "kwargs": [{}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    suite = {"tasks": [{"type": "file", "path": str(tmp_path / "rows.jsonl")}], "scorer_seconds": 60}
    with pytest.raises(
        ConfigError, match=r"rows: a: neither IFEval nor IFBench has an instruction `punctuation:no_coma`"
    ):
        build_tasks(SuiteSettings.model_validate(suite))


def test_rows_that_ask_the_same_are_one_cluster(tmp_path: Path) -> None:
    rows = [{"id": id, "prompt": text, "answer": 1} for id, text in (("a", "x?"), ("b", "y?"), ("c", "x?"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = {"tasks": [{"type": "file", "path": str(tmp_path / "rows.jsonl")}]}
    [built] = build_tasks(SuiteSettings.model_validate(suite))
    assert [prompt.cluster for prompt in built.prompts] == ["a", "b", "a"]


@pytest.mark.parametrize(("name", "sizes"), [("guard", [25, 42]), ("reasoning", [100] * 6)])
def test_shipped_suites_can_be_planned(name: str, sizes: list[int]) -> None:
    run = load_run(f"eval/{name}")
    assert isinstance(run, EvaluateRun)
    tasks = build_tasks(run.eval)
    assert [len(task.prompts) for task in tasks] == sizes
    assert len(plan(tasks, Renderer(load_vocabulary()), run.seed)) == sum(task.size for task in tasks)
    if name == "guard":
        probes = [prompt.conversation.metadata for task in tasks for prompt in task.prompts]
        assert all(("skill" in probe) != ("pair" in probe) for probe in probes)


@pytest.mark.parametrize(
    ("scorer", "right"),
    [("number", [1, 1, 1, 0]), ("lm_eval_gsm8k", [1, 1, 1, 0]), ("lm_eval_gsm8k_strict", [0, 1, 0, 0])],
)
def test_gsm8k_s_rows_are_read_by_the_rule_that_a_task_names(tmp_path: Path, scorer: str, right: list[int]) -> None:
    """As openai/gsm8k has them: `question`, and an `answer` that works it out and ends in `#### 72`."""
    row = {"question": "How many clips did she sell?", "answer": "In May 48/2 = <<48/2=24>>24.\n#### 72"}
    named = {"scorer": scorer} if scorer != "number" else {}
    (task,) = tasks_of({"type": "file", "path": rows_file(tmp_path, row), **named})
    (prompt,) = task.prompts
    assert prompt.scorer == scorer
    with Scorers() as scorers:
        said = ("She sold 72.", "#### 72", "The answer is 72 clips", "72, of which 24 in May")
        assert [scorers.score(scorer, final(text), prompt.reference).value for text in said] == right
