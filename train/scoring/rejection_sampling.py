"""Reasoning for answers that have none: sampled until its final agrees with the row's answer, and written as a row.

What is written is a file of format `harmony`: messages with channels, which `recipe: sft` takes as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from counterpoint.data.conversation import Conversation, Effort
from counterpoint.data.formats.harmony_row import harmony_row
from counterpoint.data.harmony.completion import Completion, parse_completion
from counterpoint.data.harmony.render import Renderer
from counterpoint.train.sampling.engines import Engine
from counterpoint.train.sampling.sample import sample_seed
from counterpoint.train.scoring.prompts import EvalPrompt, default_scorer, prompt_of
from counterpoint.train.scoring.scorers import Scorers


@dataclass(frozen=True, slots=True)
class Question:
    """A row without its answer. number: its index among the rows, which identifies it. answer: the row's own final."""

    number: int
    prompt: EvalPrompt
    effort: Effort
    answer: str | None


@dataclass(frozen=True, slots=True)
class Distilled:
    """A question with the first sample that was accepted, or none. samples: how many were drawn."""

    question: Question
    completion: Completion | None
    samples: int


def question_of(number: int, conversation: Conversation, renderer: Renderer) -> Question | None:
    """The last turn's question; None where that turn calls tools, or its right answer is unknown."""
    prompt = prompt_of(conversation)
    given = conversation.messages[len(prompt.conversation.messages) :]
    if any(message.is_call or message.role == "tool" for message in given):
        return None
    answer = next((message.content for message in given if message.is_final), None)
    if prompt.reference.answer is None and answer is not None:
        reference = replace(prompt.reference, answer=answer)
        prompt = replace(prompt, reference=reference, scorer=prompt.scorer or default_scorer(reference))
    if prompt.scorer is None:
        return None
    return Question(number, prompt, renderer.effort_of(prompt.conversation), answer)


def distil(
    questions: Sequence[Question],
    renderer: Renderer,
    engine: Engine,
    scorers: Scorers,
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    scorer: str | None = None,
    least_tokens: int = 1,
) -> Iterator[Distilled]:
    """Each question once, in their order; all without an accepted sample are sampled together, once a round.

    A sample depends on the seed, the question's number and the round alone, not on the other questions.
    """
    accepted: dict[int, tuple[Completion, int]] = {}
    for k in range(samples):
        left = [question for question in questions if question.number not in accepted]
        if not left:
            break
        sampled = engine.sample(
            [renderer.prompt(question.prompt.conversation, question.effort) for question in left],
            max_new_tokens,
            temperature,
            [sample_seed(seed, question.number, k) for question in left],
        )
        for question, found in zip(left, sampled, strict=True):
            conversation = question.prompt.conversation
            completion = parse_completion(
                found.ids,
                renderer.vocabulary,
                tools=conversation.tools,
                builtin_tools=conversation.builtin_tools,
                effort=question.effort,
                response_format=conversation.response_format,
                finish_reason=found.finish_reason,
            )
            if _agrees(completion, question, scorers, scorer, least_tokens):
                accepted[question.number] = (completion, k + 1)
    for question in questions:
        completion, drawn = accepted.get(question.number, (None, samples))
        yield Distilled(question, completion, drawn)


def _agrees(completion: Completion, question: Question, scorers: Scorers, scorer: str | None, least: int) -> bool:
    """Right by every rule, with reasoning, without a call, and with the right answer."""
    if not completion.ok or completion.calls or completion.n_tokens_by_channel["analysis"] < max(1, least):
        return False
    name = scorer or question.prompt.scorer
    assert name is not None
    return scorers.score(name, completion, question.prompt.reference).value >= 1.0


def row_of(done: Distilled, keep_answer: bool = True) -> dict[str, Any]:
    """The accepted question as a row of format `harmony`; earlier answers without reasoning are not trained."""
    question, completion = done.question, done.completion
    assert completion is not None
    assert completion.final is not None
    conversation = question.prompt.conversation
    final = question.answer if keep_answer and question.answer is not None else completion.final
    row = harmony_row(replace(conversation, effort=question.effort))
    row["messages"].append({"role": "assistant", "channel": "analysis", "content": completion.analysis})
    row["messages"].append({"role": "assistant", "channel": "final", "content": final})
    return row
