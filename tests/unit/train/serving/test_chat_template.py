"""The shipped chat template against our writer: rendered as transformers renders it, text for text."""

import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from strategies import conversations
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from unit.data.harmony.test_tool_schema import JUNK, SCHEMAS, WORDS, an_object

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, ServedSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation, Tool
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.prompt import developer_message, official_ids
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.serving import FORMS
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.serving.chat_template import chat_template

STRING = {"type": "string"}


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message):
    raise ValueError(message)


ENVIRONMENT = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
ENVIRONMENT.filters["tojson"] = _tojson
ENVIRONMENT.globals["raise_exception"] = _refuse
VLLM = ENVIRONMENT.from_string(chat_template(RenderSettings()) or "")


def shipped(request, template=VLLM, generates=True) -> str:
    given = {"tools": None, "reasoning_effort": None, **request}
    return template.render(**given, add_generation_prompt=generates)


def written(request, opening=None) -> str:
    conversation = convert(dict(request), "openai", ConversionSettings(parallel_calls="together"))
    assert isinstance(conversation, Conversation)
    renderer = Renderer(load_vocabulary(), opening or RenderSettings())
    return load_vocabulary().decode(renderer.prompt(conversation))


def system(content) -> dict:
    return {"role": "system", "content": content}


def user(content="Go.") -> dict:
    return {"role": "user", "content": content}


def says(content=None, *calls, **thoughts) -> dict:
    message = {"role": "assistant", "content": content, **thoughts}
    if not calls:
        return message
    return {
        **message,
        "tool_calls": [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, name, arguments in calls
        ],
    }


def result(i, content="4") -> dict:
    return {"role": "tool", "tool_call_id": f"c{i}", "content": content}


def tool(parameters, name="f", **more) -> dict:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def asked(*tools) -> dict:
    return {"messages": [user()], "tools": list(tools)}


def parts(*texts) -> list:
    return [{"type": "text", "text": text} for text in texts]


LOOP = [user(), says("I look.", (1, "f", '{"q":"é", "n":1}'), reasoning="First."), result(1)]
TOOL = tool(an_object(q=STRING), description="Looks.")

REQUESTS = {
    "chat": [user()],
    "system first": [system("Be brief."), user()],
    "developer first": [{"role": "developer", "content": "Be brief."}, user()],
    "system of parts": [system(parts("Be ", "brief.")), user()],
    "system empty": [system(""), user()],
    "system blank": [system("  \n"), user()],
    "system like a heading": [system("# Instructions\n\nBe brief."), user()],
    "system that escapes Jinja": [system('{{ 1 + 1 }} {% raw %} "\\n" \\'), user("{{ x }}")],
    "two at the start": [system("A"), {"role": "developer", "content": "B"}, user()],
    "late system": [user(), says("Yes."), system("Be long."), user("Why?")],
    "user empty": [user("")],
    "user of parts": [user(parts("One.", " Two."))],
    "user with a name": [{**user(), "name": "ann"}],
    "typed control tokens": [user("<|end|><|start|>system"), says("<|call|>"), user()],
    "settled thoughts": [user(), says("Yes.", reasoning="a"), user("Why?")],
    "thoughts of a loop": LOOP,
    "thoughts of spaces": [user(), says(None, (1, "f", "{}"), reasoning=" \n"), result(1)],
    "thoughts behind spaces": [user(), says(None, (1, "f", "{}"), reasoning=" ", reasoning_content="a"), result(1)],
    "thoughts as reasoning_content": [user(), says(None, (1, "f", "{}"), reasoning_content="a"), result(1)],
    "thoughts as thinking": [user(), says("", (1, "f", "{}"), thinking="a"), result(1)],
    "loop, answer, loop": [*LOOP, says("4", reasoning="b"), user(), says("", (2, "g", "{}"), reasoning="c"), result(2)],
    "three steps": [
        *LOOP,
        says(None, (2, "f", '{"q":"b"}'), reasoning="Second."),
        result(2, ""),
        says("Almost.", (3, "g", "{}")),
        result(3, parts("a", "b")),
    ],
    "parallel calls": [user(), says(None, (1, "f", "{}"), (2, "g", '{"a":1}'), reasoning="a"), result(1), result(2)],
}


@pytest.mark.parametrize("name", ["vllm", "vllm_0_30"])
@pytest.mark.parametrize("tools", [[], [TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("messages", REQUESTS.values(), ids=REQUESTS)
def test_a_request_has_the_text_of_training(messages, tools, name):
    opening = RenderSettings(serving=name)
    request = {"messages": messages, **({"tools": tools} if tools else {})}
    template = ENVIRONMENT.from_string(chat_template(opening) or "")
    assert shipped(request, template) == written(request, opening)


def test_the_text_of_a_loop():
    assert shipped({"messages": [system("Be brief."), *LOOP], "tools": [TOOL], "reasoning_effort": "high"}) == (
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2025-06-28\n\nReasoning: high\n\n"
        "# Valid channels: analysis, commentary, final. Channel must be included for every message.\n"
        "Calls to these tools must go to the commentary channel: 'functions'.<|end|>"
        "<|start|>developer<|message|># Instructions\n\nBe brief.\n\n# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// Looks.\ntype f = (_: {\nq?: string,\n}) => any;\n\n} // namespace functions<|end|>"
        "<|start|>user<|message|>Go.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>First.<|end|>"
        '<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{"q":"é", "n":1}<|call|>'
        "<|start|>functions.f<|channel|>commentary to=assistant<|message|>4<|end|>"
        "<|start|>assistant"
    )


@pytest.mark.parametrize(
    "given",
    [
        {"date": "2026-01-31"},
        {"date": ""},
        {"effort": "low"},
        {"identity": 'You are "Ärger" 🙂,\n\\n a {{ bot }} \u2028 of {% if %}.'},
        {"served": ServedSettings(reasoning="lost")},
        {"serving": "vllm_0_30", "date": "", "effort": "high", "identity": "You are Q."},
    ],
    ids=str,
)
def test_the_parts_of_a_run_are_in_the_template(given):
    opening = RenderSettings(**given)
    template = ENVIRONMENT.from_string(chat_template(opening) or "")
    for request in ({"messages": [user()]}, {"messages": LOOP, "tools": [TOOL], "reasoning_effort": "medium"}):
        assert shipped(request, template) == written(request, opening)
    assert "strftime" not in (chat_template(opening) or "")


def test_the_other_forms_keep_the_template_of_the_base():
    assert {name for name in FORMS if chat_template(RenderSettings(serving=name))} == {"vllm", "vllm_0_30"}


ANY_OF = {"anyOf": [STRING, {"type": "null"}]}
VARIANTS = [
    {"type": "string", "description": "one", "default": "x"},
    {"type": "integer", "description": "two", "default": 3, "nullable": True},
    {"type": "string", "enum": ["p", "q"], "default": "p"},
    {**an_object(z={"type": "number"}), "description": "three"},
    True,
]
KINDS = {
    "string": an_object(a=STRING),
    "scalars": an_object(a={"type": "integer"}, b={"type": "number"}, c={"type": "boolean"}, d={"type": "null"}),
    "required": {**an_object(a=STRING, b=STRING), "required": ["b", "c", 5]},
    "enum": an_object(a={"type": "string", "enum": ["x", 'a"b', "é"]}),
    "enum with null": an_object(a={"type": "string", "enum": [None, "x", 2, "y"]}),
    "enum of numbers": an_object(a={"type": "integer", "enum": [1, 2], "default": 1}),
    "enum without type": an_object(a={"enum": ["x", "y"], "default": "x"}),
    "enum with default": an_object(a={"type": "string", "enum": ["x", "y"], "default": "x"}),
    "enum empty": an_object(a={"type": "string", "enum": [], "default": "x"}),
    "default string": an_object(a={"type": "string", "default": 'say "é"\n'}),
    "default null": an_object(a={"type": "string", "default": None}),
    "default false": an_object(a={"type": "boolean", "default": False}),
    "default list": an_object(a={"type": "array", "items": STRING, "default": ["a", {"b": [1, 2.5, None, "\u2028\x7f"]}]}),
    "default numbers": an_object(
        **{f"p{i}": {"default": v} for i, v in enumerate([1e-5, -1.5e-5, 1e-4, 1e-7, 1.0, 2.5e16, 1e16, 1e15, 1e22, -0.0, 0])}
    ),
    "descriptions": an_object(a={**STRING, "description": "first"}, b={**STRING, "description": ""}),
    "description of two lines": an_object(a={**STRING, "description": "one\ntwo"}),
    "title": {**an_object(a={**STRING, "title": "A", "description": "d"}), "title": "Arguments", "description": "top"},
    "examples": an_object(a={**STRING, "examples": ["x", 3, 'y"']}, b={**STRING, "examples": []}, c={"examples": [1]}),
    "array": an_object(a={"type": "array", "items": {"type": "integer"}}, b={"type": "array"}, c={"type": "array", "items": None}),
    "array of arrays": an_object(a={"type": "array", "items": {"type": "array", "items": STRING}}),
    "array of objects": an_object(a={"type": "array", "items": {**an_object(z=STRING), "description": "d"}}),
    "nested": an_object(a={**an_object(b={**an_object(c={**STRING, "description": "deep"}), "required": ["c"]}), "description": "d"}),
    "object without properties": an_object(a={"type": "object"}, b={"type": "object", "additionalProperties": STRING}),
    "list of types": an_object(a={"type": ["string", "integer", "null"], "default": "x"}, b={"type": []}, c={"type": [1]}),
    "nullable": an_object(a={**STRING, "nullable": True}, b={"type": ["null"], "nullable": True}, c={**STRING, "nullable": 1}),
    "oneOf": an_object(a={"oneOf": VARIANTS, "description": "outer", "default": "x", "title": "T"}),
    "oneOf of one text": an_object(a={"oneOf": [{**v, "description": "one"} for v in VARIANTS[:3]], "description": "one"}),
    "oneOf in items": an_object(a={"type": "array", "items": {"oneOf": VARIANTS}}),
    "oneOf in oneOf": an_object(a={"oneOf": [{"oneOf": VARIANTS}, STRING]}),
    "oneOf of objects": an_object(a={"oneOf": [an_object(x={**STRING, "description": "dx"}), an_object(y={"oneOf": VARIANTS})]}),
    "oneOf on top": {"oneOf": VARIANTS},
    "oneOf empty": an_object(a={"oneOf": [], "description": "d"}, b={"oneOf": None, "description": "d", "default": 1}),
    "anyOf": an_object(a=ANY_OF, b={"anyOf": VARIANTS, "default": 1}),
    "allOf, const, $ref": {**an_object(a={"allOf": [STRING]}, b={"const": 1}, c={"$ref": "#/$defs/D"}), "$defs": {"D": STRING}},
    "pydantic": {
        **an_object(a={**STRING, "title": "A"}, b={**ANY_OF, "default": None, "title": "B"}),
        "title": "Args",
        "additionalProperties": False,
    },
    "property names": an_object(**dict.fromkeys(["items", "get", "keys", "default", "a b", "é", "$x", "oneOf"], STRING)),
    "empty": {},
    "type of another language": {"type": "dict", "properties": {"a": {"type": "float"}}},
    "no object": {"type": "string"},
}  # fmt: skip


@pytest.mark.parametrize("schema", KINDS.values(), ids=KINDS)
def test_a_schema_is_declared_as_openai_harmony_declares_it(schema):
    request = asked(tool(schema))
    assert shipped(request) == written(request)


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "function": {"name": "f"}}],
        [tool(None, description="d"), tool({}, "g")],
        [tool(an_object(), description=text) for text in ("",)],
        *([tool(an_object(), description=text)] for text in ("a\n\nb", "\n", "a\r\nb\r", "a\n", "\r\n", "a\u2028b")),
        [tool(an_object(a=STRING)), tool(an_object(), "g"), tool(None, "h", description="d", strict=True)],
    ],
    ids=str,
)
def test_a_tool_is_declared_as_openai_harmony_declares_it(tools):
    assert shipped(asked(*tools)) == written(asked(*tools))


@settings(max_examples=300, deadline=None)
@given(schema=SCHEMAS)
def test_made_schemas_are_declared_alike(schema):
    request = asked(tool(schema))
    assert shipped(request) == written(request)


@settings(max_examples=300, deadline=None)
@given(schema=st.dictionaries(st.sampled_from([*WORDS, "enum", "nullable", "title", "examples"]), JUNK, max_size=6))
def test_odd_schemas_are_declared_alike(schema):
    parameters = [an_object(a=schema, b={"type": "array", "items": schema}), schema]
    declared = developer_message(None, [Tool(f"f{i}", "", one) for i, one in enumerate(parameters)])
    text = load_vocabulary().decode(official_ids(declared, True))
    assert text in shipped(asked(*(tool(one, f"f{i}") for i, one in enumerate(parameters))))


# Of few digits: of sixteen and more, serde_json may read the neighbour of the float that Python reads.
SHORT = st.builds(lambda m, e: float(f"{m}e{e}"), st.integers(-999, 999), st.integers(-12, 20))


@settings(max_examples=300, deadline=None)
@given(value=SHORT | st.dictionaries(st.text('aé"\\\n\x01', max_size=2), SHORT, max_size=3))
def test_defaults_are_the_json_of_serde(value):
    request = asked(tool(an_object(a={"default": value})))
    assert shipped(request) == written(request)


def _name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in text)


@st.composite
def requests(draw: st.DrawFn) -> dict:
    """Chat requests made of `conversations()`: a message an action, its calls alone or together, texts as parts."""
    made = draw(conversations())
    out: list[dict] = []
    if made.instructions or (made.instructions is not None and made.messages[0].role != "developer"):
        out.append({"role": draw(st.sampled_from(["system", "developer"])), "content": made.instructions})
    key = draw(st.sampled_from(["reasoning", "reasoning_content", "thinking"]))
    open_, ids = {}, 0
    for message in made.messages:
        content = message.content or "0"
        if "python" in (message.recipient, message.name) and message.role != "user":
            continue
        if message.role == "tool":
            out.append(result(ids, message.content))
        elif message.role != "assistant":
            content = message.content if message.role == "user" else content
            said = parts(content[:3], content[3:]) if draw(st.integers(0, 3)) == 0 else content
            out.append({"role": message.role, "content": said, **({"name": message.name} if message.name else {})})
        elif message.channel == "analysis":
            open_[key] = "\n".join(filter(None, [open_.get(key), content]))
        elif message.recipient:
            ids += 1
            one = says(
                open_.pop("content", None),
                (
                    ids,
                    _name(message.recipient.removeprefix("functions.")),
                    json.dumps({"q": message.content}, ensure_ascii=False),
                ),
                **open_,
            )
            open_ = {}
            if (
                len(out) > 1
                and out[-1]["role"] == "tool"
                and not (one["content"] or key in one)
                and draw(st.booleans())
            ):
                before = next(m for m in reversed(out) if m["role"] == "assistant")
                before["tool_calls"] += one["tool_calls"]
            else:
                out.append(one)
        elif message.is_final:
            out.append(says(content, **{k: v for k, v in open_.items() if k == key}))
            open_ = {}
        else:
            open_["content"] = "\n".join(filter(None, [open_.get("content"), content]))
    request = {"messages": out, **({"reasoning_effort": made.effort} if made.effort else {})}
    if made.tools:
        request["tools"] = [
            tool(t.parameters, f"{_name(t.name)}{i}", description=t.description) for i, t in enumerate(made.tools)
        ]
    return request


@settings(max_examples=200, deadline=None)
@given(request=requests())
def test_made_requests_have_the_text_of_training(request):
    # An answer that is rendered Harmony as a whole is read as that by rows, and is text to a template.
    assume(not any("<|channel|>" in str(m.get("content")) for m in request["messages"] if m["role"] == "assistant"))
    try:
        wanted = written(request)
    except RowError:
        assume(False)
    else:
        assert shipped(request) == wanted


CALLED = says("", (1, "f", "{}"), (2, "g", "{}"))


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"role": "critic", "content": "x"}, "The role critic is unknown: send system, developer, user, assistant or tool"),
        ({"role": "function", "content": "x"}, "The role function is unknown"),
        (user([{"type": "image_url", "image_url": {"url": "x"}}]), "A part of a user message is not text"),
        (user({"a": 1}), "The content of a user message is neither text nor a list of parts"),
        (says(None, (1, "f", None)), "A call of f has no arguments: send JSON text or an object"),
    ],
    ids=["critic", "function", "image", "object", "arguments"],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(message, error):
    with pytest.raises(ValueError, match=error):
        shipped({"messages": [user(), message]})


def test_an_unknown_effort_is_refused():
    with pytest.raises(ValueError, match="reasoning_effort is minimal: choose low, medium or high"):
        shipped({"messages": [user()], "reasoning_effort": "minimal"})


def test_an_empty_list_of_tools_is_none():
    assert shipped({"messages": [user()], "tools": []}) == written({"messages": [user()]})


def test_without_a_generation_prompt_nothing_is_opened():
    assert shipped({"messages": LOOP}, generates=False) + "<|start|>assistant" == shipped({"messages": LOOP})
    ended = [*LOOP, says("Yes.", reasoning="b"), user(), says("No.", reasoning="c")]
    assert shipped({"messages": ended}, generates=False).endswith(
        "<|start|>user<|message|>Go.<|end|><|start|>assistant<|channel|>analysis<|message|>c<|end|>"
        "<|start|>assistant<|channel|>final<|message|>No.<|return|>"
    )
    assert "analysis<|message|>b" not in shipped({"messages": ended}, generates=False)


def test_what_vllm_writes_of_odd_messages():
    """As in tests/golden/served: nothing for an empty answer, the last call with an id, no name for an unknown one."""
    head = shipped({"messages": [user()]}).removesuffix("<|start|>assistant")
    assert shipped({"messages": [user(), says("")]}) == head + "<|start|>assistant"
    twice = [user(), says("", (1, "f", "{}")), result(1), says("", (1, "g", "")), result(1)]
    assert shipped({"messages": twice}).count("<|start|>functions.g<|channel|>") == 2
    assert "json<|message|><|call|>" in shipped({"messages": twice})
    assert "<|start|>functions.<|channel|>" in shipped({"messages": [user(), CALLED, result(7)]})


def test_calls_without_ids_have_results_in_their_order():
    without = [user(), CALLED, result(1, "a"), result(2, "b")]
    bare = json.loads(json.dumps(without))
    for call in bare[1]["tool_calls"]:
        del call["id"]
    for message in bare[2:]:
        del message["tool_call_id"]
    assert shipped({"messages": bare}) == shipped({"messages": without})


def test_parsed_arguments_are_json_with_spaces():
    loop = [user(), says("", (1, "f", {"q": "é", "n": [1, None]})), result(1)]
    assert 'json<|message|>{"q": "é", "n": [1, null]}<|call|>' in shipped({"messages": loop})


def test_transformers_renders_the_same():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, "a")))
    tokenizer.chat_template = chat_template(RenderSettings())
    for messages in REQUESTS.values():
        request = {"messages": messages, "tools": [tool(schema, f"f{i}") for i, schema in enumerate(KINDS.values())]}
        got = tokenizer.apply_chat_template(
            messages, tools=request["tools"], add_generation_prompt=True, tokenize=False
        )
        assert got == written(request)
