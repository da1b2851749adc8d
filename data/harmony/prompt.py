"""The system and the developer message that open a conversation.

openai-harmony writes their text, its TypeScript of tool schemas included, because servers do the same; for servers that
obey a template `template_declarations` and `ollama_declarations` write the tools. Each distinct opening is written
once; the ids are ours (same vocabulary, cached).
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
from openai_harmony import DeveloperContent, ReasoningEffort, RenderOptions, Role, SystemContent, ToolDescription
from openai_harmony import Message as OfficialMessage

from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Effort, ResponseFormat, Tool
from counterpoint.data.harmony.lost_keywords import unserved_schemas
from counterpoint.data.harmony.official import official_encoding
from counterpoint.data.harmony.ollama_declarations import ollama_developer
from counterpoint.data.harmony.serving import ServedForm
from counterpoint.data.harmony.template_declarations import template_developer
from counterpoint.data.harmony.tool_schema import cleaned_parameters
from counterpoint.data.harmony.vocabulary import END, MESSAGE, START, Vocabulary

_MAX_OPENINGS = 50_000


class Openings:
    """Ids of system and developer messages, cached by their contents (least recently used go first).

    Callers must not change the arrays that they get.
    """

    def __init__(self, vocabulary: Vocabulary, form: ServedForm, cleaned: bool = False) -> None:
        """cleaned: schemas are rewritten (`data.tool_schemas`)."""
        self._vocabulary = vocabulary
        self._form = form
        self._cleaned = cleaned or form.cleaned
        self.rewritten: dict[str, Tool] = {}
        """Rewritten tools by name, as clients must send them."""
        self._cache: OrderedDict[Any, array[int]] = OrderedDict()

    def system(
        self, effort: Effort, date: str, identity: str | None, builtin_tools: Sequence[str], has_functions: bool
    ) -> array[int]:
        """The system message. `date` is `YYYY-MM-DD`, or "" for none; `identity` None keeps OpenAI's sentence."""
        key = ("system", effort, date, identity, tuple(builtin_tools), has_functions)
        return self._cached(key, lambda: system_message(effort, date, identity, builtin_tools), has_functions)

    def developer(
        self, instructions: str | None, tools: Sequence[Tool] = (), response_formats: Sequence[ResponseFormat] = ()
    ) -> array[int]:
        """The developer message that opens a conversation; no ids where it would be empty.

        Raises RowError where the server cannot write a tool's schema.
        """
        form = self._form
        given = form.developer == "given" and instructions is not None
        if not (instructions or tools or response_formats or given or form.developer == "always"):
            return array("i")
        tool_key = tuple((t.name, t.description, _stable(t.parameters)) for t in tools)
        format_key = tuple((f.name, f.description, _stable(f.schema)) for f in response_formats)
        key = ("developer", instructions, tool_key, format_key)
        suffix = response_formats_text(response_formats)
        declared = self._declared(tools)
        if form.declarations != "harmony":
            write = template_developer if form.declarations == "jinja" else ollama_developer
            if (ids := self._cache.get(key)) is not None:
                self._cache.move_to_end(key)
                return ids
            self._refuse_unserved(tools)
            try:
                said = write(instructions, declared, suffix)
            except (TypeError, AttributeError, ValueError) as error:
                if isinstance(error, RowError):
                    raise
                what = f"{form.name}'s template fails on a schema ({error})"
                raise RowError("not_served", "tools", what, "correct it, or choose another data.serving") from None
            text = self._vocabulary.encode(said)
            return self._kept(key, [START, *self._vocabulary.encode("developer"), MESSAGE, *text, END])

        def make() -> OfficialMessage:
            self._refuse_unserved(tools)
            return developer_message(instructions, declared)

        return self._cached(key, make, bool(tools), suffix)

    def _refuse_unserved(self, tools: Sequence[Tool]) -> None:
        for number, tool in enumerate(tools if self._form.types != "any" else ()):
            for path, why in unserved_schemas(tool.parameters or {}, f"tools[{number}].parameters", self._form.types):
                fix = "correct the schema, or choose another data.serving"
                raise RowError("not_served", path, f"{self._form.name} cannot be sent it: {why}", fix)

    def late_developer(self, text: str) -> array[int]:
        """A system or developer message after the conversation began."""
        if self._form.late in ("system", "prefixed"):
            role, before = ("system", "") if self._form.late == "system" else ("developer", "Instructions:\n")
            encode = self._vocabulary.encode
            return array("i", [START, *encode(role), MESSAGE, *encode(before + text), END])
        return self._cached(("late", text), lambda: developer_message(text), False)

    def _declared(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        if not self._cleaned:
            return tools
        declared = cleaned_tools(tools)
        self.rewritten.update((tool.name, tool) for tool in declared)
        return declared

    def _cached(self, key: Any, make: Any, has_functions: bool, suffix: str = "") -> array[int]:
        ids = self._cache.get(key)
        if ids is not None:
            self._cache.move_to_end(key)
            return ids
        return self._kept(key, self._rewrite(official_ids(make(), has_functions), suffix))

    def _kept(self, key: Any, ids: Sequence[int]) -> array[int]:
        kept = self._cache[key] = array("i", ids)
        if len(self._cache) > _MAX_OPENINGS:
            self._cache.popitem(last=False)
        return kept

    def _rewrite(self, official: list[int], suffix: str) -> list[int]:
        """openai-harmony's message with its content in our vocabulary (which may be a restricted one)."""
        start = official.index(MESSAGE) + 1
        text = self._vocabulary.decode(official[start:-1])
        joined = "\n\n".join(part for part in (text, suffix) if part)
        role = self._vocabulary.encode(self._vocabulary.decode(official[1 : start - 1]))
        return [START, *role, MESSAGE, *self._vocabulary.encode(joined), END]


def official_ids(message: OfficialMessage, has_functions: bool) -> list[int]:
    """One message as openai-harmony renders it. Its Rust panics are BaseExceptions, turned into a RowError here."""
    try:
        return official_encoding().render(message, RenderOptions(conversation_has_function_tools=has_functions))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise RowError(
            "tool_schema", "tools", f"openai-harmony cannot write it ({error})"[:300], "simplify the tool's JSON schema"
        ) from None


def system_message(
    effort: Effort, date: str, identity: str | None, builtin_tools: Sequence[str] = ()
) -> OfficialMessage:
    content = SystemContent.new().with_reasoning_effort(ReasoningEffort[effort.upper()])
    if identity is not None:
        content = content.with_model_identity(identity)
    if date:
        content = content.with_conversation_start_date(date)
    if "browser" in builtin_tools:
        content = content.with_browser_tool()
    if "python" in builtin_tools:
        content = content.with_python_tool()
    return OfficialMessage.from_role_and_content(Role.SYSTEM, content)


def developer_message(instructions: str | None, tools: Sequence[Tool] = ()) -> OfficialMessage:
    content = DeveloperContent.new()
    if instructions is not None:
        content = content.with_instructions(instructions)
    if tools:
        described = [
            ToolDescription.new(t.name, t.description, None if t.parameters is None else dict(t.parameters))
            for t in tools
        ]
        content = content.with_function_tools(described)
    return OfficialMessage.from_role_and_content(Role.DEVELOPER, content)


def cleaned_tools(tools: Sequence[Tool]) -> list[Tool]:
    """The tools that clients must send under `data.tool_schemas: cleaned`."""
    return [replace(tool, parameters=cleaned_parameters(tool.parameters)) for tool in tools]


def response_formats_text(formats: Sequence[ResponseFormat]) -> str:
    """`# Response Formats`, the documented way to ask for structured output; openai-harmony has no call for it."""
    if not formats:
        return ""
    sections = []
    for f in formats:
        description = "".join(f"// {line}\n" for line in f.description.splitlines())
        schema = json.dumps(f.schema, ensure_ascii=False, separators=(",", ":"))
        sections.append(f"## {f.name}\n\n{description}{schema}")
    return "# Response Formats\n\n" + "\n\n".join(sections)


def _stable(schema: Any) -> str | bytes | None:
    """Text of a schema that is equal where the schemas are, order of keys included."""
    if schema is None:
        return None
    try:
        return orjson.dumps(schema)
    except TypeError:  # keys that are no strings, integers above 64 bits
        return json.dumps(schema, ensure_ascii=False)
