"""The settings of every recipe and what each does: a row is a setting, a value that is not its default, the recipes, and
the effect that is seen (a probe of tests/settings_probes.py), the refusal, or the test that sees it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Any

TRAINING = ("sft", "dpo", "grpo")
READING = ("sft", "dpo")
OF_EVALUATIONS = ("eval.rewards[", "eval.tasks[")
"""The hook has these of the same classes, and hands them to the same functions: their rows are of `evaluate`."""


@dataclass(frozen=True)
class Row:
    """setting: dotted, `[kind]` where `type` chooses a class. base: settings that both runs have, by dotted name. refused:
    a part of the message. seen_in: `file::test` that sees the effect. lines: of the data file that both runs read. stops:
    a part of what the run with the value ends with, or the run without it."""

    setting: str
    value: Any
    effect: str
    probe: str = ""
    recipes: tuple[str, ...] = ()
    base: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    seen_in: str = ""
    lines: tuple[dict[str, Any], ...] = ()
    stops: str = ""


FULL = {"lora.enabled": False}
ATTENTION = {"lora.experts": False}
USER = {"role": "user", "content": "What is 40 + 2?"}
END = ({"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"})


def call(name: str = "f", arguments: Any = '{"n": 1}', id: str = "1") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def called(*calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": list(calls), **more}


def said(**message: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", **message}]}


def result(id: str = "1", content: str = "3") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": content}


def chat(*messages: dict[str, Any], **row: Any) -> tuple[dict[str, Any], ...]:
    return ({"messages": [USER, *messages, *END], **row},)


HARMONY_SYSTEM = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\nCurrent date: 2025-03-04\n\n"
    "Reasoning: high\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
)
TWO = chat(called(call(id="1"), call(id="2", arguments='{"n": 2}')), result("1"), result("2", "5"))
ODD_TOOL = {"type": "function", "function": {"name": "f.x!", "parameters": {"type": "object", "properties": {}}}}
ODD_SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"], "enum": ["x", None], "default": None}}}
A_TOOL = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": ODD_SCHEMA}}
A_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
PLAIN_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "F.",
        "parameters": {"type": "object", "properties": {"n": {"type": "number"}}},
    },
}
THINKS = {"role": "assistant", "reasoning_content": "Let me add.", "content": "42"}
LOOP = {"messages": [USER, called(call(arguments='{"n":1}'), reasoning_content="I look."), result()], "answer": 3}
"""Ends in an open tool loop."""

STOPS = {
    "calls_without_result": "a call without a result", "unmatched_results": "is that of no open call",
    "double_encoded_arguments": "encoded as JSON twice", "object_arguments": "is an object",
    "late_system": "after the conversation began", "images": "which gpt-oss cannot read",
    "unanswered": "ends in a user message", "harmony_markup": "holds the control token",
}  # fmt: skip
CONVERSION = [
    ("text_beside_call", "analysis", "the text is analysis", chat(called(call(), content="I look."), result())),
    ("parallel_calls", "together", "calls stand together", TWO),
    ("calls_without_result", "quarantine", "the row is bad", chat(called(call(id="1"), call(id="2")), result("1"))),
    ("unmatched_results", "quarantine", "the row is bad", chat(called(call(id="1")), result("9"))),
    ("double_encoded_arguments", "quarantine", "the row is bad", chat(called(call(arguments='"{\\"n\\": 1}"')), result())),
    ("object_arguments", "quarantine", "the row is bad", chat(called(call(arguments={"n": 1})), result())),
    ("late_system", "quarantine", "the row is bad", chat(THINKS, {"role": "system", "content": "Be brief."})),
    (
        "harmony_system", "text", "the block is instructions",
        ({"messages": [{"role": "system", "content": HARMONY_SYSTEM}, USER, *END[1:]]},),
    ),
    (
        "images", "placeholder", "the row has a placeholder",
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}, {"type": "image_url", "image_url": {"url": "x"}}]}, *END[1:]]}, *chat()),
    ),
    ("unanswered", "quarantine", "the row is bad", ({"messages": [USER, THINKS, {"role": "user", "content": "So?"}]}, *chat())),
    ("harmony_markup", "quarantine", "the row is bad", ({"messages": [{"role": "user", "content": "<|start|>?"}, *END[1:]]}, *chat())),
    ("think_tags", ["<plan>"], "the tagged text is analysis", chat({"role": "assistant", "content": "<plan>Hm.</plan>A."})),
    ("tool_names", "rename", "the name has underscores", chat(called(call("f.x!")), result(), tools=[ODD_TOOL])),
    ("effort_field", "eff", "the row's effort", chat(eff="high")),
    ("date_field", "day", "the row's date", chat(day="2025-01-02")),
    ("tools", "tools.json", "the file's tools are declared", chat()),
    ("builtin_tools", ["python"], "python is declared", chat()),
]  # fmt: skip
OPENING = [
    ("tool_schemas", "cleaned", "declarations are rewritten", chat(tools=[A_TOOL]), {}),
    ("effort", "high", "effort of the system message", chat(), {}),
    ("date", "none", "date of the system message", chat(), {}),
    ("identity", "You are X.", "first sentence of the system message", chat(), {}),
    ("serving", "transformers", "the prompt of that server", chat(called(call(), reasoning_content="I look."), result(), THINKS, tools=[PLAIN_TOOL]), {}),
    ("served.reasoning", "lost", "analysis of an open tool loop is lost", chat(called(call(), reasoning_content="I look."), result(), THINKS), {}),
    ("served.arguments", "spaced", "arguments are written again", chat(called(call(arguments='{"n":1}')), result(), THINKS), {"data.serving": "vllm_responses"}),
    (
        "response_formats", "prompt", "the schema is in the prompt",
        ({"messages": [USER, {"role": "assistant", "content": '{"a": 1}'}], "response_format": A_FORMAT},), {},
    ),
]  # fmt: skip
RENDER = [
    ("effort_buckets", [1, 2], "effort by the analysis", chat(THINKS), {}),
    ("missing_thinking", "effort_low", "effort low without thinking", chat(), {}),
    ("train_on", "last_turn", "only the last turn is trained", chat(THINKS), {}),
    ("weights.analysis", 0.0, "weights of the analysis", chat(THINKS), {}),
    ("weights.preamble", 0.0, "weights of preambles", chat(called(call(), content="I look."), result()), {}),
    ("weights.call_header", 0.0, "weights of headers", chat(called(call()), result()), {}),
    ("weights.call_arguments", 0.0, "weights of arguments", chat(called(call()), result()), {}),
    ("weights.final", 0.0, "weights of finals", chat(THINKS), {}),
    ("weights.terminators", 0.0, "weights of terminators", chat(THINKS), {}),
    ("call_style", "role", "recipients behind the role", chat(called(call()), result()), {}),
]
GIVEN = (
    {
        "prompt": [USER],
        "chosen": [called(call(), content="I look.", reasoning_content="Hm."), result(), THINKS],
        "rejected": [called(call(), content="I look.", reasoning_content="Hm."), result(), {**THINKS, "content": "41"}],
    },
)
MADE = {"dpo.negatives": ["wrong_terminator", "content_type", "leaked_analysis"], "dpo.negatives_each": 1}
LONG = chat(THINKS, USER, THINKS, USER, THINKS)
TABLE = {
    "q": "2 + 2?", "q2": "3 + 3?", "a": "4", "a2": "6", "t": "Add.", "c": "Context.", "h": [["1?", "1"]], "sys": "Be brief.",
    "calls": '{"name": "f", "arguments": {}}', "offered": [A_TOOL], "no": "5", "no2": "7",
    "m": [{"who": "user", "text": "2?", "other": "9?"}, {"who": "assistant", "text": "2", "other": "8", "who2": "user"}],
    "m2": [{"who": "user", "text": "7?"}, {"who": "assistant", "text": "7"}],
}  # fmt: skip
QA = {"prompt": "q", "answer": "a"}
CHATS = {"messages": "m", "role": "who", "content": "text"}
COLUMNS = [
    ("messages", CHATS, {**CHATS, "messages": "m2"}), ("role", CHATS, {**CHATS, "role": "other"}),
    ("content", CHATS, {**CHATS, "content": "other"}), ("prompt", QA, {**QA, "prompt": "q2"}),
    ("context", QA, {**QA, "context": "c"}), ("history", QA, {**QA, "history": "h"}), ("answer", QA, {**QA, "answer": "a2"}),
    ("thinking", QA, {**QA, "thinking": "t"}), ("calls", QA, {"prompt": "q", "calls": "calls"}),
    ("system", QA, {**QA, "system": "sys"}), ("tools", QA, {**QA, "tools": "offered"}),
    ("chosen", QA, {"prompt": "q", "chosen": "a2", "rejected": "no"}),
    ("rejected", QA, {"prompt": "q", "chosen": "a", "rejected": "no2"}),
]  # fmt: skip
BAD_TARGETS: dict[str, tuple[str, dict[str, Any]]] = {
    "structure": ("keep", said(channel="final", content_type="json", content="{}")),
    "markup": ("quarantine", said(content="It writes <|start|>.")),
    "ending": ("keep", {"text": "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>final<|message|>a<|call|>"}),
    "policy": ("quarantine", said(content="42")),
    "tools": ("keep", said(channel="commentary", recipient="get", content="{}")),
    "arguments": ("keep", said(channel="commentary", recipient="functions.f", content_type="<|constrain|>json", content="3")),
    "response_format": ("keep", {**said(content="3"), "response_format": A_FORMAT}),
    "text": ("keep", said(content="  ")),
}  # fmt: skip
"""The group of a rule: the setting that is not its default, and a row whose target breaks such a rule."""
ROLES = {"system": "boss", "user": "customer", "assistant": "agent", "call": "asks", "tool": "answers"}
THREAD = (
    {
        "messages": [
            {"role": "boss", "content": "Be brief."}, {"role": "customer", "content": "2?"},
            {"role": "asks", "content": '{"name": "f", "arguments": {}}'}, {"role": "answers", "content": "2"},
            {"role": "agent", "content": "2"}, {"role": "customer", "content": "3?"}, {"role": "agent", "content": "3"},
        ]
    },
)  # fmt: skip


def rows_of_data() -> list[Row]:
    made = []
    for name, value, effect, lines in CONVERSION:
        made.append(
            Row(
                f"data.{name}",
                value,
                effect,
                "data",
                ("sft", "dpo", "distill"),
                MADE,
                lines=lines,
                stops=STOPS.get(name, ""),
            )
        )
    for name, value, effect, lines, base in OPENING:
        for recipes in (READING, ("distill",)):
            read = (LOOP,) if (name, recipes) == ("served.reasoning", ("distill",)) else lines
            made.append(Row(f"data.{name}", value, effect, "data", recipes, {**MADE, **base}, lines=read))
    for name, value, effect, lines, base in RENDER:
        if name.startswith("weights."):
            made.append(Row(f"data.{name}", value, effect, "data", ("sft",), base, lines=lines))
            made.append(Row(f"data.{name}", value, "what of a pair is compared", "data", ("dpo",), base, lines=GIVEN))
        else:
            made.append(Row(f"data.{name}", value, effect, "data", READING, {**MADE, **base}, lines=lines))
    made += [
        Row("data.tool_schemas", "cleaned", "declarations are rewritten", "data", ("grpo",), {"data.train[file].path": "tools.jsonl"}),
        Row("data.effort", "high", "effort of the prompts", "data", ("grpo",)),
        Row("data.date", "none", "date of the prompts", "data", ("grpo",)),
        Row("data.identity", "You are X.", "first sentence of the prompts", "data", ("grpo",)),
        Row("data.serving", "transformers", "what each action is given", recipes=("grpo",), seen_in="tests/unit/train/episodes/test_episodes.py::test_a_server_s_form_gives_each_action_the_prompt_that_a_client_would_get"),
        *(Row(f"data.served.{name}", value, "what clients send back", recipes=("grpo",), seen_in="tests/unit/train/episodes/test_episodes.py::test_what_clients_send_back_is_what_the_next_action_is_given") for name, value in (("reasoning", "lost"), ("arguments", "spaced"))),
        Row("data.served.reasoning", "lost", "is refused", recipes=(*READING, "grpo", "distill"), base={"data.serving": "sampled"}, refused="it would change nothing"),
        Row("data.response_formats", "prompt", "the schema is in the prompt", "data", ("grpo",), {"data.train[file].path": "formats.jsonl"}),
        Row("data.max_tokens", 110, "longer rows are left out", "data", READING, MADE, lines=(*LONG, *chat())),
        Row("data.max_tokens", 60, "a longer prompt ends the run", "data", ("grpo",), stops="more than data.max_tokens"),
        Row("data.too_long", "error", "a long row stops the run", "data", READING, {**MADE, "data.max_tokens": 110}, lines=(*LONG, *chat()), stops="longer than data.max_tokens"),
        Row("data.too_long", "cut", "a long row is cut", seen_in="tests/unit/data/dataset/test_cut.py::test_a_long_conversation_ends_behind_the_last_turn_that_fits", recipes=("sft",)),
        *(Row(f"data.bad_targets.{group}", value, "what becomes of a broken target", "data", READING, {**MADE, "data.bad_rows_limit": 1.0}, lines=(row, {"messages": [USER, THINKS]})) for group, (value, row) in BAD_TARGETS.items()),
        Row("data.overlap", "both", "rows on both sides", seen_in="tests/unit/data/dataset/test_split.py::test_rows_on_both_sides_are_told_and_held_out", recipes=("sft",)),
        Row("data.overlap", "both", "pairs on both sides", seen_in="tests/unit/data/dataset/test_split.py::test_pairs_are_split_and_kept_apart_alike", recipes=("dpo",)),
        Row("data.overlap", "both", "prompts on both sides", seen_in="tests/unit/recipes/test_grpo_prompts.py::test_prompts_on_both_sides_are_told_and_held_out", recipes=("grpo",)),
        Row("data.valid.path", "20%", "a share of the training rows is held out", seen_in="tests/unit/data/dataset/test_split.py::test_a_share_is_held_out_by_prompt_and_seed_whatever_the_order", recipes=("sft",)),
        Row("data.valid.path", "20%", "a share of the pairs is held out", seen_in="tests/unit/data/dataset/test_split.py::test_pairs_are_split_and_kept_apart_alike", recipes=("dpo",)),
        Row("data.shuffle", False, "order of the sampler", "arguments"),
        Row("data.bad_rows_limit", 0.0, "one bad row stops the run", "data", READING, {**MADE, "data.bad_rows_limit": 1.0}, lines=(*chat(), {"messages": 3}), stops="1 of 2 rows are bad"),
        Row("data.pack_tokens", 9000, "rows are packed", "data", lines=(*chat(), *chat(THINKS))),
        Row("data.tree", False, "one row a turn", "data", lines=chat(THINKS)),
    ]  # fmt: skip
    for where, probe, recipes in (
        ("data.train", "data", ("sft", "dpo", "distill")), ("data.valid", "held_out", READING)
    ):  # fmt: skip
        made += [
            Row(f"{where}.path", "other.jsonl", "another file is read", probe, recipes, MADE),
            Row(f"{where}.format", "alpaca", "rows are read as that", probe, recipes, MADE, lines=({"instruction": "2?", "output": "2", "messages": [USER, *END[1:]]},)),
            Row(f"{where}.weight", 2.0, "rows are taken twice", probe, recipes, MADE),
            Row(f"{where}.rows", 1, "fewer rows are read", probe, recipes, MADE, lines=(*chat(), *chat(THINKS))),
        ]  # fmt: skip
        for name, before, after in COLUMNS:
            for recipe in recipes:
                row = Row(f"{where}.columns.{name}", after, "that column is read", probe, (recipe,), {**MADE, f"{where}.columns": before}, lines=(TABLE,))  # fmt: skip
                if (name, recipe) == ("thinking", "distill"):
                    row = replace(row, effect="is refused", probe="", refused="would not be read")
                stops = "a preference pair" if name in ("chosen", "rejected") and recipe != "dpo" else ""
                stops = "an unknown role" if name == "role" else stops
                stops = "no row has a question" if (name, recipe) == ("calls", "distill") else stops
                made.append(replace(row, stops=stops))
        for name in ROLES:
            rest = {role: who for role, who in ROLES.items() if role != name}
            base = {**MADE, f"{where}.roles": ROLES}
            made.append(
                Row(
                    f"{where}.roles.{name}",
                    rest,
                    "who speaks is another",
                    probe,
                    recipes,
                    base,
                    lines=THREAD,
                    stops="an unknown role",
                )
            )
    return [*made, Row("data.valid.name", "named", "a set of its own", "held_out", READING, MADE)]


RUN_TOOLS = {
    "functions": ["mine.py:nothing"], "mcp": ["server"], "python": True, "seconds": 1.0,
    "browser.corpus": "pages", "browser.view_tokens": 9,
}  # fmt: skip
ONE_TOOL = {"functions": ["mine.py:half"], "browser": {"corpus": "other_pages"}}


def rows_of_tasks() -> list[Row]:
    """Tasks: of `grpo` to learn from and held out, of `evaluate`."""
    made = []
    for where, probe, recipes in (
        ("data.train", "data", ("grpo",)),
        ("data.valid", "held_out", ("grpo",)),
        ("eval.tasks", "plan", ("evaluate",)),
    ):
        for kind in ("probes", "file", "gsm8k", "arithmetic", "reasoning_gym"):
            path = f"{where}[{kind}]"
            base: dict[str, Any] = {f"{path}.size": 3}
            base |= {f"{path}.path": "prompts.jsonl"} if kind in ("probes", "file") else {}
            base |= {f"{path}.path": "gsm8k.jsonl"} if kind == "gsm8k" else {}
            base |= {f"{path}.generator": "chain_sum"} if kind == "reasoning_gym" else {}

            def row(
                name: str,
                value: Any,
                effect: str,
                least: dict[str, Any] = base,
                path: str = path,
                probe: str = probe,
                recipes: tuple[str, ...] = recipes,
                **more: Any,
            ) -> None:
                probe = "" if "refused" in more else more.pop("probe", probe)
                made.append(
                    Row(f"{path}.{name}", value, effect, probe, recipes, {**least, **more.pop("base", {})}, **more)
                )

            row("type", "arithmetic" if kind != "arithmetic" else "probes", "items of another source")
            row("name", "mine", "name of the task")
            row("size", 2, "number of items")
            row("scorer", "exact", "how items are scored")
            row("instructions", "Be brief.", "developer message")
            row("tools.declared", ["python"], "declared tools")
            row("follow_ups", ["Sure?"], "later turns", **({"probe": "tasks"} if where == "eval.tasks" else {}))
            drawn = (("efforts", ["low"]), ("samples", 2), ("max_new_tokens", 9), ("temperature", 0.5))
            for name, value in (*drawn, *TRUNCATED.items()):
                if where == "eval.tasks":
                    row(name, value, "what is drawn")
                else:
                    row(name, value, "is refused", refused="of a task is for evaluations")
            for name, value in RUN_TOOLS.items():
                if where == "eval.tasks":
                    row(
                        f"tools.{name}",
                        value,
                        "tools that run",
                        probe="tasks",
                        base={f"{path}.tools": copy.deepcopy(ONE_TOOL)},
                    )
                else:
                    others = {"seconds": "times nothing", "browser.view_tokens": "browser.corpus` is missing"}
                    told = others.get(name, "of a task are run in evaluations")
                    row(f"tools.{name}", value, "is refused", refused=told)
            for name, value in (
                ("rewards", ["channel"] if kind == "probes" else []),
                ("calls", 1),
                ("completion_tokens", 9),
            ):
                if where == "eval.tasks":
                    given: dict[str, Any] = {f"{path}.tools": copy.deepcopy(ONE_TOOL)}
                    given |= {"eval.rewards[channel].weight": 0.5} if name == "rewards" else {}
                    stops = "eval.rewards: nothing takes them" if name == "rewards" else ""
                    row(name, value, "how it is rolled out", probe="tasks", base=given, stops=stops)
                else:
                    row(name, value, "is refused", refused="of a task is for evaluations")
            if kind in ("probes", "file"):
                row("path", "other_prompts.jsonl", "another file is read")
                row("format", "nothing", "is refused", refused="nothing")
                row("truth", "id", "the field of the right answer", base={f"{path}.path": "prompts.jsonl"})
            elif kind == "gsm8k":
                row("path", "other_gsm8k.jsonl", "another file is read")
                row("answers", "answers.json", "is refused", refused="`answers` has no effect: the rows of `gsm8k`")
            else:
                row(
                    "options",
                    {"digits": 1} if kind == "arithmetic" else {"min_terms": 5, "max_terms": 6},
                    "other items",
                )
                row("seed", 5, "other items")
            if kind == "reasoning_gym":
                row("generator", "basic_arithmetic", "items of another generator")
    return made


ENVIRONMENT_SEEN = "tests/unit/train/episodes/test_environments.py::test_a_user_model_"
USER_SEEN = [
    ("url", "http://127.0.0.1:8001/v1", "asked_once_for_the_same_request"), ("model", "m", "asked_once_for_the_same_request"),
    ("cache", "user.sqlite", "asked_once_for_the_same_request"), ("retries", 0, "that_does_not_answer_is_told"),
    ("timeout", 1.0, "that_does_not_answer_is_told"),
]  # fmt: skip


FOREIGN_SEEN = "tests/unit/train/foreign/test_environments.py::test_"
FOREIGN: dict[str, tuple[Any, str, str]] = {
    "id": ("other.py", "another bridge", "its_tasks_are_an_evaluation"),
    "python": ("venv/bin/python", "another Python", "paths_that_are_not_there_are_reported"),
    "seconds": (1.0, "a package that hangs is left sooner", "a_package_that_hangs_is_left_and_replaced"),
    "requests": (8, "fewer requests", "faults_make_their_own_rollout_invalid"),
}
OF_PACKAGES = {
    "settings": {"plus": 2}, "workers": 2, "weights": {"asked": 1.0}, "max_invalid": 0.5, "scorer": "asked", "calls": 1,
    "completion_tokens": 20,
}  # fmt: skip


def rows_of_packages() -> list[Row]:
    """Environments of other projects' packages: of `grpo`, of the hook's tasks, and of the tasks of `evaluate`."""
    made = [
        Row(f"{path}.type", "script", "a package", seen_in=f"{FOREIGN_SEEN}a_package_trains", recipes=("grpo",))
        for path in ("rollout.environment", "rollout.environments")
    ]
    for path, recipes in (
        ("rollout.environment", ("grpo",)),
        ("rollout.environments", ("grpo",)),
        ("eval.tasks[verifiers]", ("evaluate",)),
    ):
        for name, (value, effect, test) in FOREIGN.items():
            made.append(Row(f"{path}.{name}", value, effect, recipes=recipes, seen_in=FOREIGN_SEEN + test))
    path, only = "eval.tasks[verifiers]", ("evaluate",)
    for name, value in OF_PACKAGES.items():
        made.append(
            Row(f"{path}.{name}", value, "as of a class", recipes=only, seen_in=f"{FOREIGN_SEEN}settings_of_a_task_act")
        )
    base: dict[str, Any] = {
        f"{path}.type": "verifiers", f"{path}.id": "sums", f"{path}.python": "bin/python", f"{path}.path": "prompts.jsonl",
        f"{path}.efforts": ["low"],
    }  # fmt: skip
    for name, value, effect in (
        ("type", "arithmetic", "items of another source"), ("path", "other_prompts.jsonl", "other rows"),
        ("name", "mine", "name of the task"), ("size", 2, "number of rows"), ("efforts", ["high"], "what is drawn"),
        ("samples", 2, "what is drawn"), ("temperature", 0.5, "how it is drawn"), ("max_new_tokens", 3, "an action is cut"),
        *((name, value, "how it is drawn") for name, value in TRUNCATED.items()),
    ):  # fmt: skip
        made.append(Row(f"{path}.{name}", value, effect, "plan", only, base))
    for name, value, _ in USER_SEEN:
        if name in ("url", "model"):
            seen = f"{FOREIGN_SEEN}a_user_is_asked_where_the_settings_say"
            made.append(Row(f"{path}.user.{name}", value, "who plays the user", recipes=only, seen_in=seen))
            continue
        given = {**base, f"{path}.user.url": "http://127.0.0.1:8001/v1", f"{path}.user.model": "m"}
        refused = f"`user.{name}` has no effect: the package asks by itself"
        made.append(Row(f"{path}.user.{name}", value, "is refused", recipes=only, base=given, refused=refused))
    for name, value, refused in (
        ("format", "nothing", "nothing"), ("instructions", "Be brief.", "would not be shown"),
        ("tools.declared", ["python"], "would not be shown"),
        *((f"tools.{name}", tool, {"seconds": "times nothing", "browser.view_tokens": "browser.corpus` is missing"}.get(name, "would not be shown")) for name, tool in RUN_TOOLS.items()),
    ):  # fmt: skip
        made.append(Row(f"{path}.{name}", value, "is refused", recipes=only, base=base, refused=refused))
    given = {**base, "eval.rewards[channel].weight": 0.5}
    made.append(Row(f"{path}.rewards", [], "what counts", "tasks", only, given, stops="nothing takes them"))
    return made


def rows_of_environments() -> list[Row]:
    """Environments: of `grpo`, of the hook's tasks, and of the tasks of `evaluate`."""
    made = []
    for path, recipes, own_probe in (
        ("rollout.environment", ("grpo",), "calls"),
        ("rollout.environments", ("grpo",), "calls"),
        ("eval.tasks[environment]", ("sft",), "tasks"),
        ("eval.tasks[environment]", ("evaluate",), "worlds"),
    ):
        plain = {"process": 0.0, "parent": 0.0}
        base: dict[str, Any] = {f"{path}.class": "world.py:World", f"{path}.weights": plain}
        if not path.startswith("rollout."):
            base |= {f"{path}.type": "environment", f"{path}.path": "prompts.jsonl", f"{path}.efforts": ["low"]}
            base = {f"{path}.type": "environment", **base}

        def row(
            name: str,
            value: Any,
            effect: str,
            given: dict[str, Any] = base,
            path: str = path,
            recipes: tuple[str, ...] = recipes,
            own_probe: str = own_probe,
            **more: Any,
        ) -> None:
            probe = "" if "refused" in more or "seen_in" in more else more.pop("probe", own_probe)
            made.append(Row(f"{path}.{name}", value, effect, probe, recipes, {**given, **more.pop("base", {})}, **more))

        row("class", "world.py:Other", "another environment")
        row("settings", {"more": "!"}, "what setup is given")
        row("isolation", "shared", "rollouts are threads of one process")
        row("workers", 3, "more workers")
        row("turns", 1, "fewer user messages")
        row("weights", {**plain, "a": 0.5}, "weights of its rewards")
        broken = {f"{path}.settings": {"broken": True}}
        if path.startswith("rollout."):
            row("max_invalid", 0.5, "more of a step may be invalid")
            for name, value, seen in USER_SEEN if path == "rollout.environment" else ():
                made.append(
                    Row(
                        f"rollout.user.{name}",
                        value,
                        "the model that is asked",
                        recipes=recipes,
                        seen_in=ENVIRONMENT_SEEN + "is_" * (seen[0] == "a") + seen,
                    )
                )
            continue
        drawn = "tasks" if recipes == ("sft",) else "plan"
        stops = "rollouts are invalid" if own_probe == "worlds" else ""
        row("max_invalid", 0.5, "more of a task may be invalid", base=broken, stops=stops)
        row("type", "arithmetic", "items of another source", probe=drawn)
        row("path", "other_prompts.jsonl", "other rows", probe=drawn)
        row("environment", "a", "rows that name it", probe=drawn, base={f"{path}.path": "routed.jsonl"})
        row("format", "nothing", "is refused", refused="nothing")
        row("name", "mine", "name of the task", probe=drawn)
        row("size", 2, "number of rows", probe=drawn)
        row("scorer", "b", "the reward that counts")
        row("instructions", "Be brief.", "developer message", probe=drawn)
        row("tools.declared", ["python"], "declared tools", probe=drawn)
        for name, value in RUN_TOOLS.items() if recipes == ("evaluate",) else ():
            row(
                f"tools.{name}", value, "tools that run", probe="tasks", base={f"{path}.tools": copy.deepcopy(ONE_TOOL)}
            )
        row(
            "rewards",
            [],
            "what counts",
            probe="tasks",
            base={"eval.rewards[channel].weight": 0.5},
            stops="nothing takes them",
        )
        row("efforts", ["high"], "what is drawn", probe=drawn)
        row("samples", 2, "what is drawn", probe=drawn)
        for name, value in (("temperature", 0.5), *TRUNCATED.items()):
            row(name, value, "how it is drawn", probe=drawn)
        row("max_new_tokens", 3, "an action is cut", probe=drawn)
        row("completion_tokens", 40, "a turn is cut")
        row("calls", 1, "fewer calls")
        for name, value, seen in USER_SEEN:
            made.append(
                Row(
                    f"{path}.user.{name}",
                    value,
                    "the model that is asked",
                    recipes=recipes,
                    seen_in=ENVIRONMENT_SEEN + "is_" * (seen[0] == "a") + seen,
                )
            )
    return made


TRUNCATED = {"top_p": 0.9, "top_k": 50, "min_p": 0.01}
SERVED = {"rollout.engine": "server", "model.name": "openai/gpt-oss-20b"}
SERVERS = (
    ("url", ["http://x/v1", "http://y/v1"]), ("url_file", "servers.txt"), ("model", "m"), ("parallel", 3),
    ("timeout", 9.0), ("retries", 1), ("chunk_tokens", 99), ("wait", 9.0),
)  # fmt: skip
SERVES = {"launch.serve.servers": 1}
VLLM = {"rollout.engine": "vllm", "model.name": "openai/gpt-oss-20b", "rollout.weights": "adapter"}


def rows_of_models() -> list[Row]:
    trains, random = TRAINING, {"model.init": "random"}
    made = [
        Row("model.name", "other_model", "another model is loaded", "model", trains),
        Row("model.adapter", "other_adapter", "its adapter is trained onward", "model", trains, {"lora.rank": 3, "lora.alpha": 32.0, **ATTENTION}),
        Row("model.revision", "main", "is refused for the embedded model", recipes=(*trains, "distill", "evaluate"), refused="belongs to a Hugging Face name"),
        Row("model.init", "random", "weights are drawn", "model", trains),
        Row("model.dtype", "bfloat16", "number format of the weights", "model", trains),
        Row("model.base", "mxfp4", "packed experts are asked for", recipes=(*trains, "distill", "evaluate"), refused="`base: mxfp4` reads an original checkpoint"),
        Row("model.attention", "reference", "eager attention", "model", trains, random),
        Row("model.experts", "reference", "PEFT's own experts", "model", trains, random),
        Row("model.norms", "reference", "transformers' norms", "model", trains, random),
        Row("model.loss", "reference", "the loss with all logits", "arguments"),
        Row("model.kernels", "triton", "is refused without a GPU, chosen on one", seen_in="tests/unit/train/adapters/test_kernel_choice.py::test_triton_asks_for_all"),
        Row("grpo.teacher.model.kernels", "triton", "likewise", seen_in="tests/unit/train/adapters/test_kernel_choice.py::test_triton_asks_for_all"),
    ]  # fmt: skip
    for recipe, probe in (("distill", "calls"), ("evaluate", "loads")):
        made += [
            Row("model.name", "other_model", "another model is loaded", probe, (recipe,)),
            Row("model.adapter", "other_adapter", "its adapter is put on the model", probe, (recipe,)),
            *(
                Row(f"model.{name}", value, "how the model is loaded", probe, (recipe,))
                for name, value in (("init", "random"), ("dtype", "bfloat16"), ("attention", "reference"), ("experts", "reference"), ("norms", "reference"))
            ),
        ]  # fmt: skip
    teacher: dict[str, Any] = {"grpo.teacher.model": {"name": "tiny"}}
    for name, value in (
        ("name", "other_model"), ("adapter", "other_adapter"), ("init", "random"), ("dtype", "bfloat16"), ("attention", "reference"),
        ("experts", "reference"), ("norms", "reference"),
    ):  # fmt: skip
        made.append(Row(f"grpo.teacher.model.{name}", value, "how the teacher is loaded", "loads", base=teacher))
    for name, value in (("revision", "main"), ("base", "mxfp4")):
        told = {"revision": "belongs to a Hugging Face name", "base": "reads an original checkpoint"}[name]
        made.append(
            Row(f"grpo.teacher.model.{name}", value, "is refused for the embedded model", base=teacher, refused=told)
        )
    made += [
        *(
            Row(f"grpo.teacher.server.{name}", value, "the server's client", "calls", base={"grpo.teacher.server": {}})
            for name, value in (("url", "http://x/v1"), ("model", "m"), ("parallel", 3), ("timeout", 9.0), ("retries", 1))
        ),
        Row("grpo.teacher.weight", 0.5, "weight of its rating", "calls", base=teacher),
        Row("lora.enabled", False, "every weight trains", "model"),
        Row("lora.rank", 3, "rank of the adapters", "model"),
        Row("lora.alpha", 5.0, "scale of the adapters", "model"),
        Row("lora.attention", False, "no adapters on attention", "model"),
        Row("lora.experts", False, "no adapters on experts", "model"),
        Row("lora.expert_rank", 3, "rank on experts", "model"),
        Row("lora.expert_alpha", 5.0, "scale on experts", "model"),
        Row("lora.router", True, "adapters on the router", "model"),
        Row("lora.layers", [1], "adapters in that layer", "model"),
        Row("lora.rslora", True, "scale by the root of the rank", "model"),
        Row("lora.dropout", 0.1, "dropout of the adapters", "model", ("sft",), ATTENTION),
        Row("lora.dropout", 0.1, "is refused", recipes=("dpo", "grpo"), base=ATTENTION, refused="`lora.dropout` is for `recipe: sft`"),
        Row("lora.dora", True, "lengths of weights train", "model", base=ATTENTION),
    ]  # fmt: skip
    return made


def rows_of_training() -> list[Row]:
    arguments = {
        "epochs": 2.0, "steps": 7, "batch_rows": 16, "accumulation": 2, "learning_rate": 0.5, "schedule": "linear", "min_rate": 0.1,
        "warmup_ratio": 0.5, "warmup_steps": 3, "weight_decay": 0.1, "adam_betas": [0.8, 0.9], "adam_epsilon": 0.1,
        "max_grad_norm": 0.3, "optimizer": "adamw_8bit", "activation_checkpointing": True, "on_no_learning": "warn",
        "no_learning_steps": 3, "checkpoint_every": 4, "keep_checkpoints": 5, "log_every": 3, "on_loss_spike": "stop",
        "spike_factor": 9.0, "neftune_alpha": 5.0, "router_aux_loss_coef": 0.1,
    }  # fmt: skip
    made = [Row(f"train.{name}", value, "arguments of the trainer", "arguments") for name, value in arguments.items()]
    made += [
        Row("train.decay_ratio", 0.5, "arguments of the trainer", "arguments", base={"train.schedule": "wsd"}),
        Row("train.rates.lora_b", 16.0, "groups of the optimizer", "arguments"),
        Row("train.rates.attention", 2.0, "groups of the optimizer", "arguments"),
        Row("train.rates.experts", 2.0, "groups of the optimizer", "arguments"),
        Row("train.rates.router", 2.0, "groups of the optimizer", "arguments", base={"lora.router": True}),
        *(Row(f"train.rates.{part}", 2.0, "groups of the optimizer", "arguments", base=FULL) for part in ("embeddings", "head", "norms")),
        Row("train.activation_offload", True, "inputs of layers go to the host", "arguments", base={"train.activation_checkpointing": True}),
        Row("train.frozen", ["experts"], "what trains", "model", base=FULL),
        Row("train.frozen_layers", [0], "what trains", "model", base=FULL),
        Row("train.keep_best", "channel_correct", "the best step is the result", "best"),
        Row("train.stop_when.metric", "right_answers", "which figure ends the run", "best", base={"train.stop_when": {"metric": "channel_correct"}}),
        Row("train.stop_when.patience", 1, "when it ends", "best", base={"train.stop_when": {"metric": "right_answers"}}),
        Row("train.stop_when.least", 0.2, "what is better", "best", base={"train.stop_when": {"metric": "channel_correct"}}),
        Row("train.quantization_aware", "mxfp4", "experts compute rounded", "arguments"),
        Row("train.quantization_from", 0.5, "when that begins", "arguments", base={"train.quantization_aware": "mxfp4"}),
        Row("train.device", "cuda", "where it runs", "arguments", stops="cuda was asked for"),
        Row("train.threads", 1, "threads of torch", "session"),
        Row("tracking.wandb", "off", "no wandb", "trackers"),
        Row("tracking.tensorboard", True, "event files", "trackers"),
        Row("tracking.mlflow", True, "a run of MLflow", "trackers"),
        Row("tracking.project", "mine", "arguments of wandb", "trackers"),
        Row("tracking.project", "mine", "experiment of MLflow", "trackers", base={"tracking.wandb": "off", "tracking.mlflow": True}),
        Row("tracking.entity", "me", "arguments of wandb", "trackers"),
        Row("tracking.group", "both", "arguments of wandb", "trackers"),
        Row("tracking.tags", ["new"], "arguments of wandb", "trackers"),
        Row("launch.processes", 2, "the launcher's command", "launched"),
        Row("launch.nodes", 2, "the launcher's command", "launched"),
        Row("launch.strategy", "fsdp2", "the launcher's environment", "launched", READING),
        Row("launch.strategy", "fsdp2", "is refused", recipes=("grpo",), refused="has no process with the whole model"),
        Row("launch.sampling_timeout", 9.0, "how long what is sampled is waited for", seen_in="tests/unit/train/run/test_gathering.py::test_what_is_sampled_is_waited_for_longer_than_a_step"),
        Row("launch.timeout", 9.0, "timeout of the process group", "arguments"),
    ]  # fmt: skip
    return made


def rows_of_evaluation() -> list[Row]:
    hook = {
        "prompts": "prompts.jsonl", "efforts": ["low"], "samples": 3, "max_new_tokens": 9, "temperature": 0.5, "batch": 3,
    }  # fmt: skip
    made = [Row(f"eval.{name}", value, "what is drawn", "sampling", TRAINING) for name, value in hook.items()]
    made += [
        Row(f"eval.{name}", value, "what is drawn from", "sampling", TRAINING) for name, value in TRUNCATED.items()
    ]
    made += [
        Row(f"eval.{name}", value, "what is drawn from", "engine", ("evaluate",), base={"eval.engine": engine})
        for name, value in TRUNCATED.items()
        for engine in ("transformers", "vllm", "server")
    ]
    drawn = {name: value for name, value in hook.items() if name != "batch"}
    made += [Row(f"eval.{name}", value, "what is drawn", "plan", ("evaluate",)) for name, value in drawn.items()]
    rolled = {"eval.prompts": "prompts.jsonl", "eval.tools": copy.deepcopy(ONE_TOOL)}
    for name, value in {
        **{f"tools.{name}": value for name, value in RUN_TOOLS.items()},
        "calls": 1,
        "completion_tokens": 9,
    }.items():
        made.append(
            Row(f"eval.{name}", value, "how prompts are rolled out", "tasks", (*TRAINING, "evaluate"), base=rolled)
        )
    served, local = {"eval.engine": "server"}, {"eval.engine": "vllm"}
    made += [
        Row("eval.batch", 3, "rows of the sampler", "engine", ("evaluate",)),
        Row("eval.base", False, "the base is not measured", "due", TRAINING),
        Row("eval.base", False, "the base is not measured", "sides", ("evaluate",)),
        Row("eval.every", 3, "when it is measured", "due"),
        Row("eval.at_start", False, "when it is measured", "due"),
        Row("eval.at_end", False, "when it is measured", "due"),
        Row("eval.stop_below", 0.9, "the run ends", "due"),
        Row("eval.warn_below", 0.9, "a warning", "due"),
        Row("eval.engine", "vllm", "another engine", "engine"),
        *(Row(f"eval.server.{name}", value, "the server's client", "engine", base=served) for name, value in SERVERS),
        *(Row(f"eval.vllm.{name}", value, "vLLM's start", "engine", base=local) for name, value in (("tensor_parallel", 2), ("gpu_memory", 0.5), ("max_model_len", 99))),
        Row("eval.scorer_seconds", 1.0, "timeout of a scorer", "scorers"),
        Row("checkpoint", "other_model", "what is evaluated", "loads"),
    ]  # fmt: skip
    return made


def rows_of_pairs_and_rewards() -> list[Row]:
    rated = {"dpo.losses": ["kto"], "train.batch_rows": 8}
    made = [
        Row("dpo.beta", 0.5, "arguments of the trainer", "arguments"),
        Row("dpo.losses", ["ipo"], "arguments of the trainer", "arguments"),
        Row("dpo.loss_weights", [1.0, 0.5], "arguments of the trainer", "arguments"),
        Row("dpo.loss_on", "final", "what is compared", "data", lines=({"prompt": "2?", "chosen": [THINKS], "rejected": [THINKS | {"content": "41"}]},)),
        Row("dpo.negatives", ["malformed_header"], "built pairs", "data", base=MADE, lines=chat(THINKS)),
        Row("dpo.negatives_each", 2, "more built pairs", "data", base=MADE, lines=chat(THINKS)),
        Row("dpo.label_smoothing", 0.1, "arguments of the trainer", "arguments", base={"dpo.losses": ["robust"]}),
        Row("dpo.label_smoothing", 0.1, "is refused", refused="`label_smoothing` is the noise that `robust` assumes"),
        Row("dpo.row_tokens", 512, "arguments of the trainer", "arguments"),
        Row("dpo.wanted_weight", 2.0, "arguments of the trainer", "arguments", base=rated),
        Row("dpo.unwanted_weight", 2.0, "arguments of the trainer", "arguments", base=rated),
    ]  # fmt: skip
    trainer = {
        "group": 4, "loss": "grpo", "beta": 0.1, "epsilon": 0.1, "epsilon_high": 0.3, "scale": "none", "ratio": "sequence",
        "iterations": 2, "mask_truncated": True, "baseline": "leave_one_out", "oversample": 2.0, "top_entropy": 0.2,
        "entropy_bonus": 0.01, "off_policy": 0.1, "ratio_cap": 2.0,
    }  # fmt: skip
    made += [Row(f"grpo.{name}", value, "arguments of the trainer", "arguments") for name, value in trainer.items()]
    made += [
        Row("grpo.efforts", ["low", "high"], "items at each effort", "data"),
        Row("grpo.row_tokens", 512, "arguments of the trainer", "arguments"),
        Row("grpo.kl_ratio", False, "arguments of the trainer", "arguments", base={"grpo.beta": 0.1}),
        Row("rollout.correction_floor", 0.5, "arguments of the trainer", "arguments"),
        Row("rollout.temperature", 0.5, "how rollouts are sampled", "calls"),
        *(Row(f"rollout.{name}", value, "what rollouts are sampled from", "calls") for name, value in TRUNCATED.items()),
        *(Row(f"rollout.{name}", value, "what is learned", "arguments") for name, value in TRUNCATED.items()),
        *(Row(f"rollout.{name}", value, "what vLLM samples from", "following", base={**VLLM, "rollout.engine": engine}) for name, value in TRUNCATED.items() for engine in ("vllm", "server")),
        Row("rollout.action_tokens", 9, "limits of a rollout", "calls"),
        Row("rollout.completion_tokens", 9, "limits of a rollout", "calls"),
        Row("rollout.calls", 1, "limits of a rollout", "calls"),
        Row("rollout.batch", 3, "rows of the sampler", "calls"),
        Row("rollout.engine", "server", "another engine", "calls", base={"model.name": "openai/gpt-oss-20b"}),
        Row("rollout.staleness", 2, "when groups are sampled", "ahead", base=SERVED),
        Row("rollout.staleness", 2, "is refused", refused="`engine: transformers` samples from the weights that are trained"),
        Row("rollout.order", "window", "which groups a step takes", "ahead", base={**SERVED, "rollout.staleness": 4, "train.batch_rows": 32}),
        Row("rollout.ratio_to", "sampled", "arguments of the trainer", "arguments", base=SERVED),
        Row("rollout.weights", "merged", "what vLLM is sent", "following", base=VLLM),
        *(Row(f"rollout.vllm.{name}", value, "vLLM's start", "following", base=VLLM) for name, value in (("tensor_parallel", 2), ("gpu_memory", 0.5), ("max_model_len", 99))),
        *(Row(f"rollout.server.{name}", value, "the server's client", "following", base={**VLLM, "rollout.engine": "server"}) for name, value in (*SERVERS, ("adapters", "http"), ("adapters_port", 9))),
        *(Row(f"launch.serve.{name}", value, "the servers that are started", "beside", base={**VLLM, "rollout.engine": "server", **base}) for name, value, base in (("servers", 2, {}), ("gpus", 2, SERVES), ("port", 9000, SERVES), ("command", "/opt/vllm", SERVES), ("arguments", ["--enforce-eager"], SERVES))),
        Row("rollout.routes", "replay", "arguments of the trainer", "arguments", base={**VLLM, "rollout.engine": "server"}),
        Row("rollout.routes", "replay", "what the server is asked for", "following", base={**VLLM, "rollout.engine": "server"}),
        Row("rollout.routes", "replay", "what vLLM is asked for", "following", base=VLLM),
        Row("rollout.routes", "replay", "is refused", refused="repeats what another engine chose"),
        Row("rollout.correction", "off", "arguments of the trainer", "arguments"),
        Row("rollout.correction_cap", 9.0, "arguments of the trainer", "arguments"),
        Row("tools.functions", ["tools.py:f"], "tools that run", "calls"),
        Row("tools.mcp", ["server"], "tools that run", "calls"),
        Row("tools.python", True, "tools that run", "calls"),
        Row("tools.browser.corpus", "pages.jsonl", "the browser's pages", "calls", base={"tools.browser.corpus": "other.jsonl"}),
        Row("tools.browser.view_tokens", 9, "tokens of a display", "calls", base={"tools.browser.corpus": "pages.jsonl"}),
        Row("tools.seconds", 1.0, "timeout of a tool", "calls"),
    ]  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {
        "channel": {}, "answer": {"scorer": "exact"}, "calls": {"need": ["valid"]},
        "length": {"gated": False, "budgets": {"medium": [1, 2]}, "slope": 0.1}, "json": {"gated": False},
        "overlong": {"longest": 300, "buffer": 50},
        "language": {"gated": True, "language": "ru", "channel": "analysis", "share": 0.1},
        "function": {"function": "mine.py:nothing", "range": [0.0, 0.1]},
    }  # fmt: skip
    least: dict[str, dict[str, Any]] = {
        "length": {"budgets": {"medium": [90, 99]}}, "overlong": {"longest": 100, "buffer": 100}, "language": {"language": "en", "gated": False}, "function": {"function": "mine.py:half"},
    }  # fmt: skip
    answered = {"rewards[answer].scorer": "number"}
    for kind, own in kinds.items():
        path, other = (
            f"rewards[{kind}]",
            {"channel": "calls", "answer": "calls", "calls": "channel", "json": "channel"}.get(kind, "json"),
        )
        base = {f"{path}.{name}": value for name, value in least.get(kind, {}).items()}
        base |= answered if kind in ("json", "length", "language") else {}
        made += [
            Row(f"{path}.type", "calls" if kind != "calls" else "channel", "another reward", "rewards", base=base),
            Row(f"{path}.name", "mine", "name of the reward", "rewards", base=base),
            Row(f"{path}.weight", 3.0, "weight in the sum", "rewards", base=base),
            Row(
                f"{path}.gate",
                "answer" if kind == "calls" else "calls",
                "is multiplied by another",
                "rewards",
                base={**base, "rewards[answer].scorer": "number", "rewards[calls].need": ["valid"]},
            ),
            *(Row(f"{path}.{name}", value, "what rollouts earn", "rewards", base=base) for name, value in own.items()),
            Row(
                f"{path}.gate",
                "other",
                "by what it is multiplied",
                "rewards",
                base={f"rewards[{other}].name": "other", **base},
            ),
        ]
    made += rows_of_judges()
    function, tests = "rewards[function]", "tests/unit/train/scoring/test_rewards.py::"
    made += [
        Row(
            f"{function}.range",
            [0.0, 0.1],
            "what is a failure",
            "rewards",
            base={f"{function}.function": "mine.py:half"},
        ),
        Row(
            f"{function}.per",
            "group",
            "a list is handed over",
            "rewards",
            base={f"{function}.function": "mine.py:several"},
        ),
        Row(
            f"{function}.seconds",
            2.0,
            "limit of a call",
            recipes=("grpo",),
            seen_in=f"{tests}test_a_user_s_function_gets_the_typed_result_and_may_fail",
        ),
        Row(
            f"{function}.workers",
            1,
            "calls beside each other",
            recipes=("grpo",),
            seen_in=f"{tests}test_rewards_run_beside_each_other",
        ),
    ]
    made += [
        Row(f"distill.{name}", value, "how questions are sampled", "calls")
        for name, value in {
            "samples": 3, "scorer": "exact", "least_tokens": 5, "max_new_tokens": 9, "temperature": 0.5, "batch": 3,
        }.items()
    ]  # fmt: skip
    return [*made, Row("distill.keep_answer", False, "whose final is kept", "calls")]


def rows_of_judges() -> list[Row]:
    """Rewards that other code or another model gives; what needs a server is seen in their own tests."""
    gone, tests = "http://127.0.0.1:9/v1", "tests/unit/train/scoring/test_"
    graded = {
        "type": "string_check",
        "name": "c",
        "input": "{{sample.output_text}}",
        "reference": "42",
        "operation": "ne",
    }
    least: dict[str, dict[str, Any]] = {
        "code": {"score": "share"},
        "judge": {"url": gone, "model": "m", "retries": 0},
        "grader": {"grader": graded},
    }
    first = "test_a_score_by_schema_is_the_reward_and_a_second_run_asks_nothing"
    asking = {
        "model": ("n", "graders.py::test_models_are_asked_as_the_grader_says"),
        "cache": ("answers.sqlite", f"judge.py::{first}"),
        "timeout": (1.0, "judge.py::test_a_server_that_is_slow_is_gone"),
        "retries": (1, "judge.py::test_an_answer_that_is_no_score_is_asked_for_again_and_then_invalid"),
        "parallel": (1, "judge.py::test_requests_run_beside_each_other_up_to_the_setting"),
        "max_tokens": (64, f"judge.py::{first}"),
        "max_tokens_total": (99, "judge.py::test_a_spent_budget_stops_with_one_line"),
        "request": ({"temperature": 0}, f"judge.py::{first}"),
    }
    own: dict[str, dict[str, tuple[Any, str]]] = {
        "code": {
            "seconds": (1.0, "code_reward.py::test_a_program_that_floods_hangs_or_fails_earns_nothing"),
            "memory_mb": (99, "code_reward.py::test_memory_and_tests_beside_each_other_are_bounded"),
            "parallel": (1, "code_reward.py::test_memory_and_tests_beside_each_other_are_bounded"),
        },
        "judge": {
            **asking,
            "url": ("http://127.0.0.1:8/v1", "judge.py::test_a_key_of_the_environment_is_sent"),
            "template": ("{{final}}", "judge.py::test_a_template_has_the_row_and_what_was_said_but_no_thoughts"),
            "range": ([0.0, 2.0], f"judge.py::{first}"),
            "rubric.criterion": ("x", "judge.py::test_a_rubric_in_the_form_of_healthbench_is_judged_by_criterion"),
            "rubric.points": (2.0, "judge.py::test_a_rubric_in_the_form_of_healthbench_is_judged_by_criterion"),
            "gate": ("answer", "judge.py::test_a_judge_is_multiplied_by_its_gate"),
        },
        "grader": {
            **{name: (value, test) for name, (value, test) in asking.items()},
            "url": (gone, "graders.py::test_models_are_asked_as_the_grader_says"),
            "path": ("grader.json", "graders.py::test_a_formula_combines_graders"),
            "seconds": (1.0, "graders.py::test_python_grades_in_the_sandbox"),
        },
    }
    made = []
    for kind, settings in least.items():
        path = f"rewards[{kind}]"
        base = {f"{path}.{name}": value for name, value in settings.items()}
        answered = {**base, "rewards[answer].scorer": "number"}
        made += [
            Row(f"{path}.type", "channel", "another reward", "rewards", base=base),
            Row(f"{path}.name", "mine", "name of the reward", "rewards", base=base),
            Row(f"{path}.weight", 3.0, "weight in the sum", "rewards", base=base),
            *([Row(f"{path}.gate", "answer", "is multiplied", "rewards", base=answered)] if kind != "judge" else []),
        ]
        made += [
            Row(f"{path}.{name}", value, "how it is judged", recipes=("grpo",), seen_in=f"{tests}{test}")
            for name, (value, test) in own[kind].items()
        ]
    changed = {**graded, "operation": "ilike"}
    made.append(
        Row("rewards[grader].grader", changed, "what is graded", "rewards", base={"rewards[grader].grader": graded})
    )
    return [*made, Row("rewards[code].score", "share", "share or all", "rewards")]


def rows_of_rewards_of_evaluations() -> list[Row]:
    """`eval.rewards` are those of `grpo`."""
    made = []
    for row in rows_of_pairs_and_rewards():
        if row.setting.startswith("rewards["):
            base = {f"eval.{name}" if name.startswith("rewards[") else name: value for name, value in row.base.items()}
            probe = "evaluated_rewards" if row.probe == "rewards" else row.probe
            made.append(replace(row, setting=f"eval.{row.setting}", probe=probe, base=base, recipes=("evaluate",)))
    return made


def rows_of_all() -> list[Row]:
    return [
        Row("recipe", "other", "is refused", refused="must be one of"),
        Row("seed", 5, "arguments of the trainer", "arguments", TRAINING),
        Row("seed", 5, "seeds of the draws", "plan", ("evaluate",)),
        Row("seed", 5, "seeds of the draws", "calls", ("distill",)),
        Row("output", "elsewhere", "where the run folder is", "folder", (*TRAINING, "distill")),
        Row("name", "mine", "name of the run folder", "folder", (*TRAINING, "distill")),
        Row("output", "elsewhere", "where the results are", "results", ("evaluate",)),
        Row("name", "mine", "name of the results", "results", ("evaluate",)),
        Row("device", "cuda", "where it runs", "calls", ("distill",)),
        Row("device", "cuda", "where it runs", "opened", ("evaluate",), stops="cuda was asked for"),
        *rows_of_models(), *rows_of_data(), *rows_of_tasks(), *rows_of_environments(), *rows_of_packages(), *rows_of_training(), *rows_of_evaluation(), *rows_of_rewards_of_evaluations(),
        *rows_of_pairs_and_rewards(),
    ]  # fmt: skip


ROWS = rows_of_all()
