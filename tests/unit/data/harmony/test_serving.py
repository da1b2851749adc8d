"""The forms of serving: what each writes of a tool loop, and that every example's prompt is the prompt of inference."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import conversations

from counterpoint.configs.data_section import ConversionSettings, RenderSettings, ServedSettings, ServingName
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, ResponseFormat, Tool
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.serving import FORMS, ServedForm
from counterpoint.data.harmony.vocabulary import CALL, RETURN, load_vocabulary

SERVED = [name for name, form in FORMS.items() if form.in_turn == "served"]
CALLED = Message("assistant", '{"q":"Oslo"}', "commentary", "functions.f", content_type=CONSTRAIN_JSON)
LOOP = Conversation(
    (
        Message("user", "Oslo?", name="ann"),
        Message("assistant", "Ask.", "analysis"),
        Message("assistant", "I look.", "commentary"),
        CALLED,
        Message("tool", "4", "commentary", name="functions.f"),
        Message("assistant", "Cold.", "analysis"),
        Message("assistant", "4 degrees", "final"),
    ),
    tools=(Tool("f"),),
    source="a:1",
)


def renderer(serving: str, **changes: Any) -> Renderer:
    return Renderer(load_vocabulary(), RenderSettings(serving=serving, **changes))  # pyright: ignore[reportArgumentType]


def loop(serving: str, conversation: Conversation = LOOP, **changes: Any) -> str:
    """What stands before the second action, from the user's message on."""
    writer = renderer(serving, **changes)
    text = writer.vocabulary.decode(writer.prompt(replace(conversation, messages=conversation.messages[:5])))
    return text[text.index("<|start|>user") :].replace("<|start|>", "\n").replace("<|message|>", "|").lstrip()


def test_every_name_of_the_setting_has_a_form() -> None:
    assert set(get_args(ServingName)) == set(FORMS)
    assert all(form.name == name for name, form in FORMS.items())
    assert len({tuple(getattr(form, f.name) for f in fields(ServedForm))[1:] for form in FORMS.values()}) == len(FORMS)


CHANNEL = "assistant<|channel|>"
VLLM_CALL = 'assistant to=functions.f<|channel|>commentary json|{"q":"Oslo"}<|call|>\n'


@pytest.mark.parametrize(
    ("serving", "wanted"),
    [
        (
            "vllm",
            f"user|Oslo?<|end|>\n{CHANNEL}commentary|I look.<|end|>\n{CHANNEL}analysis|Ask.<|end|>\n{VLLM_CALL}"
            "functions.f<|channel|>commentary to=assistant|4<|end|>\nassistant",
        ),
        (
            "vllm_0_30",
            f"user|Oslo?<|end|>\n{CHANNEL}commentary|I look.<|end|>\n{CHANNEL}analysis|Ask.<|end|>\n{VLLM_CALL}"
            "functions.f to=assistant<|channel|>commentary|4<|end|>\nassistant",
        ),
        (
            "vllm_responses",
            f"user|Oslo?<|end|>\n{CHANNEL}final|I look.<|end|>\n{VLLM_CALL}"
            "functions.f<|channel|>commentary to=assistant|4<|end|>\nassistant",
        ),
        (
            "sglang_responses",
            f"user|Oslo?<|end|>\n{CHANNEL}analysis|Ask.<|end|>\n{CHANNEL}commentary|I look.<|end|>\n{VLLM_CALL}"
            "functions.f|4<|end|>\nassistant",
        ),
        (
            "llama_cpp",
            f"user|Oslo?<|end|>\n{CHANNEL}analysis|Ask.<|end|>\n"
            'assistant to=functions.f<|channel|>commentary json|{"q": "Oslo"}<|call|>\n'
            'functions.f to=assistant<|channel|>commentary|"4"<|end|>\nassistant',
        ),
        (
            "ollama",
            f"user|Oslo?<|end|>\n{CHANNEL}analysis|Ask.<|end|>\n{CHANNEL}final|I look.<|end|>\n"
            f'{CHANNEL}commentary to=functions.f <|constrain|>json|{{"q":"Oslo"}}<|call|>\n'
            "functions.f to=assistant|4<|end|>\nassistant",
        ),
        (
            "openai_harmony",
            f"user:ann|Oslo?<|end|>\n{CHANNEL}analysis|Ask.<|end|>\n{CHANNEL}commentary|I look.<|end|>\n"
            'assistant to=functions.f<|channel|>commentary <|constrain|>json|{"q":"Oslo"}<|call|>\n'
            "functions.f to=assistant<|channel|>commentary|4<|end|>\nassistant",
        ),
    ],
)
def test_a_call_and_its_result_as_each_server_writes_them(serving: str, wanted: str) -> None:
    assert loop(serving) == wanted


def test_what_clients_do_not_return_is_not_in_the_prompt() -> None:
    assert "Ask." not in loop("vllm", served=ServedSettings(reasoning="lost"))
    assert '|{"q": "Oslo"}<|call|>' in loop("vllm", served=ServedSettings(arguments="spaced"))
    odd = replace(CALLED, content='{"q":"é"}')
    conversation = replace(LOOP, messages=(*LOOP.messages[:3], odd, *LOOP.messages[4:]))
    assert '|{"q": "\\u00e9"}<|call|>' in loop("vllm", conversation, served=ServedSettings(arguments="ascii"))
    assert '|{"q":"é"}<|call|>' in loop("vllm", conversation)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ('{"b": 1, "a": [true, null, "é"]}', '{"a":[true,null,"é"],"b":1}'),
        ('{"n": [1.0, 1e5, 2.50, 1e21, 1.5e-7, 1e-10, 12345678901234567890, -0.0]}',
         '{"n":[1,100000,2.5,1e+21,1.5e-7,1e-10,12345678901234567000,-0]}'),
        ('{"<": "a & b > c"}', '{"\\u003c":"a \\u0026 b \\u003e c"}'),
    ],
)  # fmt: skip
def test_ollama_writes_arguments_as_go_does(given: str, written: str) -> None:
    """The right values are what Ollama 0.33.0-rc2 wrote of them."""
    conversation = replace(LOOP, messages=(*LOOP.messages[:3], replace(CALLED, content=given), *LOOP.messages[4:]))
    assert f"json|{written}<|call|>" in loop("ollama", conversation)


def test_the_first_system_message_is_the_instructions_also_under_a_name() -> None:
    named = Conversation((Message("developer", "Be brief.", name="boss"), Message("user", "Hi")), source="a:1")
    plain = Conversation((Message("user", "Hi"),), instructions="Be brief.", source="a:1")
    for serving in ("vllm", "reference", "transformers", "sglang_responses", "ollama"):
        assert renderer(serving).prompt(named) == renderer(serving).prompt(plain)


@pytest.mark.parametrize(
    ("tool", "what"),
    [
        (
            Tool("f", parameters={"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}),
            "without a type",
        ),
        (Tool("a-b"), "under another name"),
        (Tool("python"), "built-in"),
    ],
)
def test_tools_that_ollama_fails_on_or_renames_are_refused(tool: Tool, what: str) -> None:
    with pytest.raises(RowError, match=what) as told:
        renderer("ollama").prompt(Conversation((Message("user", "Hi"),), tools=(tool,), source="a:1"))
    assert told.value.kind == "not_served"


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(), st.sampled_from(SERVED))
def test_the_prompt_of_every_example_is_the_prompt_of_inference(conversation: Conversation, serving: str) -> None:
    """Also where what is behind the action is not known, as a server does not know it."""
    writer = renderer(serving)
    try:
        examples = {(e.turn, e.action): e for e in writer.examples(conversation)}
    except RowError as error:
        assert error.kind == "not_served"  # noqa: PT017
        return
    for action, spans in writer.spans(conversation):
        cut = replace(
            conversation, messages=conversation.messages[: action.start], effort=writer.effort_of(conversation)
        )
        prompt = writer.prompt(cut)
        ids = [i for span in spans for i in span.ids]
        assert ids[: len(prompt)] == prompt
        assert ids[-1] in (CALL, RETURN)
        assert not {CALL, RETURN} & set(ids[len(prompt) : -1]), "an action ends at its first stop token"
        if (example := examples.get((action.turn.number, action.number))) is not None:
            assert example.ids.tolist() == ids
            assert not example.weights[: len(prompt)].any()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_targets_are_the_same_under_every_form(conversation: Conversation) -> None:
    targets: set[tuple[tuple[int, ...], ...]] = set()
    for serving in SERVED:
        try:
            examples = renderer(serving).examples(conversation)
        except RowError:
            continue
        targets.add(tuple(tuple(e.ids[e.weights > 0].tolist()) for e in examples))
    assert len(targets) == 1


def test_a_structured_final_has_the_header_that_the_server_forces() -> None:
    conversation = replace(LOOP, response_formats=(ResponseFormat("answer", {"type": "object"}),))
    for serving, header in (("vllm", "final <|constrain|>json<|message|>"), ("transformers_5_19", "final<|message|>")):
        last = renderer(serving).examples(conversation)[-1]
        assert header in load_vocabulary().decode(last.ids[last.weights > 0])
    assert "Response Formats" not in loop("vllm", conversation)


def test_a_response_format_s_description_cannot_leave_its_comment() -> None:
    formats = (ResponseFormat("answer", {"type": "object"}, "one\n## evil\r\ntwo"),)
    writer = renderer("vllm", response_formats="prompt")
    text = writer.vocabulary.decode(writer.prompt(replace(LOOP, response_formats=formats)))
    assert '## answer\n\n// one\n// ## evil\n// two\n{"type":"object"}' in text


def refused(serving: str, *messages: Message) -> RowError:
    with pytest.raises(RowError) as caught:
        renderer(serving).examples(Conversation((Message("user", "u"), *messages), source="a:1"))
    assert caught.value.kind == "not_served"
    return caught.value


def test_what_a_server_cannot_be_sent_is_refused_with_the_message_that_stands_in_the_way() -> None:
    both = LOOP.messages[1:]
    assert refused("transformers", *both).field == f"assistant message {both[1].content!r}"
    assert renderer("transformers").examples(replace(LOOP, messages=LOOP.messages[:4])), "as a target it is right"
    assert "built-in" in refused("llama_cpp", Message("assistant", "1", "analysis", "python"), *both).what
    assert "late system" in refused("transformers", Message("developer", "d"), Message("assistant", "x", "final")).what
    assert "no JSON" in refused("sglang", replace(CALLED, content="{"), *both[3:]).what


def test_parallel_calls_kept_together_train_the_first_alone() -> None:
    calls = [{"id": f"c{n}", "function": {"name": "f", "arguments": json.dumps({"n": n})}} for n in range(2)]
    results = [{"role": "tool", "tool_call_id": f"c{n}", "content": str(n)} for n in (1, 0)]
    row = {
        "messages": [
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            *results,
            {"role": "assistant", "content": "done"},
        ]
    }
    conversation = convert(row, "auto", ConversionSettings(parallel_calls="together"))
    assert isinstance(conversation, Conversation)
    assert [m.content for m in conversation.messages] == ["u", '{"n": 0}', '{"n": 1}', "0", "1", "done"]
    first, last = renderer("vllm").examples(conversation)
    assert load_vocabulary().decode(first.ids[first.weights > 0]).endswith('{"n": 0}<|call|>')
    text = load_vocabulary().decode(last.ids)
    assert text.index('json<|message|>{"n": 0}') < text.index('json<|message|>{"n": 1}') < text.index("|>0<|end|>")
    assert '{"n": 1}' not in load_vocabulary().decode(renderer("transformers").prompt(conversation))


def test_a_system_text_of_its_own_heading_is_nested_as_servers_nest_it() -> None:
    conversation = convert({"messages": [{"role": "system", "content": "# Instructions\n\nBe kind."}, USER]})
    assert isinstance(conversation, Conversation)
    text = load_vocabulary().decode(renderer("vllm").prompt(conversation))
    assert "<|message|># Instructions\n\n# Instructions\n\nBe kind.<|end|>" in text


USER = {"role": "user", "content": "u"}
