"""What a served model is held against: `serving.json` of an export, with requests, their prompt ids, and scores.

Probes are chat requests as clients send them; their ids are those of training, written by the form of `data.serving`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from counterpoint.configs.data_section import ConversionSettings, OpeningSettings, RenderSettings
from counterpoint.configs.errors import ModelError, RowError
from counterpoint.data.conversation import Conversation, Tool
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.prompt import cleaned_tools
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.serving import FORMS
from counterpoint.data.harmony.tool_declarations import read_tools
from counterpoint.data.harmony.vocabulary import Vocabulary
from counterpoint.train.sampling.vllm_engine import RANKS, vllm_rank

SERVING_FILE, TOOLS_FILE = "serving.json", "tools.json"
PROBE_TOKENS = 128
"""Tokens that are sampled after a probe and checked, at export and of a server: an export on a CPU waits for them."""
STOP_IDS = (200002, 199999, 200012)
_AS_SENT = ConversionSettings(parallel_calls="together")

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "title": "Arguments",
            "properties": {
                "city": {"type": "string", "description": "Name of the city", "title": "City"},
                "unit": {"type": "string", "enum": ["c", "f"], "default": "c"},
                "day": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            },
            "required": ["city"],
        },
    },
}
_SYSTEM = {"role": "system", "content": "Answer briefly."}
_ASKED = {"role": "user", "content": "Is it colder in Oslo than in Rome?"}
_CALLED = {
    "role": "assistant",
    "content": "I look it up.",
    "reasoning": "Oslo first.",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"city":"Oslo", "unit":"c"}'},
        }
    ],
}
_RESULT = {"role": "tool", "tool_call_id": "call_1", "content": '{"degrees": -4}'}
_ANSWER = {"role": "assistant", "content": "Yes: -4 °C.", "reasoning": "Rome is warmer."}
_NEXT = {"role": "user", "content": "And tomorrow?"}


@dataclass(frozen=True, slots=True)
class Probe:
    """A chat request and the prompt ids of training for it; none where the form cannot write it. broken: codes of the
    rules that the trained model's own greedy completion breaks; None where it was not sampled."""

    name: str
    request: Mapping[str, Any]
    ids: tuple[int, ...] | None = None
    broken: tuple[str, ...] | None = None

    def broken_by(self, ids: Sequence[int], cut: bool, vocabulary: Vocabulary) -> tuple[str, ...]:
        """Codes of the rules that a completion breaks. cut: at the limit of tokens."""
        tools = read_tools(self.request.get("tools") or [], "tools").tools
        reason = "length" if cut else None
        checked = check(ids, tools=tools, finish_reason=reason, vocabulary=vocabulary, policy=False)
        return tuple(violation.code for violation in checked.violations)


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Ids of a prompt with its answer, the index where the answer begins, and log-probabilities of its tokens, in nats:
    of the tuned model, and of its base (None for a model that was trained in full)."""

    ids: tuple[int, ...]
    start: int
    tuned: tuple[float, ...]
    base: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model was trained to be served. tools: the rewritten tools of the probes, which clients of
    `data.tool_schemas: cleaned` send, else none. vocabulary: its fingerprint."""

    opening: RenderSettings
    vocabulary: str
    probes: tuple[Probe, ...]
    texts: tuple[ScoredText, ...] = ()
    stop_ids: tuple[int, ...] = STOP_IDS
    made_by: str = field(default_factory=lambda: f"counterpoint {version('counterpoint')}")

    def write(self, folder: Path) -> None:
        """`serving.json` in `folder`."""
        opening = {name: value for name, value in self.opening.model_dump(mode="json").items() if name in _OPENING}
        value = {
            "made_by": self.made_by,
            "vocabulary": self.vocabulary,
            "stop_ids": list(self.stop_ids),
            "data": opening,
            "probes": [asdict(probe) for probe in self.probes],
            "texts": [asdict(text) for text in self.texts],
        }
        (folder / SERVING_FILE).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Serving:
        """Raises ModelError where the folder has none, or one that cannot be read."""
        try:
            value = json.loads((folder / SERVING_FILE).read_bytes())
            return cls(
                RenderSettings.model_validate(value["data"]),
                value["vocabulary"],
                tuple(_read_probe(probe) for probe in value["probes"]),
                tuple(
                    ScoredText(tuple(t["ids"]), t["start"], tuple(t["tuned"]), t["base"] and tuple(t["base"]))
                    for t in value["texts"]
                ),
                tuple(value["stop_ids"]),
                value["made_by"],
            )
        except FileNotFoundError:
            raise ModelError(f"{folder}: has no {SERVING_FILE}: write it with `counterpoint export`") from None
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"{folder / SERVING_FILE}: cannot be read ({reason}): export again") from None


def _read_probe(value: Mapping[str, Any]) -> Probe:
    ids, broken = value["ids"], value.get("broken")
    return Probe(
        value["name"], value["request"], ids and tuple(ids), None if broken is None else tuple(map(str, broken))
    )


_OPENING = frozenset(OpeningSettings.model_fields)


def requests_of(settings: OpeningSettings) -> Iterator[Probe]:
    """The probes without ids; their efforts: the run's, and the other levels on a plain chat."""
    tools = [_WEATHER]
    if settings.tool_schemas == "cleaned":
        tools = [_declared(tool) for tool in tools]
    effort = settings.effort
    chats = {
        "chat": ([_SYSTEM, _ASKED], None),
        "tools": ([_SYSTEM, _ASKED], tools),
        "loop": ([_SYSTEM, _ASKED, _CALLED, _RESULT], tools),
        "later": ([_SYSTEM, _ASKED, _CALLED, _RESULT, _ANSWER, _NEXT], tools),
    }
    for name, (said, declared) in chats.items():
        messages = [as_client_sends(message, settings) for message in said]
        yield Probe(
            name, {"messages": messages, "reasoning_effort": effort, **({"tools": declared} if declared else {})}
        )
    for other in ("low", "medium", "high"):
        if other != effort:
            yield Probe(f"effort {other}", {"messages": [_ASKED], "reasoning_effort": other})


def as_client_sends(message: Mapping[str, Any], settings: OpeningSettings) -> dict[str, Any]:
    """An assistant message as the clients of `data.served` send it back."""
    reasoning = ("reasoning", "reasoning_content", "thinking")
    lost = reasoning if settings.served.reasoning == "lost" else ()
    sent = {key: value for key, value in message.items() if key not in lost}
    how = settings.served.arguments
    if how in ("ascii", "spaced") and "tool_calls" in sent:
        sent["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": _written(call["function"]["arguments"], how)}}
            for call in sent["tool_calls"]
        ]
    return sent


def _written(arguments: str, how: str) -> str:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=how == "ascii")
    except ValueError:
        return arguments


def _declared(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as clients must send it where schemas are rewritten."""
    (cleaned,) = cleaned_tools(read_tools([tool], "tools").tools)
    return {**tool, "function": {**tool["function"], "parameters": cleaned.parameters}}


def write_tools(folder: Path, tools: Iterable[Tool]) -> None:
    """`tools.json` in `folder`: rewritten tools as clients must send them, OpenAI's list."""
    listed = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in tools
    ]
    (folder / TOOLS_FILE).write_text(json.dumps(listed, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def prompt_ids(request: Mapping[str, Any], renderer: Renderer) -> list[int]:
    """Prompt ids of a chat request as `renderer` writes them. Raises RowError where it cannot."""
    conversation = convert(dict(request), "openai", _AS_SENT)
    assert isinstance(conversation, Conversation)
    return renderer.prompt(conversation)


def probes_of(settings: OpeningSettings, vocabulary: Vocabulary) -> tuple[Probe, ...]:
    """The probes with the ids that a form gives them."""
    renderer = Renderer(vocabulary, settings)
    out: list[Probe] = []
    for probe in requests_of(settings):
        try:
            ids = tuple(prompt_ids(probe.request, renderer))
        except RowError:  # a request that this server refuses
            ids = None
        out.append(Probe(probe.name, probe.request, ids))
    return tuple(out)


def other_settings(settings: OpeningSettings) -> Iterator[tuple[str, RenderSettings]]:
    """Settings that a server may have in place of `settings`, the nearest first, each with what it differs in."""
    base = RenderSettings.of(settings)
    for reasoning in ("of_server", "lost"):
        for form in (base.serving, *(name for name in FORMS if name != base.serving)):
            for schemas in ("as_given", "cleaned"):
                served = base.served.model_copy(update={"reasoning": reasoning})
                changes = {"serving": form, "tool_schemas": schemas, "served": served}
                yield _named(base, changes), base.model_copy(update=changes)


def _named(base: RenderSettings, changes: Mapping[str, Any]) -> str:
    said: list[str] = []
    if changes["serving"] != base.serving:
        said.append(f"data.serving: {changes['serving']}")
    if changes["tool_schemas"] != base.tool_schemas:
        said.append(f"data.tool_schemas: {changes['tool_schemas']}")
    if changes["served"] != base.served:
        said.append(f"data.served.reasoning: {changes['served'].reasoning}")
    return ", ".join(said)


def launch_line(settings: OpeningSettings, folder: str, rank: int | None, base: str) -> str:
    """The command that serves the model in the trained form; "" where the server takes none of ours. rank: the largest
    of an adapter, None for whole weights."""
    date = f"VLLM_SYSTEM_START_DATE={settings.date} " if settings.date else ""
    if settings.serving.startswith("vllm") or settings.serving == "sampled":
        if rank is not None and rank > RANKS[-1]:
            return ""
        room = rank and vllm_rank(rank)
        model = f"{base} --enable-lora --max-lora-rank {room} --lora-modules tuned={folder}" if room else folder
        return f"{date}vllm serve {model} --enable-auto-tool-choice --tool-call-parser openai"
    if settings.serving.startswith("sglang"):
        model = f"--model-path {base} --lora-paths tuned={folder}" if rank else f"--model-path {folder}"
        return f"python -m sglang.launch_server {model} --tool-call-parser gpt-oss --reasoning-parser gpt-oss"
    if settings.serving.startswith("transformers"):
        return f"transformers serve {folder}"
    return "llama-server --jinja -m FILE.gguf" if settings.serving == "llama_cpp" else ""


def positions(texts: Sequence[ScoredText]) -> int:
    return sum(len(text.tuned) for text in texts)
