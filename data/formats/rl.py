"""Prompts for reinforcement learning: a question, and in the metadata what a verifier needs.

TRL and verl (`prompt` with `answer`, `ground_truth`, `reward_model`), reasoning-gym (`question`, `answer`, `metadata`),
OpenAI evals (`input`, `ideal`), question-answer files such as GSM8K's, and programming tasks with their tests (APPS,
TACO, MBPP, HumanEval, LiveCodeBench, CodeContests).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from counterpoint.configs.data_section import ConversionSettings
from counterpoint.configs.errors import RowError
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.common_fields import read_common
from counterpoint.data.formats.declarations import DECLARATIONS, read_declarations
from counterpoint.data.formats.draft import Draft
from counterpoint.data.formats.system_texts import add_row_system, system_fields
from counterpoint.data.formats.tables import add_prompt

PROMPT_KEYS = ("prompt", "question", "problem", "input", "query")
REFERENCE_KEYS = (
    "answer",
    "answers",
    "ground_truth",
    "reward_model",
    "solution",
    "ideal",
    "target",
    "targets",
    "reference",
    "reference_answer",
    "final_answer",
    "expected_answer",
    "expected_arguments",
    "verification_info",
    "test_cases",
    "tests",
    "reference_code",
    "input_output",
    "test_list",
    "public_tests",
    "public_test_cases",
    "rubric",
    "rubrics",
)
_BESIDE = {"test_list": "text", "public_test_cases": "question_content", "public_tests": "description"}
"""What MBPP, LiveCodeBench and CodeContests call the prompt, by the field of their tests."""


def prompt_key(row: Mapping[str, Any]) -> str | None:
    """The field that holds the prompt; None where there is none."""
    found = next((key for key in PROMPT_KEYS if isinstance(row.get(key), (str, list))), None)
    if found is not None:
        return found
    return next((key for tests, key in _BESIDE.items() if tests in row and isinstance(row.get(key), str)), None)


def looks_like(row: Mapping[str, Any]) -> bool:
    if prompt_key(row) is None:
        return False
    return "prompt" in row or any(row.get(key) is not None for key in REFERENCE_KEYS)


def read(row: Mapping[str, Any], options: ConversionSettings) -> Conversation:
    """The prompt as a conversation; every other field is metadata, untouched. Raises RowError."""
    key = prompt_key(row)
    if key is None:
        fix = f"write one of {', '.join(PROMPT_KEYS)}"
        raise RowError("no_prompt", "prompt", "missing, or neither a string nor messages", fix)
    draft = Draft("rl", options)
    read_declarations(draft, row, "")
    read_common(draft, row, DECLARATIONS | system_fields(row) | {key}, quiet=True)
    add_row_system(draft, row)
    add_prompt(draft, row[key], key)
    if not any(row.get(name) is not None for name in REFERENCE_KEYS):
        draft.notice("no_reference", key, "a prompt without a reference answer")
    return draft.finish()
