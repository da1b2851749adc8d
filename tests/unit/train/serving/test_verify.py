"""`verify` against stand-ins: a right server gives no alarm, and each planted fault is found by its own question.

The stand-in writes prompts by the forms whose ids real servers gave (tests/golden/served), and samples what it is told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from json_server import serving_json

from counterpoint.configs.data_section import RenderSettings, ServedSettings, ServingName
from counterpoint.configs.errors import ModelError, RunError
from counterpoint.data.harmony.prompt import cleaned_tools
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.tool_declarations import read_tools
from counterpoint.data.harmony.vocabulary import CALL, RETURN, load_vocabulary
from counterpoint.recipes.cli import main
from counterpoint.train.serving.endpoint import Endpoint
from counterpoint.train.serving.probes import ScoredText, Serving, launch_line, probes_of, prompt_ids
from counterpoint.train.serving.verify import Finding, exit_code, verify

VOCABULARY = load_vocabulary()
OPENING = RenderSettings()
CALLS = "<|channel|>analysis<|message|>Ask.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
CALLS += '<|constrain|>json<|message|>{"city":"Åre"}<|call|>'
SAYS = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>"


def encoded(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.encode_with_specials(text))


def stored() -> Serving:
    probes = probes_of(OPENING, VOCABULARY)
    texts = []
    for n, (probe, answer) in enumerate(zip(probes[1::-1] * 4, (CALLS, SAYS) * 4, strict=True)):
        assert probe.ids is not None
        ids = (*probe.ids, *encoded(answer))
        tuned = tuple(-0.01 * (n + 1) for _ in encoded(answer))
        texts.append(ScoredText(ids, len(probe.ids), tuned, tuple(score - 0.9 for score in tuned)))
    return Serving(OPENING, VOCABULARY.fingerprint, probes, tuple(texts))


SERVING = stored()


@dataclass
class StandIn:
    """A vLLM whose parts can be wrong. scores: `tuned`, `base` or `other`; stops: ids that end a completion."""

    settings: RenderSettings = OPENING
    effort: str | None = None
    scores: str = "tuned"
    stops: tuple[int, ...] = (RETURN, CALL)
    cleaned: bool = False
    arguments: str = "verbatim"
    tool_calls: bool = True
    says: str = SAYS
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str, body: Any) -> Any:
        self.asked.append(path)
        if path == "/version":
            return {"version": "0.33.0"}
        if path == "/v1/models":
            return {"data": [{"id": "tuned"}]}
        if path == "/v1/completions":
            return self.completion(body)
        if path == "/v1/chat/completions":
            return self.chat(body)
        return None

    def prompt(self, body: Mapping[str, Any]) -> list[int]:
        request = {key: body[key] for key in ("messages", "tools") if key in body}
        if self.cleaned and "tools" in request:
            tools = cleaned_tools(read_tools(request["tools"], "tools").tools)
            request["tools"] = [
                {"name": t.name, "description": t.description, "parameters": t.parameters} for t in tools
            ]
        request["reasoning_effort"] = self.effort or body["reasoning_effort"]
        return prompt_ids(request, Renderer(VOCABULARY, self.settings))

    def chat(self, body: Mapping[str, Any]) -> Any:
        prompt = self.prompt(body)
        message: dict[str, Any] = {"role": "assistant", "content": "Yes.", "reasoning": "Easy."}
        if body.get("tools") and self.tool_calls:
            arguments = (
                '{"city":"Åre"}' if self.arguments == "verbatim" or body.get("stream") else '{"city": "\\u00c5re"}'
            )
            call = {"id": "c", "type": "function", "function": {"name": "get_weather", "arguments": arguments}}
            message = {"role": "assistant", "content": None, "reasoning": "Ask.", "tool_calls": [call]}
        if body.get("stream"):
            deltas = [{"reasoning": message["reasoning"]}]
            for call in message.get("tool_calls", ()):
                half = len(call["function"]["arguments"]) // 2
                first = {
                    "index": 0,
                    **call,
                    "function": {**call["function"], "arguments": call["function"]["arguments"][:half]},
                }
                rest = {"index": 0, "function": {"arguments": call["function"]["arguments"][half:]}}
                deltas += [{"tool_calls": [first]}, {"tool_calls": [rest]}]
            lines = [f"data: {json.dumps({'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
            return "".join([*lines, "data: [DONE]\n\n"]).encode()
        return {"choices": [{"message": message}], "prompt_token_ids": prompt if body.get("return_token_ids") else None}

    def completion(self, body: Mapping[str, Any]) -> Any:
        ids = tuple(body["prompt"])
        choice: dict[str, Any] = {"finish_reason": "stop", "stop_reason": None}
        if "prompt_logprobs" in body:
            text = next(text for text in SERVING.texts if text.ids == ids)
            assert text.base is not None
            known = {"tuned": text.tuned, "base": text.base, "other": tuple(-7.0 for _ in text.tuned)}[self.scores]
            scores = [None, *[-5.0] * (text.start - 1), *known]
            choice["prompt_logprobs"] = [
                s if s is None else {str(i): {"logprob": s}} for i, s in zip(ids, scores, strict=True)
            ]
            return {"choices": [choice]}
        whole = next((text.ids for text in SERVING.texts if text.ids[:-1] == ids), None)
        if whole is not None:
            sampled = whole[-1:]
        else:
            probe = next(probe for probe in SERVING.probes if probe.ids == ids)
            sampled = encoded(CALLS if "tools" in probe.request else self.says)
        if sampled[-1] not in self.stops:
            sampled, choice["finish_reason"] = (*sampled, *encoded("<|start|>assistant")), "length"
        return {"choices": [{**choice, "token_ids": list(sampled)}]}


def found(stand_in: StandIn, serving: Serving = SERVING) -> dict[str, Finding]:
    with serving_json(stand_in.answer) as url:
        return {finding.question: finding for finding in verify(Endpoint(url), serving, VOCABULARY)}


def differing(findings: Mapping[str, Finding]) -> set[str]:
    return {question for question, finding in findings.items() if finding.verdict == "differs"}


def test_a_right_server_gives_no_alarm() -> None:
    findings = found(StandIn())
    assert {finding.verdict for finding in findings.values()} == {"ok"}
    assert exit_code([*findings.values()]) == 0
    assert set(findings) > {
        "prompt chat",
        "prompt loop",
        "date",
        "effort",
        "adapter",
        "stops",
        "checked",
        "call",
        "call streamed",
    }


PROMPTS = {f"prompt {probe.name}" for probe in SERVING.probes}
LOST = RenderSettings(served=ServedSettings(reasoning="lost"))


@pytest.mark.parametrize(
    ("fault", "stand_in", "questions", "said"),
    [
        ("date", StandIn(settings=RenderSettings(date="2026-11-30")), PROMPTS | {"date", "call", "call streamed"}, "VLLM_SYSTEM_START_DATE=2025-06-28"),
        ("no adapter", StandIn(scores="base"), {"adapter"}, "this is the base, without the adapter"),
        ("another model", StandIn(scores="other"), {"adapter"}, "this is another model"),
        ("cleaned tools", StandIn(cleaned=True), {"prompt tools", "prompt loop", "prompt later", "form", "call", "call streamed"}, "data.tool_schemas: cleaned"),
        ("old header", StandIn(settings=RenderSettings(serving="vllm_0_30")), {"prompt loop", "prompt later", "form", "call", "call streamed"}, "data.serving: vllm_0_30"),
        ("missing stop id", StandIn(stops=(RETURN,)), {"stops", "checked"}, "sampling goes on behind <|call|>"),
        ("effort", StandIn(effort="low"), PROMPTS - {"prompt effort low"} | {"effort", "call", "call streamed"}, "trained medium, served low"),
        ("lost reasoning", StandIn(settings=LOST), {"prompt loop", "form", "call", "call streamed"}, "data.served.reasoning: lost"),
        ("arguments written anew", StandIn(arguments="ascii"), {"call"}, "data.served.arguments: ascii"),
        ("a broken completion", StandIn(says=SAYS.replace("<|channel|>final", "<|channel|>commentary")), {"checked"}, "return_without_final"),
    ],
)  # fmt: skip
def test_each_planted_fault_is_found(fault: str, stand_in: StandIn, questions: set[str], said: str) -> None:
    findings = found(stand_in)
    assert differing(findings) == questions, fault
    assert any(said in finding.detail for finding in findings.values() if finding.verdict == "differs")
    assert exit_code([*findings.values()]) == 1


def test_a_rule_that_the_trained_model_breaks_too_is_no_alarm() -> None:
    says = SAYS.replace("<|channel|>final", "<|channel|>commentary")
    own = {probe.name: probe.broken_by(encoded(says), False, VOCABULARY) for probe in SERVING.probes}
    assert "return_without_final" in own["chat"]
    findings = found(
        StandIn(says=says), replace(SERVING, probes=tuple(replace(p, broken=own[p.name]) for p in SERVING.probes))
    )
    assert not differing(findings)
    assert "in those of the trained model too: chat: " in findings["checked"].detail


@pytest.mark.parametrize(
    "served", [ServedSettings(reasoning="lost"), ServedSettings(arguments="ascii"), ServedSettings(arguments="spaced")]
)
def test_a_right_server_gives_no_alarm_where_clients_write_calls_again(served: ServedSettings) -> None:
    """The server keeps what it is sent; the probes are sent as such clients send them."""
    opening = RenderSettings(served=served)
    serving = replace(SERVING, opening=opening, probes=probes_of(opening, VOCABULARY))
    arguments = "ascii" if served.arguments == "ascii" else "verbatim"
    if served.arguments != "spaced":
        assert not differing(found(StandIn(arguments=arguments), serving))
    else:
        assert not [q for q in differing(found(StandIn(), serving)) if q.startswith(("prompt", "form"))]


@pytest.mark.parametrize("form", ["vllm_responses", "sampled", "openai_harmony"])
def test_forms_that_no_chat_server_writes_are_not_compared_with_one(form: ServingName) -> None:
    opening = RenderSettings(serving=form)
    findings = found(StandIn(), replace(SERVING, opening=opening, probes=probes_of(opening, VOCABULARY)))
    assert findings["prompt"].verdict == "cannot tell"
    assert not differing(findings)


def test_a_run_of_version_0_1_is_compared_with_the_chat_server_that_serves_it() -> None:
    opening = RenderSettings(serving="counterpoint_0_1")
    findings = found(StandIn(), replace(SERVING, opening=opening, probes=probes_of(opening, VOCABULARY)))
    assert findings["prompt chat"].verdict == "ok"
    assert {"prompt tools", "prompt loop", "form"} <= differing(findings)
    assert "data.serving: vllm" in findings["form"].detail


def test_an_adapter_is_asked_before_its_base() -> None:
    models = {"data": [{"id": "base", "parent": None}, {"id": "tuned", "parent": "base"}]}
    answers = {"/version": {"version": "0.33.0"}, "/v1/models": models}
    with serving_json(lambda path, body: answers.get(path)) as url:
        assert Endpoint(url).model == "tuned"
        assert Endpoint(url, "base").model == "base"
        with pytest.raises(RunError, match="no model 'other' is served there, but base, tuned"):
            Endpoint(url, "other")
    answers = {"/api/version": {"version": "0.33.0"}, "/v1/models": {"data": [{"id": "mine:latest"}]}}
    with serving_json(lambda path, body: answers.get(path)) as url:
        assert Endpoint(url, "mine").model == "mine", "Ollama completes the tag"


def test_a_server_that_writes_a_date_no_training_prompt_has() -> None:
    undated = replace(SERVING, opening=RenderSettings(date=""))
    assert "trained none, served 2025-06-28: train with data.date set" in found(StandIn(), undated)["date"].detail


@pytest.mark.parametrize("answer", [[1, 2], "x", {"choices": [None]}, {"choices": 1}, None])
def test_answers_of_another_shape_are_no_crash(answer: Any) -> None:
    def odd(path: str, body: Any) -> Any:
        return {"version": "0.33.0"} if path == "/version" else json.dumps(answer).encode()

    with serving_json(odd) as url:
        assert {finding.verdict for finding in verify(Endpoint(url), SERVING, VOCABULARY)} == {"cannot tell"}


def test_what_a_server_says_of_its_failure_is_told() -> None:
    def failing(path: str, body: Any) -> Any:
        if path == "/version":
            return {"version": "0.33.0"}
        return b"<html>down</html>" if path == "/v1/completions" else None

    with serving_json(failing) as url:
        findings = {finding.question: finding for finding in verify(Endpoint(url), SERVING, VOCABULARY)}
        assert "/v1/chat/completions: status 404" in findings["prompt chat"].detail  # not /render, asked last
        assert "its answer is no JSON" in findings["adapter"].detail
        assert {finding.verdict for finding in findings.values()} == {"cannot tell"}
    with serving_json(lambda path, body: b"<html>") as url, pytest.raises(RunError, match="its answer is no JSON"):
        Endpoint(url)


def test_clients_that_lose_reasoning_are_right_where_the_model_was_trained_for_them() -> None:
    serving = replace(SERVING, opening=LOST, probes=probes_of(LOST, VOCABULARY))
    findings = found(StandIn(settings=LOST), serving)
    assert not [q for q in differing(findings) if q.startswith(("prompt", "form", "call"))]


def test_what_cannot_be_told_is_said() -> None:
    alike = tuple(replace(text, base=text.tuned) for text in SERVING.texts)
    assert "score alike" in found(StandIn(), replace(SERVING, texts=alike))["adapter"].detail
    findings = found(StandIn(tool_calls=False), replace(SERVING, texts=()))
    assert [findings[q].verdict for q in ("adapter", "stops", "call")] == ["cannot tell"] * 3
    assert exit_code([Finding("prompt chat", "cannot tell", "")]) == 2


@pytest.mark.parametrize(
    ("kind", "answers"),
    [
        (
            "llama_cpp",
            {"/props": {"build_info": "b1"}, "/apply-template": {"prompt": "P"}, "/tokenize": {"tokens": [1, 2]}},
        ),
        (
            "sglang",
            {
                "/get_server_info": {"version": "0.5"},
                "/v1/chat/completions": {"choices": [{"prompt_token_ids": [1, 2]}]},
            },
        ),
        (
            "ollama",
            {"/api/version": {"version": "0.9"}, "/api/chat": {"_debug_info": {"rendered_template": "<|end|>a"}}},
        ),
    ],
)
def test_each_server_is_asked_in_its_own_way(kind: str, answers: dict[str, Any]) -> None:
    with serving_json(lambda path, body: answers.get(path)) as url:
        endpoint = Endpoint(url)
        assert endpoint.kind == kind
        ids = endpoint.prompt_ids({"messages": []}, VOCABULARY)
        assert ids == ([200007, *VOCABULARY.encode("a")] if kind == "ollama" else [1, 2])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SERVING.write(tmp_path)
    assert Serving.read(tmp_path) == SERVING
    with serving_json(StandIn().answer) as url:
        assert main(["verify", f"{url}/v1", "--checkpoint", str(tmp_path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["server"], told["exit"], {f["verdict"] for f in told["findings"]}) == ("vllm", 0, {"ok"})
        assert main(["verify", url, "data.serving=vllm_0_30"]) == 1
        assert "differs     prompt loop" in capsys.readouterr().out
        assert main(["verify", url, "lora.rank=4"]) == 2
        assert "lora.rank=4: of the settings only data.*" in capsys.readouterr().err
    assert main(["verify", url]) == 2
    assert "is the server there?" in capsys.readouterr().err
    assert main(["verify", url, "--checkpoint", str(tmp_path), "data.serving=vllm"]) == 2
    (tmp_path / "serving.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot be read .*: export again"):
        Serving.read(tmp_path)


def test_nothing_that_is_known_answers() -> None:
    with serving_json(lambda path, body: None) as url, pytest.raises(RunError, match="no vLLM, SGLang"):
        Endpoint(url)
    with pytest.raises(RunError, match="begins with http:// or https://"):
        Endpoint("ftp://localhost:8000")


def test_the_launch_line_pins_the_date() -> None:
    line = launch_line(OPENING, "out", 20, "openai/gpt-oss-20b")
    assert line.startswith("VLLM_SYSTEM_START_DATE=2025-06-28 vllm serve openai/gpt-oss-20b --enable-lora")
    assert "--max-lora-rank 32 " in line
    assert launch_line(OPENING, "out", 513, "openai/gpt-oss-20b") == "", "more than vLLM serves"
    tools = "--enable-auto-tool-choice --tool-call-parser openai"
    assert launch_line(RenderSettings(date=""), "out", None, "b") == f"vllm serve out {tools}"
