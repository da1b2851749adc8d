"""The fixed prompts that an evaluation samples: conversations that end where the model should answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from counterpoint.configs.data_section import ConversionSettings, SourceSettings
from counterpoint.configs.errors import DataError
from counterpoint.configs.problems import shown
from counterpoint.configs.user_code import is_foreign
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.read import read_conversations
from counterpoint.data.harmony.window import split_turns
from counterpoint.data.rows.row import BadRow
from counterpoint.train.scoring.code_truths import code_tests, holds_tests
from counterpoint.train.scoring.scorers import ExpectedCall, Reference
from counterpoint.train.scoring.truths import fitting, options_of, truth_of

BUILT_IN = "example:probes"


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What the user says after the model's final, and the truth of the turn that answers it."""

    text: str
    reference: Reference
    scorer: str | None


@dataclass(frozen=True, slots=True)
class EvalPrompt:
    """One item. `scorer` is a name that `scorers.Scorers` knows, None where the row has no truth to compare with.

    cluster: items of the same one depend on each other (questions on one text, variants of one problem); "" is the id.
    follow_ups: later user messages, which rollouts of `recipe: grpo` go through; an evaluation asks the first alone.
    notice: what is odd about the row's truth.
    """

    id: str
    conversation: Conversation
    reference: Reference
    scorer: str | None
    task: str = ""
    cluster: str = ""
    follow_ups: tuple[FollowUp, ...] = ()
    notice: str | None = None


def load_prompts(
    path: str | SourceSettings | None, options: ConversionSettings | None = None, truth: str | None = None
) -> list[EvalPrompt]:
    """Prompts of a file (`example:NAME` of the package; None takes the built-in probes), in its order.

    A row that ends in an assistant turn is cut before that turn. Truth, where the row has it: an answer under a name of
    `truths.NAMES`, or where `truth` says (`a.b.c`); `call` or `calls` (`{name, arguments}`, or BFCL's `{name:
    {argument: [accepted, ...]}}`, as `ground_truth` too); `schema`; `instruction_id_list` with `kwargs`; a reasoning-
    gym entry; `choices` or `options` with the answer's letter, index or text; tests of a program (`code_truths.py`);
    and `scorer` to name the comparison. `follow_ups` lists what the user says after each final: texts, or objects of
    `content` and a truth. DataError for an unusable row, or none at all.
    """
    spec = path if isinstance(path, SourceSettings) else SourceSettings(path=path or BUILT_IN)
    if path is None:
        return as_probes(load_prompts(spec, options))
    prompts: list[EvalPrompt] = []
    for item in read_conversations([spec], options):
        if isinstance(item, BadRow):
            raise DataError(item.message)
        if not isinstance(item, Conversation):
            raise DataError(f"{spec.path}: it holds preference pairs: an evaluation needs conversations")
        prompts.append(prompt_of(item, truth))
    if not prompts:
        raise DataError(f"{spec.path}: no prompts: give a file of conversations that end where the model should answer")
    return prompts


def as_probes(prompts: Sequence[EvalPrompt]) -> list[EvalPrompt]:
    """The prompts as probes of `guard`: each is a `skill`, of its own id where it names none, or one of a pair."""
    out: list[EvalPrompt] = []
    for prompt in prompts:
        truth = prompt.conversation.metadata
        if not truth.get("pair"):
            conversation = replace(prompt.conversation, metadata={"skill": prompt.id, **truth})
            prompt = replace(prompt, conversation=conversation)
        out.append(prompt)
    return out


def clustered(prompts: Sequence[EvalPrompt]) -> list[EvalPrompt]:
    """Every prompt with a cluster: its own, else the id of the first that asks the same, so that both are one item."""
    first: dict[str, str] = {}
    out: list[EvalPrompt] = []
    for prompt in prompts:
        asked = prompt.conversation
        same = repr((asked.instructions, asked.messages, asked.tools, asked.builtin_tools, asked.response_formats))
        out.append(replace(prompt, cluster=prompt.cluster or first.setdefault(same, prompt.id)))
    return out


def prompt_of(conversation: Conversation, path: str | None = None) -> EvalPrompt:
    """A conversation as an item; its `metadata` holds the truth, the answer where `path` says."""
    truth = conversation.metadata
    turns = split_turns(conversation.messages)
    if turns and turns[-1].stop == len(conversation.messages) and conversation.messages[-1].role == "assistant":
        conversation = replace(conversation, messages=conversation.messages[: turns[-1].start])
    if not conversation.messages:
        raise DataError(f"{conversation.source}: messages: nothing before the assistant's turn: add a user message")
    asked = next((m.content for m in reversed(conversation.messages) if m.role == "user"), "")
    reference, scorer, notice = _truth(truth, asked, conversation.source, path)
    return EvalPrompt(
        id=str(truth.get("id", conversation.source)),
        conversation=conversation,
        reference=reference,
        scorer=scorer,
        task=str(truth.get("task", "")),
        cluster=str(truth.get("cluster", "")),
        follow_ups=tuple(_follow_ups(truth.get("follow_ups") or [], conversation.source)),
        notice=notice,
    )


def _truth(
    truth: Mapping[str, Any], asked: str, source: str, path: str | None = None
) -> tuple[Reference, str | None, str | None]:
    """The truth of a turn, the comparison that it names or that fits it, and what is odd about it. asked: the user's
    message. DataError where it names code."""
    named = truth.get("scorer")
    if named is not None and (not isinstance(named, str) or is_foreign(named)):
        raise DataError(
            f"{source}: scorer: a row names a comparison of the package ({shown(named)} is none), never code to run: "
            "name your function in the run file (`scorer: file.py:function` of a task or a reward)"
        )
    options = options_of(truth)
    answer = truth_of(truth, options, source, path)
    reference = Reference(
        answer=answer.answer,
        accepted=answer.accepted,
        options=options,
        calls=expected_calls(truth),
        schema=truth.get("schema"),
        instructions=_instructions(truth),
        prompt=asked,
        entry=truth if "source_dataset" in _object(truth.get("metadata")) else {},
        tests=code_tests(truth, asked),
    )
    return reference, named or default_scorer(reference), answer.notice


def _follow_ups(given: Any, source: str) -> Iterator[FollowUp]:
    for number, each in enumerate(given if isinstance(given, list) else [given]):
        truth = {"content": each} if isinstance(each, str) else each
        if not isinstance(truth, dict) or not isinstance(truth.get("content"), str) or not truth["content"]:
            raise DataError(
                f"{source}: follow_ups[{number}]: not a text, nor an object with `content` and a truth (`answer`, ...)"
            )
        reference, scorer, _ = _truth(truth, truth["content"], f"{source}: follow_ups[{number}]")
        yield FollowUp(truth["content"], reference, scorer)


def default_scorer(reference: Reference) -> str | None:
    """The comparison that fits the truth of a row."""
    if reference.calls is not None:
        return "calls"
    if reference.entry:
        return "reasoning_gym"
    if reference.schema is not None:
        return "schema"
    if reference.instructions is not None:
        return "instructions"
    if reference.answer is not None:
        return fitting(reference.answer, reference.options)
    return None if reference.tests is None else "code"


def expected_calls(truth: Mapping[str, Any]) -> tuple[ExpectedCall, ...] | None:
    """The calls that a row knows to be right, also as JSON text; None where it has no field for calls."""
    given = truth.get("calls", truth.get("call"))
    if given is None and isinstance(truth.get("ground_truth"), list):
        listed = truth["ground_truth"]
        named = bool(listed) and all(isinstance(call, dict) for call in listed) and not holds_tests(listed)
        given = listed if named else None
    if given is None:
        return None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    out: list[ExpectedCall] = []
    for call in given if isinstance(given, list) else [given]:
        if not isinstance(call, dict):
            return None
        if "name" in call:
            out.append(ExpectedCall(call["name"], call.get("arguments") or {}, bool(call.get("any_of", False))))
        else:
            out += [ExpectedCall(_function(name), accepted, any_of=True) for name, accepted in call.items()]
    return tuple(out)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _function(name: str) -> str:
    """BFCL's functions may have a dot in their names (`math.factorial`)."""
    known = name == "python" or name.startswith(("functions.", "browser."))
    return name if known else f"functions.{name}"


def _instructions(truth: Mapping[str, Any]) -> tuple[tuple[str, Mapping[str, Any]], ...] | None:
    names: Sequence[str] | None = truth.get("instruction_id_list")
    if not names:
        return None
    arguments = truth.get("kwargs") or [{} for _ in names]
    given = [{key: value for key, value in each.items() if value is not None} for each in arguments]
    return tuple(zip(names, given, strict=True))
