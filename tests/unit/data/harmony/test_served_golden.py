"""Our prompts against the ids that real servers made of the same requests (tests/golden/served/make.py)."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from counterpoint.configs.data_section import ConversionSettings, RenderSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.serving import FORMS
from counterpoint.data.harmony.vocabulary import load_vocabulary

FOLDER = Path(__file__).parents[3] / "golden" / "served"
FILES = sorted(FOLDER.glob("*.jsonl.gz"))
AS_CLIENTS_SEND = ConversionSettings(parallel_calls="together", harmony_system="text")

_PARTS = "the server tokenises each text part alone, or writes a message each; ours joins the texts"
_ARGUMENTS = "a row must have a JSON object as arguments: the model is never trained on others"
_STRINGS_ONLY = "this API takes a string only"
_LOST = "the server loses the text without a word, so ours refuses the row"
EVERYWHERE = {
    "parallel_swapped_results": "ours keeps results in the order of their calls",
    "arguments_not_json": _ARGUMENTS,
    "arguments_list": _ARGUMENTS,
}
"""Requests that every file differs on, and why that is meant."""

_EMPTY = "ours writes a call without arguments as {}"
_VLLM_CHAT = {
    "arguments_empty": _EMPTY,
    "user_parts": _PARTS,
    "user_parts_three_spaces": _PARTS,
    "assistant_parts": _PARTS,
    "loop_thinking": "vLLM reads `reasoning` and `reasoning_content`; a client that sends `thinking` loses it",
    "ids_foreign": "vLLM writes `functions.` without a name; ours pairs the result with the open call",
    "ids_reused_other_tool": "vLLM names both results after the last call of their id",
    "tools_empty_list": "vLLM refuses an empty list; a row may have one",
}
_TEMPLATE = {
    "arguments_empty": _EMPTY,
    **dict.fromkeys(("system_second", "system_third", "system_then_developer", "developer_then_system"), _LOST),
    **dict.fromkeys(("system_late", "system_late_tools", "system_late_after_first", "developer_late"), _LOST),
    **dict.fromkeys(("system_late_empty", "system_late_in_loop", "system_last"), _LOST),
    "system_empty_then_developer": "the template takes the empty one; ours takes the first that holds something",
    **dict.fromkeys(("system_parts", "user_part", "user_parts", "user_parts_three_spaces"), _STRINGS_ONLY),
    **dict.fromkeys(("assistant_parts", "result_part", "result_parts"), _STRINGS_ONLY),
    "tool_description_missing": "the template fails on it; ours declares an empty one, which clients can send",
    "assistant_empty_before_user": "an empty answer behind thoughts is no answer in a row",
}
_CONTINUED = "it continues an assistant message that comes last; ours begins the next one"
_A_USERS = "it makes a user's message of an assistant message that comes last; ours begins the next one"
_PYTHONS = "it makes JSON schema's of Python's names of types, so ours refuses the row"
_MOVED = "it moves the text to the front, before actions that did not see it, so ours refuses the row"
_AS_SYSTEM = "it loses messages of the role developer; ours writes what it can be sent as a system message"
_RENDERED_BY_LLAMA_CPP = ("user_part", "result_part", "tool_description_missing")
DIFFERENT: Mapping[str, Mapping[str, str]] = {
    "vllm": _VLLM_CHAT,
    "vllm_0_30": _VLLM_CHAT,
    "vllm_responses": {
        "arguments_empty": _EMPTY,
        "user_parts": _PARTS,
        "user_parts_three_spaces": _PARTS,
        "assistant_parts": _PARTS,
        "result_part": _STRINGS_ONLY,
        "result_parts": _STRINGS_ONLY,
        "ids_foreign": "vLLM refuses a result of no call; ours pairs it with the open call",
    },
    "reference": {
        "arguments_empty": _EMPTY,
        "system_parts": _PARTS,
        "user_parts": _PARTS,
        "user_parts_three_spaces": _PARTS,
        "assistant_parts": _PARTS,
        "result_part": _STRINGS_ONLY,
        "result_parts": _STRINGS_ONLY,
        "system_then_developer": "its API has no developer role",
        "system_empty_then_developer": "its API has no developer role",
        "developer_late": "its API has no developer role",
        "ids_foreign": "it refuses a result of no call; ours pairs it with the open call",
        "choice_required": "its API knows auto and none",
        "choice_named": "its API knows auto and none",
        "schema_no_parameters": "its API wants parameters",
        "schema_null_parameters": "its API wants parameters",
    },
    "transformers": _TEMPLATE,
    "transformers_5_19": {
        **_TEMPLATE,
        "loop_thinking": "a client that sends the template's own field keeps its thoughts",
    },
    "llama_cpp": {
        **{id_: why for id_, why in _TEMPLATE.items() if id_ not in _RENDERED_BY_LLAMA_CPP},
        **dict.fromkeys(("assistant_last", "assistant_last_no_reasoning"), _CONTINUED),
        **dict.fromkeys(("assistant_last_after_turn", "assistant_last_after_loop"), _CONTINUED),
        "loop_thinking": "it reads `reasoning_content`; a client that sends `thinking` loses it",
        "arguments_floats": "it writes 1.0 as 1, and integers above 64 bits wrongly",
        "schema_default_float_whole": "it writes 3.0 as 3",
    },
    "ollama": {
        **dict.fromkeys(("plain_developer", "system_then_developer", "developer_then_system"), _AS_SYSTEM),
        "system_empty_then_developer": _AS_SYSTEM,
        **dict.fromkeys(("system_late", "system_late_tools", "system_late_after_first", "developer_late"), _MOVED),
        **dict.fromkeys(("system_late_empty", "system_late_in_loop", "system_last"), _MOVED),
        "turns_assistant_twice": "it makes one of both messages and loses thoughts and calls, so ours refuses the row",
        **dict.fromkeys(("assistant_last", "assistant_last_no_reasoning"), _CONTINUED),
        **dict.fromkeys(("assistant_last_after_turn", "assistant_last_after_loop"), _CONTINUED),
        **dict.fromkeys(("system_parts", "user_parts", "user_parts_three_spaces", "assistant_parts"), _PARTS),
        **dict.fromkeys(("result_part", "result_parts"), "it loses the name of the tool of a result in parts"),
        **dict.fromkeys(("loop_thinking", "loop_reasoning_content"), "it reads `reasoning`, other fields are lost"),
        **dict.fromkeys(
            ("name_dotted", "name_dashed"), "it declares the tool under another name; ours refuses the row"
        ),
        "arguments_empty": _EMPTY,
        "ids_foreign": "it writes `functions.` without a name; ours pairs the result with the open call",
        "ids_reused_other_tool": "it names both results after the last call of their id",
    },
    "sglang": {
        **{id_: why for id_, why in _TEMPLATE.items() if id_ not in ("user_part", "result_part")},
        **dict.fromkeys(("assistant_last", "assistant_last_no_reasoning"), _A_USERS),
        **dict.fromkeys(("assistant_last_after_turn", "assistant_last_after_loop"), _A_USERS),
        **dict.fromkeys(("schema_type_unknown", "schema_type_float"), _PYTHONS),
        "choice_none": "it declares no tools then; ours declares them, as the others do",
    },
    "sglang_responses": {
        **dict.fromkeys(("schema_type_unknown", "schema_type_float"), _PYTHONS),
        **dict.fromkeys(("system_then_developer", "developer_late"), "later developer messages have no heading there"),
        "system_empty_then_developer": "later developer messages have no heading there",
        **dict.fromkeys(("system_parts", "user_parts", "user_parts_three_spaces", "assistant_parts"), _PARTS),
        "ids_foreign": "it refuses a result of no call; ours pairs it with the open call",
        **dict.fromkeys(("choice_none", "choice_required", "choice_named"), "it refuses every choice but auto"),
        "tool_description_missing": "it fails on it; ours declares an empty one, which clients can send",
    },
}
"""By form: further requests that differ, and why that is meant."""

TEMPLATE_FORMS = {name for name, form in FORMS.items() if form.declarations != "harmony"}
_CONTROL = re.compile(
    r"<\|(?:start|end|message|channel|constrain|call|return|startoftext|endoftext|endofprompt|reserved_\d+)\|>"
)


def lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(content) if path.suffix == ".gz" else content).splitlines()]


@cache
def requests() -> dict[str, Any]:
    return {line["id"]: line["request"] for line in lines(FOLDER / "requests.jsonl")}


def meant(form: str) -> set[str]:
    """The requests on which ours differs on purpose: those of the tables; and control tokens typed in a text, which are
    control tokens in a server that obeys a template, and text in ours."""
    typed = {id_ for id_, request in requests().items() if _CONTROL.search(json.dumps(request))}
    return {*EVERYWHERE, *DIFFERENT.get(form, {}), *(typed if form in TEMPLATE_FORMS else ())}


def ours(form: str, request: dict[str, Any], date: str) -> list[int] | RowError:
    try:
        conversation = convert(request, "auto", AS_CLIENTS_SEND)
        assert isinstance(conversation, Conversation)
        return Renderer(load_vocabulary(), RenderSettings(serving=form, date=date)).prompt(conversation)  # pyright: ignore[reportArgumentType]
    except RowError as error:
        return error


def agrees(head: Mapping[str, str], answer: Mapping[str, Any]) -> bool:
    """Equal ids; or the server fails, and ours refuses the row because it is not served."""
    prompt = ours(head["form"], requests()[answer["id"]], head["date"])
    if isinstance(prompt, RowError):
        return "error" in answer and prompt.kind == "not_served"
    return prompt == answer.get("ids")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".jsonl.gz"))
def test_prompts_are_those_of_the_server(path: Path) -> None:
    head, *answers = lines(path)
    assert {answer["id"] for answer in answers} == set(requests()), "remake the file: the requests have changed"
    different = {answer["id"] for answer in answers if not agrees(head, answer)}
    assert different == meant(head["form"])


def test_the_forms_say_what_holds_them_against_a_server() -> None:
    made: dict[str, set[str]] = {}
    for path in FILES:
        head, *_ = lines(path)
        made.setdefault(head["form"], set()).add(f"{head['server']} {head['version']}")
    for name, form in FORMS.items():
        for version in made.get(name, set()):
            assert version in form.evidence, f"{name} has golden ids of {version}"
        assert made.get(name) or "golden ids" not in form.evidence


def test_a_thousandth_of_a_prompt_is_a_difference() -> None:
    """The comparison sees a changed id, a missing one, and a refusal that no server shares."""
    head, *answers = lines(FOLDER / "vllm-0.33.0-chat.jsonl.gz")
    answer = next(a for a in answers if a["id"] == "loop_preamble_reasoning")
    assert agrees(head, answer)
    assert not agrees(head, {**answer, "ids": [*answer["ids"][:-1], 0]})
    assert not agrees(head, {**answer, "ids": answer["ids"][1:]})
    assert not agrees(head, {"id": answer["id"], "error": "400"})
    assert not agrees({**head, "form": "vllm_0_30"}, answer)
    assert not agrees({**head, "date": "2025-06-29"}, answer)
