r"""Public benchmarks by their short names: the fields of their real rows, the prompt, the truth, the defaults.

    gsm8k      openai/gsm8k: `question`, `answer` that ends in `#### 1,234`
    aime       math-ai/aime25 and others: `problem` or `question`, `answer` from 0 to 999, also capitalized
    gpqa       Idavidrein/gpqa: `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`, in an order of their own
    ifeval     google/IFEval: `prompt`, `instruction_id_list`, `kwargs`
    ifbench    allenai/IFBench_test: the same fields
    bfcl       the Berkeley Function Calling Leaderboard: `question`, `function`; `ground_truth` in a file of answers

Samples and lengths of AIME and GPQA are those of OpenAI's own evaluation of gpt-oss (`gpt_oss/evals`).
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import ConfigError, DataError
from counterpoint.configs.eval_section import ReadyTask
from counterpoint.configs.problems import shown
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.read import convert_row, source_rows
from counterpoint.data.rows.row import BadRow, RawRow, read
from counterpoint.train.scoring.prompts import EvalPrompt, prompt_of

_IDS = ("id", "ID", "key", "Record ID")
_NUMBER = re.compile(r"####\s*-?[$]?\d")
_OF_AIME = re.compile(r"\$?\s*(\d{1,3})(?:\.0)?(?:\s*(?:\^\s*\{?\\circ\}?|°))?\s*\$?")
_OTHER_BFCL = re.compile(r"(?:simple_)?java|multi_turn|memory|web_search")
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""What BFCL calls a type of JSON schema as Python does; `any` is none."""


@dataclass(frozen=True, slots=True)
class Ready:
    """row: from a row of the data set one with `prompt` or `messages` and the truth. path: the public data set; None
    where it is no data set of rows. ask: the end of the user's message, which `instructions` of the task replaces.
    defaults: of the task's settings that are null."""

    row: Callable[[Mapping[str, Any], str], dict[str, Any]]
    path: str | None
    defaults: Mapping[str, Any]
    ask: str = ""


def settled(task: ReadyTask) -> ReadyTask:
    """The task with the benchmark's defaults where its settings are null. ConfigError without a file."""
    ready = READY[task.type]
    if task.path is None and ready.path is None:
        raise ConfigError(f"task {task.name or task.type}: path: null: name the benchmark's file")
    values = {"path": ready.path, **ready.defaults}
    return task.model_copy(update={key: value for key, value in values.items() if getattr(task, key) is None})


def ready_prompts(task: ReadyTask) -> list[EvalPrompt]:
    """The items of a settled task, in the order of its file. DataError for a row without the benchmark's fields."""
    assert task.path is not None
    ready = READY[task.type]
    answers = _answers(task) if task.type == "bfcl" else {}
    ask = ready.ask if task.instructions is None else ""
    prompts: list[EvalPrompt] = []
    for row in _objects(SourceSettings(path=task.path, rows=task.size)):
        known = answers.get(str(row.value.get("id")))
        made = ready.row(row.value if known is None else {**row.value, **known}, row.source)
        if "prompt" in made:
            made["prompt"] += ask
        found = convert_row(replace(row, value=made), "rl" if "prompt" in made else "openai", ConversionSettings())
        if isinstance(found, BadRow):
            raise DataError(found.message)
        assert isinstance(found, Conversation)
        own = next((row.value[key] for key in _IDS if isinstance(row.value.get(key), str | int)), row.source)
        prompts.append(replace(prompt_of(found), id=str(own)))
    if not prompts:
        raise DataError(f"{task.path}: no rows")
    if max(Counter(prompt.id for prompt in prompts).values()) > 1:
        prompts = [replace(prompt, id=prompt.conversation.source) for prompt in prompts]
    return prompts


def _objects(spec: SourceSettings) -> Iterator[RawRow]:
    for each in source_rows(spec):
        row = read(each)
        if isinstance(row, BadRow):
            raise DataError(row.message)
        if not isinstance(row.value, dict):
            raise DataError(f"{row.source}: not an object with the fields of a row")
        yield row


def _field(row: Mapping[str, Any], source: str, *names: str, kind: type | tuple[type, ...] = str) -> Any:
    """The first of the fields that is there. DataError names them, and what the row has."""
    found = next((name for name in names if row.get(name) is not None), None)
    if found is None:
        wanted = " or ".join(f"`{name}`" for name in names)
        there = ", ".join(f"`{name}`" for name in row) or "nothing"
        raise DataError(f"{source}: {wanted} is missing: the row has {there}")
    value = row[found]
    if isinstance(value, bool) or not isinstance(value, kind) or value in ("", []):
        raise DataError(f"{source}: {found}: {shown(value)} is not what the benchmark has there")
    return value


def _gsm8k(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    question, answer = _field(row, source, "question"), _field(row, source, "answer")
    if not _NUMBER.search(answer):
        raise DataError(f"{source}: answer: {shown(answer)} does not end in `#### ` and a number")
    return {"prompt": question.strip(), "answer": answer.rpartition("####")[2].strip().replace(",", "")}


def _aime(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    question = _field(row, source, "problem", "Problem", "question", "Question")
    answer = _field(row, source, "answer", "Answer", kind=(str, int, float))
    found = _OF_AIME.fullmatch(str(answer).strip())
    if found is None:
        raise DataError(f"{source}: answer: {shown(answer)} is no whole number from 0 to 999, as AIME's are")
    return {"prompt": question.strip(), "answer": str(int(found[1]))}


def _gpqa(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    names = ("Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3)))
    question, *options = (_field(row, source, name).strip() for name in ("Question", *names))
    if len(set(options)) < len(options):
        raise DataError(f"{source}: two of the options are the same: which is right cannot be told by its letter")
    right = options[0]
    options.sort()
    seed = hashlib.sha256("\0".join((question, *options)).encode()).digest()
    random.Random(seed).shuffle(options)
    listed = "\n".join(f"({letter}) {option}" for letter, option in zip("ABCD", options, strict=True))
    return {
        "prompt": f"{question}\n\n{listed}",
        "options": dict(zip("ABCD", options, strict=True)),
        "answer": "ABCD"[options.index(right)],
    }


def _instructed(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    prompt = _field(row, source, "prompt")
    names = _field(row, source, "instruction_id_list", kind=list)
    arguments = _objects_in(row, source, "kwargs")
    if len(names) != len(arguments):
        raise DataError(f"{source}: kwargs: not one object for each of the {len(names)} of `instruction_id_list`")
    return {"prompt": prompt, "instruction_id_list": names, "kwargs": arguments}


def _bfcl(row: Mapping[str, Any], source: str) -> dict[str, Any]:
    id, turns = _field(row, source, "id"), _field(row, source, "question", kind=list)
    if len(turns) != 1 or _OTHER_BFCL.match(id):
        raise DataError(f"{source}: `{id}` is of a category that is not scored here: take files of one turn in Python")
    functions = _objects_in(row, source, "function") if row.get("function") != [] else []
    if "irrelevance" in id:
        calls: list[Any] = []
    elif "ground_truth" in row:
        needed = {f.get("name"): _object(f.get("parameters")).get("required") or () for f in functions}
        calls = [
            {_plain(name): _accepted(values, needed.get(name, ())) for name, values in call.items()}
            for call in _objects_in(row, source, "ground_truth")
        ]
    else:
        raise DataError(f"{source}: no `ground_truth` of `{id}`: name the file of answers (`answers` of the task)")
    tools = [
        {**each, "name": _plain(_field(each, source, "name")), "parameters": _schema(each.get("parameters"))}
        for each in functions
    ]
    return {"messages": turns[0], "tools": [{"type": "function", "function": each} for each in tools], "calls": calls}


def _objects_in(row: Mapping[str, Any], source: str, name: str) -> list[dict[str, Any]]:
    listed = _field(row, source, name, kind=list)
    if not all(isinstance(each, dict) for each in listed):
        raise DataError(f"{source}: {name}: not a list of objects alone")
    return listed


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _accepted(values: Any, needed: Collection[str]) -> dict[str, Any]:
    """The accepted values of a call's arguments. An empty string among them lets an argument be left out, though not
    one that the function requires: a blank stands there, which is compared alike."""
    return {
        key: [" " if value == "" else value for value in each] if key in needed and isinstance(each, list) else each
        for key, each in _object(values).items()
    }


def _plain(name: str) -> str:
    """BFCL gives models of OpenAI's API its functions without dots in their names, and reads the calls so."""
    return name.replace(".", "_")


def _schema(given: Any) -> Any:
    """A schema with the types of JSON schema."""
    if not isinstance(given, dict):
        return given
    out = {key: value for key, value in given.items() if key != "type" or value != "any"}
    if isinstance(out.get("type"), str):
        out["type"] = _TYPES.get(out["type"], out["type"])
    if isinstance(out.get("properties"), dict):
        out["properties"] = {name: _schema(each) for name, each in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if key in out:
            out[key] = _schema(out[key])
    return out


def _answers(task: ReadyTask) -> dict[str, dict[str, Any]]:
    """From each id its `ground_truth`: of `answers`, else of the file of the same name in `possible_answer`."""
    assert task.path is not None
    place = Path(task.path)
    beside = place.parent / "possible_answer" / place.name
    path = task.answers or (str(beside) if beside.is_file() else None)
    if path is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for row in _objects(SourceSettings(path=path)):
        found[_field(row.value, row.source, "id")] = {
            "ground_truth": _field(row.value, row.source, "ground_truth", kind=list)
        }
    return found


_BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
READY: Mapping[str, Ready] = {
    "gsm8k": Ready(
        _gsm8k,
        "hf:openai/gsm8k@main:test",
        {"scorer": "number", "samples": 1, "max_new_tokens": 4096},
        _BOXED,
    ),
    "aime": Ready(
        _aime,
        "hf:math-ai/aime25:test",
        {"scorer": "number", "samples": 8, "max_new_tokens": 32768},
        _BOXED,
    ),
    "gpqa": Ready(
        _gpqa,
        "hf:Idavidrein/gpqa@gpqa_diamond:train",
        {"scorer": "choice", "samples": 8, "max_new_tokens": 32768},
        "\n\nEnd with a line `Answer: ` and the letter of the right option: A, B, C or D.",
    ),
    "ifeval": Ready(
        _instructed,
        "hf:google/IFEval:train",
        {"scorer": "instructions_all", "samples": 1, "max_new_tokens": 8192},
    ),
    "ifbench": Ready(
        _instructed,
        "hf:allenai/IFBench_test:train",
        {"scorer": "instructions_all_loose", "samples": 1, "max_new_tokens": 8192},
    ),
    "bfcl": Ready(_bfcl, None, {"scorer": "calls", "samples": 1, "max_new_tokens": 4096}),
}
