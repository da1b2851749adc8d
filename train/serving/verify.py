"""Is a running endpoint the model that was trained, served as it was trained? One verdict a question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import RowError, RunError
from counterpoint.data.harmony.completion import parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import CALL, RETURN, Vocabulary
from counterpoint.train.serving.endpoint import Endpoint
from counterpoint.train.serving.probes import PROBE_TOKENS, Probe, Serving, as_client_sends, other_settings, prompt_ids

Verdict = Literal["ok", "differs", "cannot tell"]
MOST_DIFFERENT = 0.15
"""Largest mean |difference| of log-probabilities, in nats, between a server's kernels and the tuned model's scores."""
NEARER = 3.0
"""How many times nearer to the tuned model than to its base the server's scores must be."""
_TOLD_APART = 0.01
_RESPONSES = "a form of the Responses API, and chat completions are asked here"
_IDS = "the form of a client that sends token ids itself"
_NO_CHAT = {
    **dict.fromkeys(("vllm_responses", "sglang_responses", "reference"), _RESPONSES),
    **dict.fromkeys(("sampled", "openai_harmony"), _IDS),
}
"""Forms whose prompts a chat endpoint never makes."""
_CALL_TOKENS = 512
_HEADER = {"date": re.compile(r"Current date: (.*)"), "effort": re.compile(r"Reasoning: (.*)")}


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question. question: `prompt NAME`, `date`, `effort`, `form`, `adapter`, `stops`, `checked`,
    `call`, `call streamed`. detail: for a person, what differs and what to do."""

    question: str
    verdict: Verdict
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(endpoint: Endpoint, serving: Serving, vocabulary: Vocabulary) -> Iterator[Finding]:
    """Every finding about the endpoint, as it comes. Sends at most some thirty requests, one after the other."""
    if (why := _NO_CHAT.get(serving.opening.serving)) is not None:
        yield Finding("prompt", "cannot tell", f"data.serving: {serving.opening.serving} is {why}")
    else:
        yield from _prompts(endpoint, serving, vocabulary)
    for question, look in (("adapter", _adapter), ("stops", _stops), ("checked", _checked)):
        yield _safely(question, lambda look=look: look(endpoint, serving, vocabulary))
    if why is None:
        renderer = Renderer(vocabulary, serving.opening)
        for question, stream in (("call", False), ("call streamed", True)):
            yield _safely(question, lambda stream=stream: _call(endpoint, serving, renderer, vocabulary, stream))


def _prompts(endpoint: Endpoint, serving: Serving, vocabulary: Vocabulary) -> Iterator[Finding]:
    seen: list[tuple[Probe, list[int]]] = []
    findings: list[Finding] = []
    for probe in serving.probes:
        findings.append(_prompt(endpoint, probe, vocabulary, seen))
        yield findings[-1]
    yield from _header(seen, serving.opening, vocabulary)
    if any(found.verdict == "differs" for found in findings):
        yield _form_that_fits(seen, serving.opening, vocabulary)


def _safely(question: str, look: Any) -> Finding:
    try:
        verdict, detail = look()
    except (RunError, KeyError, IndexError, TypeError, AttributeError) as error:
        text = str(error) if isinstance(error, RunError) else "its answer has another form than this API's"
        return Finding(question, "cannot tell", text)
    return Finding(question, verdict, detail)


def _prompt(endpoint: Endpoint, probe: Probe, vocabulary: Vocabulary, seen: list[tuple[Probe, list[int]]]) -> Finding:
    question = f"prompt {probe.name}"
    if probe.ids is None:
        return Finding(question, "cannot tell", "the form of training refuses this request")
    try:
        ids = endpoint.prompt_ids(probe.request, vocabulary)
    except RunError as error:
        return Finding(question, "cannot tell", str(error))
    except (KeyError, IndexError, TypeError, AttributeError):
        return Finding(question, "cannot tell", "its answer has another form than this API's")
    if ids is None:
        return Finding(question, "cannot tell", "this server does not tell the prompt of a request")
    seen.append((probe, ids))
    if tuple(ids) == probe.ids:
        return Finding(question, "ok", f"{len(ids)} ids are those of training")
    return Finding(question, "differs", difference(probe.ids, ids, vocabulary))


def difference(trained: Sequence[int], served: Sequence[int], vocabulary: Vocabulary) -> str:
    """Where two prompts part, decoded."""
    pairs = enumerate(zip(trained, served, strict=False))
    at = next((n for n, (mine, theirs) in pairs if mine != theirs), min(len(trained), len(served)))

    def near(ids: Sequence[int]) -> str:
        return json.dumps(vocabulary.decode(ids[max(0, at - 6) : at + 14]), ensure_ascii=False)

    return f"from token {at} on: trained {near(trained)}, served {near(served)}"


def _header(
    seen: Sequence[tuple[Probe, list[int]]], opening: RenderSettings, vocabulary: Vocabulary
) -> Iterator[Finding]:
    """Date and effort as the server's system messages say them."""
    for name, wanted_of, fix in (
        ("date", lambda probe: opening.date, "start vLLM with VLLM_SYSTEM_START_DATE={0}, or train with that date"),
        ("effort", lambda probe: probe.request["reasoning_effort"], "send reasoning_effort with every request"),
    ):
        texts = [(probe, vocabulary.decode(ids)) for probe, ids in seen]
        told = [
            (wanted_of(probe), found.group(1).strip()) for probe, text in texts if (found := _HEADER[name].search(text))
        ]
        if not told:
            yield Finding(
                name, "cannot tell" if not seen else "differs" if opening.date else "ok", f"no prompt says the {name}"
            )
            continue
        wrong = [pair for pair in told if pair[0] != pair[1]]
        if not wrong:
            yield Finding(name, "ok", f"{', '.join(sorted({served for _, served in told}))}, as trained")
        else:
            wanted, served = wrong[0]
            advice = fix.format(wanted) if wanted else f"train with data.{name} set, for this server always writes one"
            yield Finding(name, "differs", f"trained {wanted or 'none'}, served {served}: {advice}")


def _form_that_fits(
    seen: Sequence[tuple[Probe, list[int]]], opening: RenderSettings, vocabulary: Vocabulary
) -> Finding:
    """The settings whose prompts are the server's, whatever date and effort it writes."""
    best: tuple[int, str] = (0, "")
    for name, settings in other_settings(opening):
        equal = sum(_as_written(probe, ids, settings, vocabulary) for probe, ids in seen)
        if equal == len(seen):
            if not name:
                return Finding("form", "ok", f"{opening.serving}, apart from date and effort")
            return Finding("form", "differs", f"this server writes what training with {name} would write")
        if equal > best[0]:
            best = equal, name or f"data.serving: {opening.serving}"
    near = f"; nearest is {best[1]} ({best[0]} of {len(seen)} probes)" if best[0] else ""
    return Finding("form", "differs", f"no form writes these prompts{near}")


def _as_written(probe: Probe, ids: list[int], settings: RenderSettings, vocabulary: Vocabulary) -> bool:
    text = vocabulary.decode(ids)
    found = {name: pattern.search(text) for name, pattern in _HEADER.items()}
    date, effort = (found[name].group(1).strip() if found[name] else "" for name in ("date", "effort"))  # type: ignore[union-attr]
    try:
        request = {**probe.request, "reasoning_effort": effort or probe.request["reasoning_effort"]}
        return prompt_ids(request, Renderer(vocabulary, settings.model_copy(update={"date": date}))) == ids
    except RowError:
        return False


def _adapter(endpoint: Endpoint, serving: Serving, vocabulary: Vocabulary) -> tuple[Verdict, str]:
    """Scores of stored texts: the tuned model's, or the base's."""
    del vocabulary
    if not serving.texts:
        return "cannot tell", "no stored scores: give --checkpoint with an export"
    to_tuned: list[float] = []
    to_base: list[float] = []
    apart: list[float] = []
    for text in serving.texts:
        scores = endpoint.scores(text.ids)
        if scores is None:
            return "cannot tell", "this server scores no prompts (vLLM does)"
        for n, tuned in enumerate(text.tuned):
            score = scores[text.start + n]
            if score is None:
                continue
            to_tuned.append(abs(score - tuned))
            if text.base is not None:
                to_base.append(abs(score - text.base[n]))
                apart.append(abs(tuned - text.base[n]))
    if not to_tuned:
        return "cannot tell", "the server's answer holds no scores"
    mean = sum(to_tuned) / len(to_tuned)
    said = f"mean |difference| of {len(to_tuned)} log-probabilities to the tuned model {mean:.3f} nats"
    if not to_base:
        return ("ok" if mean < MOST_DIFFERENT else "differs"), said
    base = sum(to_base) / len(to_base)
    said += f", to its base {base:.3f}"
    if sum(apart) / len(apart) < _TOLD_APART:
        return "cannot tell", f"{said}: tuned and base score alike"
    if mean < MOST_DIFFERENT and base >= NEARER * mean:
        return "ok", said
    what = "this is the base, without the adapter" if mean >= NEARER * base else "this is another model"
    return "differs", f"{said}: {what}"


def _stops(endpoint: Endpoint, serving: Serving, vocabulary: Vocabulary) -> tuple[Verdict, str]:
    """Whether the server's own stop ids end a call and a final, where nothing but the stop token is left to sample."""
    said: list[str] = []
    verdict: Verdict = "cannot tell"
    for stop, name in ((CALL, "<|call|>"), (RETURN, "<|return|>")):
        text = next((text for text in serving.texts if text.ids[-1] == stop), None)
        told = endpoint.continued(text.ids[:-1], 8) if text is not None else None
        if told is None:
            said.append(f"{name}: not told")
        elif (told.ids[-1] == stop and len(told.ids) == 1) or (told.stop == stop and not told.ids[:-1]):
            said.append(f"{name} ends a completion")
            verdict = "ok"
        elif stop in told.ids[:-1] or told.ids[0] == stop:
            return (
                "differs",
                f"sampling goes on behind {name}: generation_config.json must hold {list(serving.stop_ids)}",
            )
        else:
            said.append(f"{name}: the model sampled another token")
    return verdict, "; ".join(said)


def _checked(endpoint: Endpoint, serving: Serving, vocabulary: Vocabulary) -> tuple[Verdict, str]:
    """Completions of the probes by the strict check; a rule that the trained model broke itself is not the server's."""
    broken: list[str] = []
    known: list[str] = []
    count = 0
    for probe in serving.probes:
        told = endpoint.continued(probe.ids, PROBE_TOKENS) if probe.ids is not None else None
        if told is None:
            continue
        count += 1
        ids = told.ids if told.reason != "stop" or told.ids[-1] in (CALL, RETURN) else (*told.ids, told.stop)
        for code in probe.broken_by([i for i in ids if isinstance(i, int)], told.reason == "length", vocabulary):
            (known if code in (probe.broken or ()) else broken).append(f"{probe.name}: {code}")
    if not count:
        return "cannot tell", "this server tells no sampled ids"
    own = f"{len(known)} in those of the trained model too: {'; '.join(known[:3])}" if known else ""
    if broken:
        also = f"; {own}" if own else ""
        return "differs", f"{len(broken)} violations in {count} completions: {'; '.join(broken[:3])}{also}"
    return "ok", own or f"{count} completions keep every rule"


def _call(
    endpoint: Endpoint, serving: Serving, renderer: Renderer, vocabulary: Vocabulary, stream: bool
) -> tuple[Verdict, str]:
    """A call that the server returns is sent back: are the ids of the next prompt those of training?"""
    probe = next(probe for probe in serving.probes if probe.name == "tools")
    request = {**probe.request, "max_tokens": _CALL_TOKENS, "temperature": 0}
    message = endpoint.chat(request, stream)
    calls = message.get("tool_calls")
    if not calls:
        flags = "vLLM reads calls with --enable-auto-tool-choice --tool-call-parser openai"
        return "cannot tell", f"the model called no tool, or the server read no call in what it sampled ({flags})"
    call = calls[0]
    kept = {key: message[key] for key in ("content", "reasoning", "reasoning_content") if message.get(key)}
    back = as_client_sends({"role": "assistant", "content": None, **kept, "tool_calls": [call]}, serving.opening)
    result = {"role": "tool", "tool_call_id": call.get("id"), "content": "4"}
    asked = {**probe.request, "messages": [*probe.request["messages"], back, result]}
    served = endpoint.prompt_ids(asked, vocabulary)
    if served is None:
        return "cannot tell", "this server does not tell the prompt of a request"
    said = call["function"]["arguments"]
    sampled = _sampled_arguments(endpoint, probe, vocabulary)
    if sampled is not None and said != sampled:
        how = "ascii" if said == _again(sampled, ascii=True) else "spaced" if said == _again(sampled) else "otherwise"
        fix = f"set data.served.arguments: {how}" if how != "otherwise" else "look at the client"
        if renderer.settings.served.arguments != how:
            return "differs", f"the call came back with its arguments written anew ({how}): stream it, or {fix}"
    trained = prompt_ids(asked, renderer)
    if trained == served:
        return "ok", f"{len(served)} ids of the next prompt are those of training"
    return "differs", difference(trained, served, vocabulary)


def _sampled_arguments(endpoint: Endpoint, probe: Probe, vocabulary: Vocabulary) -> str | None:
    """The arguments of the call as they were sampled; None where the server tells no ids."""
    told = endpoint.continued(probe.ids or (), _CALL_TOKENS)
    if told is None:
        return None
    ids = [*told.ids, *([told.stop] if told.stop == CALL and told.ids[-1] != CALL else [])]
    calls = parse_completion(ids, vocabulary).calls
    return calls[0].arguments_text if calls else None


def _again(arguments: str, ascii: bool = False) -> str | None:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=ascii)
    except ValueError:
        return None


def exit_code(findings: Sequence[Finding]) -> int:
    """0 where nothing differs, 1 where something does, 2 where nothing could be told."""
    if any(found.verdict == "differs" for found in findings):
        return 1
    return 0 if any(found.verdict == "ok" for found in findings) else 2
