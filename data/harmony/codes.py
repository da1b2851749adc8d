"""Everything that can be wrong with a sampled completion, one entry a rule.

Names are kept for ever: reports, rewards and logs of old runs are read by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Code(StrEnum):
    """The name of a rule, its group (a setting of `data.bad_targets`), and what breaks it."""

    group: str
    meaning: str

    def __new__(cls, name: str, group: str, meaning: str) -> Self:
        code = str.__new__(cls, name)
        code._value_, code.group, code.meaning = name, group, meaning
        return code

    EMPTY = "empty", "structure", "the completion holds no token"
    ID_OUT_OF_RANGE = "id_out_of_range", "structure", "an id is not an integer from 0 to 201087"
    HEADER_WITHOUT_MESSAGE = "header_without_message", "structure", "a header ends without <|message|>"
    NO_CHANNEL = "no_channel", "structure", "a header has no <|channel|>"
    EMPTY_CHANNEL = "empty_channel", "structure", "no name follows <|channel|>"
    UNKNOWN_CHANNEL = "unknown_channel", "structure", "the channel is none of analysis, commentary, final"
    SECOND_CHANNEL = "second_channel", "structure", "a header has a second <|channel|>"
    HEADER_GRAMMAR = "header_grammar", "structure", "a header holds something that the grammar does not allow"
    TWO_RECIPIENTS = "two_recipients", "structure", "a header names two recipients"
    CONTENT_TYPE_WITHOUT_RECIPIENT = (
        "content_type_without_recipient",
        "structure",
        "a content type on a message that calls no tool",
    )
    SPECIAL_IN_CONTENT = "special_in_content", "structure", "a special id inside the content of a message"
    MARKUP_IN_TEXT = "markup_in_text", "markup", "Harmony markup such as <|start|> spelled in plain tokens"
    ROLE_NOT_ASSISTANT = "role_not_assistant", "structure", "a message of another role than assistant"
    STRAY_TOKENS = "stray_tokens", "structure", "tokens between <|end|> and the next <|start|>"
    TOKENS_AFTER_STOP = "tokens_after_stop", "structure", "tokens after <|return|> or <|call|>"
    TRUNCATED = "truncated", "structure", "the completion ends before <|return|> or <|call|>"

    RECIPIENT_WITHOUT_CALL = "recipient_without_call", "ending", "a message with a recipient does not end in <|call|>"
    CALL_WITHOUT_RECIPIENT = "call_without_recipient", "ending", "a message without a recipient ends in <|call|>"
    FINAL_WITHOUT_RETURN = "final_without_return", "ending", "a final does not end in <|return|>"
    RETURN_WITHOUT_FINAL = "return_without_final", "ending", "a message that is no final ends in <|return|>"
    NO_FINAL_OR_CALL = "no_final_or_call", "ending", "the completion stops with neither a final nor a call"

    ANALYSIS_AFTER_FINAL = "analysis_after_final", "structure", "analysis after the final"
    SECOND_FINAL = "second_final", "structure", "a second final"

    NO_ANALYSIS = "no_analysis", "policy", "policy: no analysis although the effort (medium, high) asks for it"
    EMPTY_ANALYSIS = "empty_analysis", "policy", "policy: an analysis without text"

    FUNCTION_NOT_ON_COMMENTARY = (
        "function_not_on_commentary",
        "tools",
        "a call to functions.* on another channel than commentary",
    )
    BUILTIN_NOT_ON_ANALYSIS = (
        "builtin_not_on_analysis",
        "tools",
        "a call to a built-in tool on another channel than analysis",
    )
    UNKNOWN_TOOL = "unknown_tool", "tools", "a call to a tool that was not declared"
    BARE_NAME = "bare_name", "tools", "a recipient without its namespace"
    BUILTIN_NOT_OFFERED = "builtin_not_offered", "tools", "a call to a built-in tool that was not offered"
    ARGUMENTS_NOT_OBJECT = "arguments_not_object", "arguments", "arguments that are not a JSON object"
    ARGUMENTS_INVALID = "arguments_invalid", "arguments", "arguments that the tool's schema refuses"

    FINAL_INVALID = "final_invalid", "response_format", "a final that its response_format refuses"

    NOT_UTF8 = "not_utf8", "text", "text that is not UTF-8"
    EMPTY_FINAL = "empty_final", "text", "a final without text"
    REPETITION_LOOP = (
        "repetition_loop",
        "text",
        "the same 1 to 512 tokens at least 4 times in a row over at least 256 tokens",
    )


CODES: dict[str, str] = {code.value: code.meaning for code in Code}
POLICY_CODES = frozenset(code for code in Code if code.group == "policy")
TOOL_CODES = frozenset(code.value for code in Code if code.group in ("tools", "arguments"))


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that is broken at token `position` of the ids given; `detail` is for a person."""

    code: str
    position: int
    detail: str
