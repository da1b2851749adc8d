"""The stable names of everything that can be wrong with a sampled completion, one code a rule.

Names are kept for ever: reports, rewards and logs of old runs are read by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """One rule each, in the groups of `GROUPS`."""

    EMPTY = "empty"
    ID_OUT_OF_RANGE = "id_out_of_range"
    HEADER_WITHOUT_MESSAGE = "header_without_message"
    NO_CHANNEL = "no_channel"
    EMPTY_CHANNEL = "empty_channel"
    UNKNOWN_CHANNEL = "unknown_channel"
    SECOND_CHANNEL = "second_channel"
    HEADER_GRAMMAR = "header_grammar"
    TWO_RECIPIENTS = "two_recipients"
    CONTENT_TYPE_WITHOUT_RECIPIENT = "content_type_without_recipient"
    SPECIAL_IN_CONTENT = "special_in_content"
    MARKUP_IN_TEXT = "markup_in_text"
    ROLE_NOT_ASSISTANT = "role_not_assistant"
    STRAY_TOKENS = "stray_tokens"
    TOKENS_AFTER_STOP = "tokens_after_stop"
    TRUNCATED = "truncated"

    RECIPIENT_WITHOUT_CALL = "recipient_without_call"
    CALL_WITHOUT_RECIPIENT = "call_without_recipient"
    FINAL_WITHOUT_RETURN = "final_without_return"
    RETURN_WITHOUT_FINAL = "return_without_final"
    NO_FINAL_OR_CALL = "no_final_or_call"

    ANALYSIS_AFTER_FINAL = "analysis_after_final"
    SECOND_FINAL = "second_final"
    NO_ANALYSIS = "no_analysis"
    EMPTY_ANALYSIS = "empty_analysis"

    FUNCTION_NOT_ON_COMMENTARY = "function_not_on_commentary"
    BUILTIN_NOT_ON_ANALYSIS = "builtin_not_on_analysis"
    UNKNOWN_TOOL = "unknown_tool"
    BARE_NAME = "bare_name"
    BUILTIN_NOT_OFFERED = "builtin_not_offered"
    ARGUMENTS_NOT_OBJECT = "arguments_not_object"
    ARGUMENTS_INVALID = "arguments_invalid"

    NOT_UTF8 = "not_utf8"
    EMPTY_FINAL = "empty_final"
    REPETITION_LOOP = "repetition_loop"


GROUPS: dict[str, dict[Code, str]] = {
    "structure": {
        Code.EMPTY: "the completion holds no token",
        Code.ID_OUT_OF_RANGE: "an id is not an integer from 0 to 201087",
        Code.HEADER_WITHOUT_MESSAGE: "a header ends without <|message|>",
        Code.NO_CHANNEL: "a header has no <|channel|>",
        Code.EMPTY_CHANNEL: "no name follows <|channel|>",
        Code.UNKNOWN_CHANNEL: "the channel is none of analysis, commentary, final",
        Code.SECOND_CHANNEL: "a header has a second <|channel|>",
        Code.HEADER_GRAMMAR: "a header holds something that the grammar does not allow",
        Code.TWO_RECIPIENTS: "a header names two recipients",
        Code.CONTENT_TYPE_WITHOUT_RECIPIENT: "a content type on a message that calls no tool",
        Code.SPECIAL_IN_CONTENT: "a special id inside the content of a message",
        Code.MARKUP_IN_TEXT: "Harmony markup such as <|start|> spelled in plain tokens",
        Code.ROLE_NOT_ASSISTANT: "a message of another role than assistant",
        Code.STRAY_TOKENS: "tokens between <|end|> and the next <|start|>",
        Code.TOKENS_AFTER_STOP: "tokens after <|return|> or <|call|>",
        Code.TRUNCATED: "the completion ends before <|return|> or <|call|>",
    },
    "ending": {
        Code.RECIPIENT_WITHOUT_CALL: "a message with a recipient does not end in <|call|>",
        Code.CALL_WITHOUT_RECIPIENT: "a message without a recipient ends in <|call|>",
        Code.FINAL_WITHOUT_RETURN: "a final does not end in <|return|>",
        Code.RETURN_WITHOUT_FINAL: "a message that is no final ends in <|return|>",
        Code.NO_FINAL_OR_CALL: "the completion stops with neither a final nor a call",
    },
    "order": {
        Code.ANALYSIS_AFTER_FINAL: "analysis after the final",
        Code.SECOND_FINAL: "a second final",
        Code.NO_ANALYSIS: "policy: no analysis although the effort (medium, high) asks for it",
        Code.EMPTY_ANALYSIS: "policy: an analysis without text",
    },
    "tools": {
        Code.FUNCTION_NOT_ON_COMMENTARY: "a call to functions.* on another channel than commentary",
        Code.BUILTIN_NOT_ON_ANALYSIS: "a call to a built-in tool on another channel than analysis",
        Code.UNKNOWN_TOOL: "a call to a tool that was not declared",
        Code.BARE_NAME: "a recipient without its namespace",
        Code.BUILTIN_NOT_OFFERED: "a call to a built-in tool that was not offered",
        Code.ARGUMENTS_NOT_OBJECT: "arguments that are not a JSON object",
        Code.ARGUMENTS_INVALID: "arguments that the tool's schema refuses",
    },
    "text": {
        Code.NOT_UTF8: "text that is not UTF-8",
        Code.EMPTY_FINAL: "a final without text",
        Code.REPETITION_LOOP: "the same 1 to 512 tokens at least 4 times in a row over at least 256 tokens",
    },
}

CODES: dict[str, str] = {code.value: meaning for codes in GROUPS.values() for code, meaning in codes.items()}
POLICY_CODES = frozenset({Code.NO_ANALYSIS, Code.EMPTY_ANALYSIS})


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that is broken at token `position` of the ids given; `detail` is for a person."""

    code: str
    position: int
    detail: str
