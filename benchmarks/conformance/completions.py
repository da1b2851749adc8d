"""Cases of sampled completions: valid ones with what they say, malformed ones that a strict reader refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from building import CALL_TYPES, CODE_TYPES, Category, Json, header_spellings, ids_of, tool

from counterpoint.data.harmony.vocabulary import CALL, CHANNEL, END, ENDOFTEXT, MESSAGE, RETURN, START

ADD: Json = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
TOOLS = [tool("add", "Adds.", ADD), tool("now", "The time.", {"type": "object", "properties": {}})]
AGAIN = [START, *ids_of("assistant")]

Said = tuple[list[int], list[int], int]
"""A message of a completion: header after the role, body, last token."""


def said(channel: str, text: str, recipient: str | None = None, kind: str | None = None, style: int = 0) -> Said:
    header = header_spellings(channel, recipient, (kind,))[style]
    end = CALL if recipient else RETURN if channel == "final" else END
    return header, ids_of(text), end


def joined(messages: list[Said]) -> list[int]:
    ids: list[int] = []
    for number, (header, body, end) in enumerate(messages):
        ids += [*(AGAIN if number else []), *header, *body, end]
    return ids


def read(channel: str, text: str, recipient: str | None = None) -> Json:
    return {"channel": channel, "recipient": recipient, "text": text}


def valid() -> Category:
    c = Category("valid_completions", "sampled completions, and what a reader must get out of them")
    think, thought = said("analysis", "Think."), read("analysis", "Think.")

    def add(what: str, messages: list[Said], expect: list[Json], **rules: Any) -> None:
        c.completion(what, joined(messages), valid=True, expect=expect, tools=TOOLS, **rules)

    texts = ("4", "It is 4.\n\nSure.", "Vier — 四 🎉", "  spaced  ", '{"a": 1}', "a < b | c > d <| e |>", "x" * 300)
    for text in texts:
        add("a thought and an answer", [think, said("final", text)], [thought, read("final", text)])
    for text in texts[:4]:
        add("an answer alone", [said("final", text)], [read("final", text)])
    for text in ("First.\nSecond.", "<think>no</think>", "final"):
        add("a thought of other text", [said("analysis", text), said("final", "4")],
            [read("analysis", text), read("final", "4")])  # fmt: skip
    for style, place in enumerate(("channel", "role")):
        for kind, name in zip(CALL_TYPES, ("constrain json", "json", "no"), strict=True):
            made, expect = ("commentary", '{"a":1}', "functions.add"), read("commentary", '{"a":1}', "functions.add")
            add(f"a call, recipient in the {place} section, {name} content type", [think, said(*made, kind, style)],
                [thought, expect])  # fmt: skip
            add(f"a call alone, recipient in the {place} section, {name} content type", [said(*made, kind, style)],
                [expect])  # fmt: skip
    for arguments in ('{"a": 1, "b": -2}', '{\n  "a": 1\n}', '{"b":2,"a":1}', '{"a":123456789012345678901234567890}'):
        made = ("commentary", arguments, "functions.add")
        add("a call's arguments stay as sampled", [think, said(*made, CALL_TYPES[0])],
            [thought, read("commentary", arguments, "functions.add")])  # fmt: skip
    add("a call without arguments", [think, said("commentary", "{}", "functions.now", CALL_TYPES[0])],
        [thought, read("commentary", "{}", "functions.now")])  # fmt: skip
    for kind in CALL_TYPES[:2]:
        made = said("commentary", '{"a":1}', "functions.add", kind)
        add("a thought, a preamble and a call", [think, said("commentary", "I add."), made],
            [thought, read("commentary", "I add."), read("commentary", '{"a":1}', "functions.add")])  # fmt: skip
    made = said("commentary", '{"a":1}', "functions.add", CALL_TYPES[0])
    add("a preamble and a call", [said("commentary", "I add."), made],
        [read("commentary", "I add."), read("commentary", '{"a":1}', "functions.add")])  # fmt: skip
    for style, kind in ((0, CODE_TYPES[0]), (1, CODE_TYPES[0]), (0, None), (1, None)):
        add("a call to python", [think, said("analysis", "print(1)", "python", kind, style)],
            [thought, read("analysis", "print(1)", "python")], builtin_tools=["python"])  # fmt: skip
    for name, arguments in (("browser.search", '{"query":"x"}'), ("browser.open", '{"id":1}')):
        add(f"a call to {name}", [think, said("analysis", arguments, name, "code")],
            [thought, read("analysis", arguments, name)], builtin_tools=["browser"])  # fmt: skip
    c.completion("the opening of the answer is repeated", [*AGAIN, *joined([think, said("final", "4")])], valid=True,
                 expect=[thought, read("final", "4")], tools=TOOLS)  # fmt: skip
    for kind in ("<|constrain|>json", "json"):
        add("an answer with a content type under a response format", [think, said("final", '{"x":1}', None, kind)],
            [thought, read("final", '{"x":1}')], response_format={"type": "json_object"})  # fmt: skip
    more = said("analysis", "More.")
    why = "two thoughts in a row: valid, and readers join them in different ways"
    c.completion("two thoughts", joined([think, more, said("final", "4")]), valid=True, status="arguable", why=why,
                 expect=[thought, read("analysis", "More."), read("final", "4")], tools=TOOLS)  # fmt: skip
    why = "a preamble before an answer: valid, and readers show it in different ways"
    c.completion("a preamble and an answer", joined([think, said("commentary", "Hm."), said("final", "4")]), valid=True,
                 status="arguable", why=why, expect=[thought, read("commentary", "Hm."), read("final", "4")],
                 tools=TOOLS)  # fmt: skip
    return c


Spoil = Callable[[list[Said]], list[int] | None]


def last(change: Callable[[Said], list[int]]) -> Spoil:
    """Spoils the last message."""

    def spoil(messages: list[Said]) -> list[int]:
        *before, final = messages
        return [*joined(before), *(AGAIN if before else []), *change(final)]

    return spoil


def between(change: Callable[[list[int], list[int]], list[int]]) -> Spoil:
    """Spoils the seam before the last message; None where there is none."""

    def spoil(messages: list[Said]) -> list[int] | None:
        if len(messages) < 2:
            return None
        return change(joined(messages[:-1]), joined(messages[-1:]))

    return spoil


def without(ids: list[int], token: int) -> list[int]:
    return [id_ for id_ in ids if id_ != token]


def twice(ids: list[int], token: int) -> list[int]:
    at = ids.index(token)
    return [*ids[: at + 1], *ids[at:]]


def renamed(header: list[int], name: str) -> list[int]:
    """Another channel name; the recipient, if any, stays."""
    start = header.index(CHANNEL) + 1
    stop = next(i for i in range(start, len(header)) if header[i] in (MESSAGE, *ids_of(" to"), 220))
    return [*header[:start], *ids_of(name), *header[stop:]]


STRUCTURE: dict[str, tuple[str, Spoil]] = {
    "no <|channel|>": ("header_grammar", last(lambda m: [*without(m[0], CHANNEL), *m[1], m[2]])),
    "<|channel|> twice": ("second_channel", last(lambda m: [*twice(m[0], CHANNEL), *m[1], m[2]])),
    "no <|message|>": ("header_without_message", last(lambda m: [*m[0][:-1], *m[1], m[2]])),
    "<|message|> twice": ("special_in_content", last(lambda m: [*m[0], MESSAGE, *m[1], m[2]])),
    "an unknown channel": ("unknown_channel", last(lambda m: [*renamed(m[0], "thought"), *m[1], m[2]])),
    "no channel name": ("empty_channel", last(lambda m: [*renamed(m[0], ""), *m[1], m[2]])),
    "a second channel name": (
        "second_channel",
        last(lambda m: [*m[0][:-1], CHANNEL, *ids_of("final"), MESSAGE, *m[1], m[2]]),
    ),
    "stray words in the header": (
        "header_grammar",
        last(lambda m: [*m[0][:-1], *ids_of(" so it is"), MESSAGE, *m[1], m[2]]),
    ),
    "no terminator": ("truncated", last(lambda m: [*m[0], *m[1]])),
    "<|endoftext|> for the terminator": ("special_in_content", last(lambda m: [*m[0], *m[1], ENDOFTEXT])),
    "cut in the header": ("truncated", last(lambda m: m[0][:2])),
    "cut before the content": ("truncated", last(lambda m: m[0])),
    "<|channel|> inside the content": ("special_in_content", last(lambda m: [*m[0], CHANNEL, *m[1], m[2]])),
    "a new message inside the content": (
        "special_in_content",
        last(lambda m: [*m[0], *m[1], *AGAIN, *m[0], *m[1], m[2]]),
    ),
    "text after the stop": ("tokens_after_stop", last(lambda m: [*m[0], *m[1], m[2], *ids_of(" ok")])),
    "a message after the stop": ("tokens_after_stop", last(lambda m: [*m[0], *m[1], m[2], *AGAIN, *m[0], *m[1], m[2]])),
    "ended by <|end|>": ("wrong_terminator", last(lambda m: [*m[0], *m[1], END])),
    "ended by the other stop": ("wrong_terminator", last(lambda m: [*m[0], *m[1], CALL if m[2] == RETURN else RETURN])),
    "an id beyond the vocabulary": ("id_out_of_range", last(lambda m: [*m[0], *m[1], 250_000, m[2]])),
    "a newline between messages": ("stray_tokens", between(lambda a, b: [*a, *ids_of("\n"), *AGAIN, *b])),
    "no <|start|> between messages": ("stray_tokens", between(lambda a, b: [*a, *b])),
    "no <|end|> between messages": ("special_in_content", between(lambda a, b: [*a[:-1], *AGAIN, *b])),
    "a message of a user": ("role_not_assistant", between(lambda a, b: [*a, START, *ids_of("user"), *b])),
    "<|start|> without a role": ("role_not_assistant", between(lambda a, b: [*a, START, *b])),
}  # fmt: skip

BASES: dict[str, list[Said]] = {
    "an answer": [said("final", "4")],
    "a thought and an answer": [said("analysis", "Think."), said("final", "4")],
    "a call": [said("analysis", "Think."), said("commentary", '{"a":1}', "functions.add", CALL_TYPES[0])],
    "a call with its recipient in the role": [
        said("analysis", "Think."),
        said("commentary", '{"a":1}', "functions.add", "json", 1),
    ],
}


def spoiled() -> Iterator[tuple[str, list[int], str]]:
    seen: list[list[int]] = [joined(messages) for messages in BASES.values()]
    for what, (code, spoil) in STRUCTURE.items():
        for base, messages in BASES.items():
            ids = spoil(messages)
            if ids is not None and ids not in seen:
                seen.append(ids)
                yield f"{base}: {what}", ids, code


def malformed() -> Category:
    c = Category("malformed_completions", "sampled completions that a strict reader refuses")

    def add(what: str, ids: list[int], code: str, group: str = "structure", **more: Any) -> None:
        c.completion(what, ids, valid=False, code=code, group=group, tools=TOOLS, **more)

    for what, ids, code in spoiled():
        add(what, ids, code, "ending" if code == "wrong_terminator" else "structure")
    think, final = said("analysis", "Think."), said("final", "4")
    add("nothing at all", [], "empty")
    add("plain text, then the stop", [*ids_of("The answer is 4"), RETURN], "header_without_message")
    add("a thought alone, then the stop", [*think[0], *think[1], RETURN], "no_final_or_call", "ending")
    add("a preamble alone, then the stop", [*said("commentary", "Hm.")[0], *ids_of("Hm."), RETURN],
        "no_final_or_call", "ending")  # fmt: skip
    add("two answers", [*final[0], *final[1], END, *AGAIN, *joined([final])], "second_final", "order")
    add("a thought after the answer", [*final[0], *final[1], END, *AGAIN, *think[0], *think[1], RETURN],
        "analysis_after_final", "order")  # fmt: skip
    for style in (0, 1):
        header = header_spellings("commentary", "functions.add", ("json",))[style]
        at = header.index(CHANNEL) if style else len(header) - 2
        doubled = [*header[:at], *ids_of(" to=functions.now"), *header[at:]]
        add(
            "two recipients in one section", [*joined([think]), *AGAIN, *doubled, *ids_of("{}"), CALL], "two_recipients"
        )
    both = [*ids_of(" to=functions.add"), CHANNEL, *ids_of("commentary"), *ids_of(" to=functions.now"), MESSAGE]
    add("recipients in both sections", [*joined([think]), *AGAIN, *both, *ids_of("{}"), CALL], "two_recipients")
    _arguable(c)
    return c


def _arguable(c: Category) -> None:
    """What servers leave to the application: tools, arguments, texts, policy."""
    think = said("analysis", "Think.")

    def add(what: str, messages: list[Said], code: str, group: str, why: str, **rules: Any) -> None:
        c.completion(what, joined(messages), valid=False, code=code, group=group, tools=TOOLS, status="arguable",
                     why=why, **rules)  # fmt: skip

    why = "which tools exist is the application's business as well"
    for name in ("functions.sub", "functions.", "function.add", "functions.add{}", "functions.Add"):
        call = said("commentary", '{"a":1}', name, "json")
        add(f"a call to {name}", [think, call], "unknown_tool", "tools", why)
    for name in ("add", "assistant", "user"):
        add(f"a call to {name}", [think, said("commentary", '{"a":1}', name, "json")], "bare_name", "tools", why)
    for name, code in (("python", "1"), ("browser.open", '{"id":1}')):
        add(f"{name} is called and not offered", [think, said("analysis", code, name, "code")], "builtin_not_offered",
            "tools", why, builtin_tools=[])  # fmt: skip
    why = "a function's calls belong on commentary, those of built-in tools on analysis; readers take either"
    for channel in ("analysis", "final"):
        add(f"a function is called on {channel}", [think, said(channel, '{"a":1}', "functions.add", "json")],
            "function_not_on_commentary", "tools", why)  # fmt: skip
    add("python is called on commentary", [think, said("commentary", "1", "python", "code")], "builtin_not_on_analysis",
        "tools", why, builtin_tools=["python"])  # fmt: skip
    why = "servers pass arguments on as text"
    for arguments, what in (
        ("", "nothing"),
        ("[1]", "a list"),
        ('"a"', "a string"),
        ("5", "a number"),
        ("null", "null"),
        ('{"a":1', "cut"),
        ("{'a': 1}", "in Python's spelling"),
        ('{"a":NaN}', "with NaN"),
        ('{"a":1}{"a":2}', "two objects"),
        ('"{\\"a\\":1}"', "encoded twice"),
        ('```json\n{"a":1}\n```', "in a code block"),
        ('{"a":1,}', "with a trailing comma"),
    ):
        add(f"arguments are {what}", [think, said("commentary", arguments, "functions.add", "json")],
            "arguments_not_object", "tools", why)  # fmt: skip
    why = "servers leave the check of arguments to the application"
    for arguments, what in (
        ('{"a":"1"}', "a string for an integer"),
        ('{"b":1}', "lacking a required one"),
        ('{"a":1,"c":2}', "with one too many"),
        ('{"a":true}', "a boolean for an integer"),
        ('{"a":1.5}', "a fraction for an integer"),
    ):
        add(f"arguments are {what}", [think, said("commentary", arguments, "functions.add", "json")],
            "arguments_invalid", "tools", why)  # fmt: skip
    why = "an answer without text may be what the model meant"
    for text in ("", " \n"):
        add("an answer without text", [think, said("final", text)], "empty_final", "text", why)
    why = "control tokens spelled as text may be what the model meant"
    for text in ("4 <|end|>", "<|start|>assistant"):
        add("an answer with spelled control tokens", [think, said("final", text)], "markup_in_text", "text", why)
    add("a text that repeats itself", [think, said("final", "no no no " * 120)], "repetition_loop", "text",
        "a loop is well-formed")  # fmt: skip
    cut = ids_of("🎉")[:1]
    header, _, end = said("final", "")
    c.completion("a text that is not UTF-8", [*joined([think]), *AGAIN, *header, *cut, end], valid=False, tools=TOOLS,
                 code="not_utf8", group="text", status="arguable", why="readers replace the bytes")  # fmt: skip
    why = "a content type on a message that calls nothing does no harm"
    for channel in ("analysis", "commentary"):
        add(f"a content type on {channel}", [said(channel, "Hm.", None, "json"), said("final", "4")],
            "content_type_without_recipient", "structure", why)  # fmt: skip
