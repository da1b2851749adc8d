"""The endpoint over real HTTP with a scripted sampler: what clients do with a history, and which ids are recorded."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.conversation import Conversation, Message, Tool
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.endpoint.ledger import Call, Ledger, trained
from counterpoint.train.endpoint.rows import rows_of
from counterpoint.train.endpoint.server import ChatServer
from counterpoint.train.episodes.episodes import EpisodeLimits
from counterpoint.train.sampling.sample import Sampled
from counterpoint.train.sampling.scripted import Script, ScriptedEngine

VOCABULARY = load_vocabulary()
RENDERER = Renderer(VOCABULARY, RenderSettings(serving="sampled"))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": SCHEMA}}]
CALL = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
    '<|constrain|>json<|message|>{"a":1, "b": "ü"}<|call|>'
)
FINAL = "<|channel|>analysis<|message|>So.<|end|><|start|>assistant<|channel|>final<|message|>It is {}.<|return|>"
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]


@dataclass
class Client:
    server: ChatServer
    ledgers: dict[str, Ledger] = field(default_factory=dict)

    def post(self, body: Any, rollout: str = "a", path: str = "/chat/completions", **headers: str) -> Any:
        """The answer; of an error its status and message."""
        url = self.server.url(rollout) + path if rollout else f"{self.server.root}/v1{path}"
        head = {"Authorization": f"Bearer {self.server.key}", **headers}
        request = urllib.request.Request(url, json.dumps(body).encode(), head)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)["error"]["message"]
        return text if body.get("stream") else json.loads(text)

    def chat(self, messages: Sequence[Any], rollout: str = "a", **more: Any) -> Any:
        """The assistant's message."""
        answer = self.post({"messages": list(messages), "tools": TOOLS, **more}, rollout)
        return answer if isinstance(answer, tuple) else answer["choices"][0]["message"]

    def rows(self, rollout: str = "a") -> list[tuple[str, str]]:
        """Of each row what follows the opening, and the completion with what was sampled in brackets."""
        return [(tail(row.prompt_ids), marked(row.completion_ids, row.mask)) for row in self.kept(rollout)]

    def kept(self, rollout: str = "a") -> list[Any]:
        return rows_of(trained(self.ledgers[rollout].calls))


def tail(ids: Sequence[int]) -> str:
    return VOCABULARY.decode(ids).partition("<|start|>user")[2]


def marked(ids: Sequence[int], mask: Sequence[int]) -> str:
    parts: list[tuple[int, list[int]]] = []
    for id_, mark in zip(ids, mask, strict=True):
        if not parts or parts[-1][0] != mark:
            parts.append((mark, []))
        parts[-1][1].append(id_)
    return "".join(f"[{VOCABULARY.decode(part)}]" if mark else VOCABULARY.decode(part) for mark, part in parts)


@contextmanager
def served(script: Script | Sequence[str], renderer: Renderer = RENDERER, **changes: Any) -> Iterator[Client]:
    engine, lock, ledgers = ScriptedEngine(VOCABULARY, script), threading.Lock(), {}

    def sample(ids: list[int], tokens: int, asked: Any, seed: int) -> Sampled:
        with lock:
            return engine.sample([ids], tokens, 1.0, [seed])[0]

    def find(name: str | None) -> Ledger | None:
        if name not in ("a", "b"):
            return None
        return ledgers.setdefault(name, Ledger(renderer, sample, "low", EpisodeLimits(), **changes))

    with ChatServer(find, "model") as server:
        yield Client(server, ledgers)


def answered(message: Any, content: str = "2", **arguments: Any) -> list[Any]:
    """A call with its result. arguments: as the client writes them back."""
    call = message["tool_calls"][0]
    written = {**call, "function": {**call["function"], **arguments}}
    return [{**message, "tool_calls": [written]}, {"role": "tool", "tool_call_id": call["id"], "content": content}]


RESULT = "<|start|>functions.add to=assistant<|channel|>commentary<|message|>2<|end|><|start|>assistant"
ONE_ROW = f"[{CALL}]{RESULT}[{FINAL.format(2)}]"


def test_a_loop_of_tools_is_one_row_of_the_sampled_ids() -> None:
    with served([CALL, FINAL.format(2)]) as client:
        first = client.post({"messages": ASKED, "tools": TOOLS})
        message = first["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == (None, "Hm.")
        assert message["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a":1, "b": "ü"}'}
        assert first["choices"][0]["finish_reason"] == "tool_calls"
        # Clients that drop the thoughts continue the same ids.
        del message["reasoning_content"]
        last = client.post({"messages": [*ASKED, *answered(message)], "tools": TOOLS})
        assert last["choices"][0] == {
            "index": 0,
            "message": {"role": "assistant", "content": "It is 2.", "reasoning_content": "So."},
            "finish_reason": "stop",
            "logprobs": None,
        }
        assert client.rows() == [("<|message|>1 + 1?<|end|><|start|>assistant", ONE_ROW)]
        (row,) = client.kept()
        tools = (Tool("add", "Adds.", SCHEMA),)
        asked = Conversation((Message("user", "1 + 1?"),), instructions="Be brief.", tools=tools)
        assert row.prompt_ids == RENDERER.prompt(asked, "low")
        assert [row.completion_ids[at] for at in row.starts] == [200005, 200005]
        assert client.ledgers["a"].counts == {"requests": 2}


def same(message: Any) -> list[Any]:
    return answered(message)


def spaced(message: Any) -> list[Any]:
    return answered(message, arguments='{ "b": "\\u00fc",  "a": 1 }')


def as_object(message: Any) -> list[Any]:
    return answered(message, arguments={"a": 1, "b": "ü"})


@pytest.mark.parametrize("written", [same, spaced, as_object])
def test_arguments_that_a_client_writes_anew_split_no_row(written: Callable[[Any], list[Any]]) -> None:
    with served([CALL, FINAL.format(2)]) as client:
        client.chat([*ASKED, *written(client.chat(ASKED))])
        assert [completion for _, completion in client.rows()] == [ONE_ROW]
        assert client.ledgers["a"].counts["rewritten"] == 0


def test_arguments_that_are_no_object_are_continued_whatever_a_client_makes_of_them() -> None:
    broken = CALL.replace('"b": "ü"}', '"b": ')
    with served([broken, FINAL.format(2)]) as client:
        message = client.chat(ASKED)
        assert message["tool_calls"][0]["function"]["arguments"] == '{"a":1, "b": '
        client.chat([*ASKED, *answered(message, arguments="{}")])
        assert [completion for _, completion in client.rows()] == [ONE_ROW.replace(CALL, broken)]
        assert client.ledgers["a"].counts["rewritten"] == 0


def test_what_a_user_says_next_is_a_prompt_without_the_thoughts() -> None:
    with served([CALL, FINAL.format(2), FINAL.format(3)]) as client:
        said = [*ASKED, *answered(client.chat(ASKED))]
        said.append(client.chat(said))
        client.chat([*said, {"role": "user", "content": "+ 1?"}])
        (_, first), (prompt, second) = client.rows()
        assert (first, second) == (ONE_ROW, f"[{FINAL.format(3)}]")
        assert "Hm." not in prompt
        assert "So." not in prompt
        assert '<|message|>{"a":1, "b": "ü"}<|call|>' in prompt  # the arguments as they were sampled
        assert prompt.endswith("It is 2.<|end|><|start|>user<|message|>+ 1?<|end|><|start|>assistant")


def test_a_user_who_speaks_after_a_result_continues_the_row() -> None:
    with served([CALL, FINAL.format(2)]) as client:
        client.chat([*ASKED, *answered(client.chat(ASKED)), {"role": "user", "content": "Quick!"}])
        between = RESULT.removesuffix("<|start|>assistant") + "<|start|>user<|message|>Quick!<|end|><|start|>assistant"
        assert [completion for _, completion in client.rows()] == [f"[{CALL}]{between}[{FINAL.format(2)}]"]


def test_an_edited_history_is_written_anew_and_counted() -> None:
    with served([CALL, FINAL.format(2), FINAL.format(3)]) as client:
        said = [*ASKED, *answered(client.chat(ASKED))]
        client.chat(said)
        client.chat([*said[:3], {**said[3], "content": "3"}, {"role": "user", "content": "Sure?"}])
        # The answer that was left behind is no part of what came of it.
        between = RESULT.replace("2<", "3<").removesuffix("<|start|>assistant")
        asked = "<|start|>user<|message|>Sure?<|end|><|start|>assistant"
        assert [completion for _, completion in client.rows()] == [f"[{CALL}]{between}{asked}[{FINAL.format(3)}]"]
        edited = {key: value for key, value in said[2].items() if key != "reasoning_content"}
        client.chat([*said[:2], {**edited, "content": "I add."}, said[3]])
        *_, (prompt, last) = client.rows()
        assert last == f"[{FINAL.format(3)}]"
        assert "<|channel|>commentary<|message|>I add.<|end|>" in prompt
        assert "Hm." not in prompt
        assert client.ledgers["a"].counts["rewritten"] == 1


def test_a_retry_leaves_an_orphan() -> None:
    with served([CALL, CALL.replace("Hm.", "Again."), FINAL.format(2)]) as client:
        client.chat(ASKED)
        client.chat([*ASKED, *answered(client.chat(ASKED))])
        assert len(client.ledgers["a"].calls) == 3
        assert [completion for _, completion in client.rows()] == [ONE_ROW.replace("Hm.", "Again.")]
        seeds = [call.ids for call in client.ledgers["a"].calls]
        assert seeds[0] != seeds[1]


def test_the_last_of_equal_finals_is_learned() -> None:
    with served([FINAL.format(1), FINAL.format(2)]) as client:
        client.chat(ASKED)
        client.chat(ASKED)
        assert [completion for _, completion in client.rows()] == [f"[{FINAL.format(2)}]"]


def test_a_reply_that_nobody_read_is_not_learned() -> None:
    with served([FINAL.format(1), FINAL.format(2)]) as client:
        client.chat(ASKED)
        client.chat(ASKED)
        client.ledgers["a"].calls[1].lost = True
        assert [completion for _, completion in client.rows()] == [f"[{FINAL.format(1)}]"]


def test_a_compacted_history_opens_a_row_and_keeps_the_one_before() -> None:
    with served([CALL, FINAL.format(2), FINAL.format(3)]) as client:
        client.chat([*ASKED, *answered(client.chat(ASKED))])
        client.chat([ASKED[0], {"role": "user", "content": "So far: 2. And + 1?"}])
        assert [completion for _, completion in client.rows()] == [ONE_ROW, f"[{FINAL.format(3)}]"]
        assert client.ledgers["a"].counts["rewritten"] == 0


def test_a_history_whose_beginning_was_dropped_keeps_its_open_loop() -> None:
    with served([FINAL.format(1), CALL, FINAL.format(3)]) as client:
        said = [*ASKED, client.chat(ASKED), {"role": "user", "content": "More."}]
        call = client.chat(said)
        client.chat([ASKED[0], {"role": "user", "content": "More."}, *answered(call)])
        (_, first), (_, second), (prompt, third) = client.rows()
        assert [first, second, third] == [f"[{FINAL.format(1)}]", f"[{CALL}]", f"[{FINAL.format(3)}]"]
        assert "Hm." in prompt
        assert "1 + 1?" not in prompt
        assert client.ledgers["a"].counts["rewritten"] == 1


def test_other_tools_open_a_row() -> None:
    with served([CALL, FINAL.format(2)]) as client:
        said = [*ASKED, *answered(client.chat(ASKED))]
        client.chat(said, tools=[*TOOLS, {"type": "function", "function": {"name": "more"}}])
        assert [completion for _, completion in client.rows()] == [f"[{CALL}]", f"[{FINAL.format(2)}]"]
        assert client.ledgers["a"].counts["rewritten"] == 1


def test_requests_at_the_same_time_are_each_recorded_once() -> None:
    def script(prompt: list[int], seed: int) -> str:
        return FINAL.format(VOCABULARY.decode(prompt).rpartition("say ")[2].partition(" ")[0])

    with served(script) as client, ThreadPoolExecutor(16) as pool:
        asked = [[{"role": "user", "content": f"say {n} "}] for n in range(32)]
        told = list(pool.map(lambda messages: client.chat(messages)["content"], asked))
        assert told == [f"It is {n}." for n in range(32)]
        found = dict(client.rows())
        assert len(found) == 32
        assert all(f"say {n} " in prompt for n, prompt in enumerate(sorted(found, key=_number)))
        assert all(f"It is {_number(prompt)}." in completion for prompt, completion in found.items())


def _number(prompt: str) -> int:
    return int(prompt.partition("say ")[2].partition(" ")[0])


def test_seeds_do_not_depend_on_the_order_of_requests() -> None:
    def script(prompt: list[int], seed: int) -> str:
        return FINAL.format(seed)

    texts: list[list[str]] = []
    for order in ([0, 1], [1, 0]):
        with served(script) as client:
            asked = [[{"role": "user", "content": f"{n}?"}] for n in range(2)]
            told = {n: client.chat(asked[n])["content"] for n in order}
            texts.append([told[0], told[1]])
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"n": 2}, "n: one completion a request is given: send several requests"),
        ({"logit_bias": {"1": 5}}, "logit_bias: it is not applied: leave it out"),
        ({"tool_choice": "required"}, "tool_choice: no call is forced: `auto` and `none` are known"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "tool_choice: no call is forced"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: is of type web_search: functions alone are called here"),
        ({"reasoning_effort": "huge"}, "reasoning_effort: known are none, minimal, low"),
        ({"temperature": "hot"}, "temperature: it is no number of 0 or more"),
        ({"messages": []}, "messages: a list of at least one message is needed"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content: holds image_url, and gpt-oss reads text only",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(more: dict[str, Any], message: str) -> None:
    with served([FINAL]) as client:
        status, told = client.post({"messages": ASKED, "tools": TOOLS, **more})
        assert status == 400
        assert told.startswith(message)
        assert "a" not in client.ledgers or client.ledgers["a"].calls == []


def test_sampling_belongs_to_the_run() -> None:
    with served([FINAL.format(2)]) as client:
        client.chat(ASKED, temperature=0.1, seed=3, max_tokens=2, tool_choice="auto", top_k=5, reasoning_effort="high")
        ledger = client.ledgers["a"]
        wanted = ("temperature", "seed", "max_tokens", "effort")
        assert ledger.counts == {"requests": 1, **{f"overridden/{name}": 1 for name in wanted}, "ignored/top_k": 1}
        assert "Reasoning: low" in VOCABULARY.decode(ledger.calls[0].prompt_ids)
        assert len(ledger.calls[0].ids) > 2


@pytest.mark.parametrize(
    ("answer", "flaw"),
    [
        ("<|channel|>final<|message|>It is", "length"),
        ("<|channel|>analysis<|message|>Only a thought.<|return|>", "malformed"),
        ("<|channel|>commentary<|message|>{}<|call|>", "malformed"),
        (
            "<|channel|>final<|message|>One.<|end|><|start|>assistant<|channel|>final<|message|>Two.<|return|>",
            "malformed",
        ),
    ],
)
def test_what_is_cut_or_malformed_reads_as_an_answer_that_ran_out_of_length(answer: str, flaw: str) -> None:
    with served([answer]) as client:
        choice = client.post({"messages": ASKED})["choices"][0]
        assert (choice["finish_reason"], choice["message"]["content"]) == ("length", "")
        assert client.ledgers["a"].calls[0].reply.flaw == flaw
        assert client.ledgers["a"].calls[0].is_broken


def test_one_call_too_many_and_one_request_too_many() -> None:
    with served([CALL, CALL], most=2) as client:
        client.ledgers["a"] = ledger = Ledger(RENDERER, *_sampling([CALL]), limits=EpisodeLimits(calls=1), most=2)
        message = client.chat(ASKED)
        cut = client.chat([*ASKED, *answered(message)])
        assert (cut["content"], ledger.calls[1].reply.flaw) == ("", "calls")
        assert client.chat(ASKED)[0] == 400
        assert ledger.failed == "more than 2 requests to the model: raise `requests`, or end the package sooner"


def _sampling(answers: Sequence[str]) -> tuple[Any, Any]:
    engine = ScriptedEngine(VOCABULARY, answers)
    return lambda ids, tokens, asked, seed: engine.sample([ids], tokens, 1.0, [seed])[0], "low"


def test_a_row_ends_where_its_tokens_do() -> None:
    with served([CALL]) as client:
        limits = EpisodeLimits(completion_tokens=len(VOCABULARY.encode_with_specials(CALL)) + 3)
        client.ledgers["a"] = Ledger(RENDERER, *_sampling([CALL]), limits=limits)
        cut = client.chat([*ASKED, *answered(client.chat(ASKED))])
        assert cut["content"] == ""
        assert client.ledgers["a"].calls[1].ids == []


def test_stop_texts_end_the_content_alone() -> None:
    with served([FINAL.format(2)]) as client:
        assert client.chat(ASKED, stop=[" 2", "x"])["content"] == "It is"
        assert client.rows()[0][1] == f"[{FINAL.format(2)}]"


def test_under_a_servers_form_its_own_prompt_is_written() -> None:
    renderer = Renderer(VOCABULARY, RenderSettings(serving="vllm"))
    with served([CALL, FINAL.format(2)], renderer) as client:
        said = [*ASKED, *answered(client.chat(ASKED))]
        client.chat(said)
        call = client.ledgers["a"].calls[1]
        assert not call.continues
        assert call.prompt_ids == renderer.prompt(call.conversation, "low")
        assert [completion for _, completion in client.rows()] == [f"[{CALL}]", f"[{FINAL.format(2)}]"]
        assert client.ledgers["a"].counts["rewritten"] == 0


def test_responses_are_the_same_calls() -> None:
    tools = [{"type": "function", **TOOLS[0]["function"]}]
    with served([CALL, FINAL.format(2), FINAL.format(3)]) as client:
        asked = [{"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]}]
        more = {"tools": tools, "instructions": "Be brief."}
        first = client.post({"input": asked, **more}, path="/responses")
        assert [item["type"] for item in first["output"]] == ["reasoning", "function_call"]
        result = {"type": "function_call_output", "call_id": first["output"][1]["call_id"], "output": "2"}
        second = client.post({"input": [*asked, *first["output"], result], **more}, path="/responses")
        assert second["output"][1]["content"][0]["text"] == "It is 2."
        assert [completion for _, completion in client.rows()] == [ONE_ROW]
        again = {"input": "+ 1?", "previous_response_id": second["id"], **more}
        assert client.post(again, path="/responses")["output"][1]["content"][0]["text"] == "It is 3."
        assert len(client.rows()) == 2
        unknown = client.post({"input": "x", "previous_response_id": "resp_0"}, path="/responses")
        assert unknown == (400, "previous_response_id: resp_0 was not given here")


def test_streams_are_one_chunk() -> None:
    with served([CALL, FINAL.format(2)]) as client:
        body = {"messages": ASKED, "tools": TOOLS, "stream": True, "stream_options": {"include_usage": True}}
        lines = [line[6:] for line in client.post(body).splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        assert chunks[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"a":1, "b": "ü"}'
        assert chunks[1]["choices"][0]["finish_reason"] == "tool_calls"
        assert chunks[2]["usage"]["completion_tokens"] == len(client.ledgers["a"].calls[0].ids)
        told = client.post({"input": "1 + 1?", "stream": True}, path="/responses")
        events = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: ")]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["output"][1]["content"][0]["text"] == "It is 2."


def test_the_rollout_is_named_by_the_path_or_by_a_header_and_the_key_is_needed() -> None:
    with served([FINAL.format(2)]) as client:
        body = {"messages": ASKED}
        client.post(body, rollout="", **{"X-Session-ID": "b"})
        assert len(client.ledgers["b"].calls) == 1
        assert client.post(body, "gone") == (404, "no rollout gone: it has ended, or never was")
        assert client.post(body, "") == (404, "no rollout None: it has ended, or never was")
        assert client.post(body, Authorization="Bearer guess")[0] == 401
        assert client.post(body, path="/embeddings")[0] == 404
        request = urllib.request.Request(client.server.url("a") + "/models")
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request)
        request.add_header("Authorization", f"Bearer {client.server.key}")
        with urllib.request.urlopen(request) as reply:
            assert json.load(reply)["data"][0]["id"] == "model"


@given(st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=3)), max_size=8))
def test_rows_hold_every_sampled_id_once_and_mask_the_rest(steps: list[tuple[int, list[int]]]) -> None:
    """Calls that continue an earlier one, or begin anew."""

    @dataclass
    class Recorded:
        prompt_ids: list[int]
        ids: list[int]
        logprobs: list[float | None] | None
        routes: Any

    calls: list[Recorded] = []
    for number, (back, ids) in enumerate(steps):
        old = calls[-back] if 0 < back <= len(calls) else None
        prompt = [9, number] if old is None else [*old.prompt_ids, *old.ids, *ids]
        routes = np.full((len(prompt) + len(ids) - 1, 1, 1), number)
        calls.append(Recorded(prompt, ids, [-float(n) for n in ids], routes))
    rows = rows_of(calls)
    assert sorted(number for row in rows for number in row.calls) == list(range(len(calls)))
    for row in rows:
        assert len(row.mask) == len(row.completion_ids) == len(row.logprobs or [])
        whole = row.prompt_ids + row.completion_ids
        assert row.routes is not None
        assert len(row.routes) == len(whole) - 1
        assert row.routes[: len(calls[row.calls[0]].routes)].max() == row.calls[0]
        for number, start in zip(row.calls, row.starts, strict=True):
            begin = len(row.prompt_ids) + start
            assert whole[:begin] == calls[number].prompt_ids
            assert whole[begin : begin + len(calls[number].ids)] == calls[number].ids
        assert sum(row.mask) == sum(len(calls[number].ids) for number in row.calls)
        assert [value for value, mark in zip(row.logprobs or [], row.mask, strict=True) if not mark] == [0.0] * (
            len(row.mask) - sum(row.mask)
        )


def test_the_root_of_a_conversation_is_what_was_said_before_the_first_reply() -> None:
    with served([FINAL.format(1), FINAL.format(2)]) as client:
        said = [*ASKED, client.chat(ASKED), {"role": "user", "content": "More."}]
        client.chat(said)
        calls: list[Call] = client.ledgers["a"].calls
        assert calls[0].root == calls[1].root
        assert len(calls[0].root) == 2
