"""What each server puts before the model when a client sends a conversation back: one frozen form a name.

A server does not see the tokens that it sampled, it sees the client's messages and writes them again, each in a way of
its own. `served_messages` writes a history by a form. What was measured on which version: docs/serving.md and
tests/golden/served.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from counterpoint.configs.data_section import OpeningSettings, ServingName
from counterpoint.data.conversation import CONSTRAIN_JSON
from counterpoint.data.harmony.encoding import Place


@dataclass(frozen=True, slots=True)
class ServedForm:
    """How one server writes the messages of a request.

    in_turn: `served` where a client sends the messages back between two actions, `sampled` where the sampled ids go on.
    call_place, result_place: the part of the header that holds the recipient (`bare`: none and no channel,
        `no_channel`: after the role). call_type: content type of a call to a function; "given" keeps the message's.
    result_body: a result's text, or that text as a JSON string. arguments: as the client sends them, parsed and
        written with spaces (`spaced`), the same in ASCII (`ascii`), by Go (`go`), or as a JSON string in a string
        (`quoted`).
    calls: all calls of a message, or its first only.
    merged: an API with one field each for thoughts and text, in which several are joined by line breaks; else each is
        an item of its own, in the order in which it was sampled.
    beside_call: where text next to a call goes. `commentary_first` is before the analysis, `commentary` and `final`
        behind it, `analysis` instead of it.
    reasoning: whether analysis of an open tool loop comes back. analysis_until: what ends its stay in the prompt;
        `loop` is a final, or a last message that is no result; `library` is openai-harmony's own rule.
    declarations: whose TypeScript declares the tools.
    types: JSON schema's types alone are taken (`json`), or Python's are rewritten (`python`): such tools are refused.
    developer: a developer message is written when it holds something, also for empty instructions (`given`), or always.
    leading: several system messages at the start are messages of their own, or one joined text, or one without their
        headings (`cleaned`). neighbours: messages of one role in a row are messages of their own, or one.
    late: later system messages are developer messages, or only those that hold something are (`filled`), or they stay
        system messages (`system`), or are developer text behind `Instructions:` (`prefixed`), or the server loses them
        or moves them to the front (`moved`): such rows are refused.
    structured_final: content type of a final that a response format constrains.
    formats_in_prompt: response formats are declared in the developer message.
    names: of users. builtin_calls: whether calls to python and browser can stand in the history.
    cleaned: schemas are rewritten before they are declared (`data.tool_schemas: cleaned`).
    evidence: the servers and versions whose ids it equals in tests/golden/served, or that it was read from source.
    """

    name: str
    in_turn: Literal["served", "sampled"] = "served"
    call_place: Literal["role", "channel"] = "role"
    call_type: str | None = "json"
    result_place: Place = "role"
    result_body: Literal["text", "json"] = "text"
    arguments: Literal["verbatim", "spaced", "ascii", "go", "quoted"] = "verbatim"
    calls: Literal["all", "first"] = "all"
    merged: bool = True
    beside_call: Literal["commentary_first", "commentary", "final", "analysis", "dropped"] = "commentary"
    reasoning: Literal["returned", "lost"] = "returned"
    analysis_until: Literal["final", "loop", "user", "library"] = "final"
    declarations: Literal["harmony", "jinja", "ollama"] = "harmony"
    types: Literal["any", "json", "python"] = "any"
    developer: Literal["filled", "given", "always"] = "filled"
    leading: Literal["separate", "joined", "cleaned"] = "separate"
    neighbours: Literal["separate", "merged"] = "separate"
    late: Literal["developer", "filled", "system", "prefixed", "lost", "moved"] = "developer"
    structured_final: str | None = None
    formats_in_prompt: bool = False
    names: Literal["kept", "dropped"] = "dropped"
    builtin_calls: bool = True
    cleaned: bool = False
    evidence: str = ""


FIRST_FORM = "counterpoint_0_1"
"""What version 0.1 wrote: its run folders and prepared folders keep it."""

_HARMONY = ServedForm(
    "openai_harmony",
    call_type="given",
    developer="given",
    names="kept",
    evidence="openai-harmony 0.0.8, compared in the tests of the renderer",
)
_VLLM = ServedForm(
    "vllm",
    result_place="channel",
    beside_call="commentary_first",
    structured_final=CONSTRAIN_JSON,
    evidence="golden ids of vllm 0.33.0",
)
_TEMPLATE = ServedForm(
    "transformers",
    result_body="json",
    arguments="quoted",
    calls="first",
    beside_call="analysis",
    declarations="jinja",
    late="lost",
    builtin_calls=False,
    evidence="golden ids of transformers 5.24.0 and the official template",
)


def _named(base: ServedForm, name: str, **changes: object) -> ServedForm:
    return replace(base, name=name, **changes)  # pyright: ignore[reportArgumentType]


FORMS: Mapping[str, ServedForm] = MappingProxyType(
    {
        form.name: form
        for form in (
            _VLLM,
            _named(_VLLM, "vllm_0_30", result_place="role", evidence="golden ids of vllm 0.30.0"),
            _named(_VLLM, "vllm_responses", beside_call="final", merged=False, late="filled"),
            _TEMPLATE,
            _named(
                _TEMPLATE,
                "transformers_5_19",
                reasoning="lost",
                evidence="golden ids of transformers 5.20.2 and the official template",
            ),
            _named(
                _TEMPLATE,
                "llama_cpp",
                arguments="spaced",
                beside_call="dropped",
                types="json",
                evidence="golden ids of llama_cpp llama-cpp-python-0.3.36 and the official template",
            ),
            _named(
                _TEMPLATE,
                "sglang",
                arguments="spaced",
                reasoning="lost",
                types="python",
                evidence="golden ids of sglang 0.5.23 and the official template",
            ),
            _named(
                _VLLM,
                "sglang_responses",
                types="python",
                result_place="bare",
                beside_call="commentary",
                merged=False,
                analysis_until="library",
                developer="always",
                late="prefixed",
                structured_final=None,
                evidence="golden ids of sglang 0.5.23",
            ),
            _named(
                _HARMONY,
                "reference",
                call_type=None,
                beside_call="final",
                merged=False,
                developer="filled",
                late="system",
                analysis_until="loop",
                names="dropped",
                evidence="golden ids of reference 0.0.9, OpenAI's gpt_oss",
            ),
            _named(
                _HARMONY,
                "ollama",
                call_place="channel",
                call_type=CONSTRAIN_JSON,
                result_place="no_channel",
                beside_call="final",
                analysis_until="user",
                arguments="go",
                declarations="ollama",
                developer="filled",
                leading="joined",
                neighbours="merged",
                late="moved",
                names="dropped",
                builtin_calls=False,
                evidence="golden ids of ollama 0.33.0-rc2 and the library's template",
            ),
            _HARMONY,
            _named(_HARMONY, "sampled", in_turn="sampled", evidence="no server: sampled ids go on"),
            _named(
                _HARMONY,
                FIRST_FORM,
                in_turn="sampled",
                leading="cleaned",
                formats_in_prompt=True,
                cleaned=True,
                evidence="no server: what version 0.1 wrote",
            ),
        )
    }
)
"""Every form by its name, which is a value of `data.serving`."""


def form_of(settings: OpeningSettings) -> ServedForm:
    """The form that `data.serving` names, with what `data.served` says of the clients."""
    return _form_of(settings.serving, settings.served.reasoning, settings.served.arguments)


@lru_cache(maxsize=256)
def _form_of(name: ServingName, reasoning: str, arguments: str) -> ServedForm:
    changes = {"reasoning": reasoning, "arguments": arguments}
    return _named(FORMS[name], name, **{key: value for key, value in changes.items() if value != "of_server"})
