"""Is the answer right? Small pure functions from a typed completion and its reference to a score.

The same functions serve the eval hook, `evaluate`, inspect and RL rewards. Only a finished final is an answer: a
truncated chain of thought, an answer in the analysis alone, or two finals score 0. Nothing is resampled.

    exact, number, math, choice     the final against the row's answer, read as a person reads it (`reading.py`)
    lm_eval_gsm8k, ...              the same by the rule of lm-evaluation-harness, to compare with published numbers
    calls                           tool calls against the expected ones; with lists of accepted values by the rules of
                                    the Berkeley Function Calling Leaderboard (its AST checker)
    schema                          the final is JSON and valid for a schema
    instructions, ..._all, ...      IFEval and IFBench checks (package if-verifiable)
    reasoning_gym                   the scorer of the generator that made the item
    code                            the program in the final passes every test of the row (`code_runner.py`)
    module:function, file.py:f      the user's own, run in a guarded process
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

from counterpoint.configs.errors import ConfigError
from counterpoint.data.harmony.argument_schema import verdict
from counterpoint.data.harmony.completion import Completion, ToolCall
from counterpoint.data.user_code.loader import exists
from counterpoint.data.user_code.worker import Guard, Guarded
from counterpoint.train.scoring import math_answers
from counterpoint.train.scoring.answers import letters_in, read_choice, same_number, same_text, true_choice
from counterpoint.train.scoring.code_runner import CodeRunner, program_in
from counterpoint.train.scoring.code_truths import CodeTests
from counterpoint.train.scoring.confined_eval import confine
from counterpoint.train.scoring.lm_eval_rules import RULES


class MissingTruthError(ConfigError):
    """The row lacks what a comparison needs."""


Outcome = Literal["right", "partly", "wrong", "missing", "failed"]
UNKNOWN_INSTRUCTION = "neither IFEval nor IFBench has an instruction"
KEPT = {
    "instructions": "partial_strict",
    "instructions_loose": "partial_loose",
    "instructions_all": "binary_strict",
    "instructions_all_loose": "binary_loose",
}
"""Share of instructions kept, or 1 where all are; strictly read, or without the first or last line or asterisks."""
ANSWER_CODES = frozenset({"second_final", "tokens_after_stop"})


@dataclass(frozen=True, slots=True)
class ExpectedCall:
    """A call that the row expects.

    name: the function's, with or without `functions.`. arguments: for each one the value, compared exactly apart from
    white space; or with `any_of` the list of accepted values by BFCL's rules: an empty string among them makes
    the argument optional, and texts are compared without case, spaces and the characters `,./-_*^`.
    """

    name: str
    arguments: Mapping[str, Any]
    any_of: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """What a row holds about its right result; a field that is None is not scored.

    accepted: further answers, each as right as `answer`. options: of a multiple choice, from each letter its text.
    tests: of a program.
    """

    answer: str | None = None
    accepted: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    calls: tuple[ExpectedCall, ...] | None = None
    schema: Mapping[str, Any] | None = None
    instructions: tuple[tuple[str, Mapping[str, Any]], ...] | None = None
    prompt: str = ""
    entry: Mapping[str, Any] = field(default_factory=dict)
    tests: CodeTests | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """value in [0, 1]. outcome `missing`: there was no answer; `failed`: the scorer raised, hung or gave no number."""

    value: float
    outcome: Outcome
    detail: str = ""


Scorer = Callable[[Completion, Reference], Score]


def answer_of(completion: Completion) -> str | None:
    """The final that counts as the answer: finished, the only one, with nothing after it; else None."""
    if completion.final is None or completion.stop != "return" or completion.codes & ANSWER_CODES:
        return None
    return completion.final


def choice(completion: Completion, reference: Reference) -> Score:
    """The option that the final settles on (`B`, `(B)`, `Answer: B`, its text) is the answer's."""
    letters = "".join(reference.options) or letters_in(reference.prompt)

    def same(final: str, answer: str) -> bool:
        return read_choice(final, letters, reference.options) == true_choice(answer)

    return _compared(same, completion, reference)


def _compared(same: Callable[[str, str], bool], completion: Completion, reference: Reference) -> Score:
    answers, final = _answers(reference), answer_of(completion)
    if final is None:
        return Score(0.0, "missing", "no final")
    right = any(same(final, answer) for answer in answers)
    return Score(float(right), "right" if right else "wrong")


def calls(completion: Completion, reference: Reference) -> Score:
    """Every expected call was made, in any order, with accepted arguments, and no other."""
    expected = reference.calls
    if expected is None:
        raise MissingTruthError(
            "scorer `calls`: the row names no expected calls: give it `calls`, or take another scorer"
        )
    if not completion.calls:
        right = not expected and answer_of(completion) is not None
        return Score(
            float(right), "right" if right else "missing", "" if right else "no call" if expected else "no final"
        )
    left = list(completion.calls)
    for want in expected:
        match = next((call for call in left if call_matches(call, want)), None)
        if match is None:
            return Score(0.0, "wrong", f"no call matches {want.name}({json.dumps(dict(want.arguments))})"[:300])
        left.remove(match)
    if left:
        return Score(0.0, "wrong", f"{len(left)} more calls than expected")
    return Score(1.0, "right")


def call_matches(call: ToolCall, want: ExpectedCall) -> bool:
    """Right tool under its full name, no argument too many, every needed one there with an accepted value.

    A truth without a namespace means a function: `add` is called as `functions.add`.
    """
    if call.recipient != full_name(want.name) or call.arguments is None:
        return False
    given, accepted = call.arguments, want.arguments
    if any(key not in accepted for key in given):
        return False
    for key, values in accepted.items():
        if key not in given:
            if want.any_of and "" in values:
                continue
            return False
        if not (_accepted(given[key], values) if want.any_of else same_value(given[key], values)):
            return False
    return True


def full_name(name: str) -> str:
    """A tool's name as a call has it: `add` is `functions.add`."""
    return name if "." in name or name == "python" else f"functions.{name}"


def same_value(given: Any, expected: Any, text: Callable[[str], str] | None = None) -> bool:
    """Equality of JSON values: 1 equals 1.0 (but not True), strings apart from white space.

    text: what is compared of a string, in place of that.
    """
    text = text or _spaced
    if isinstance(given, bool) or isinstance(expected, bool):
        return given is expected
    if isinstance(given, (int, float)) and isinstance(expected, (int, float)):
        return given == expected
    if isinstance(given, str) and isinstance(expected, str):
        return text(given) == text(expected)
    if isinstance(given, list) and isinstance(expected, list):
        return len(given) == len(expected) and all(same_value(g, e, text) for g, e in zip(given, expected, strict=True))
    if isinstance(given, dict) and isinstance(expected, dict):
        return given.keys() == expected.keys() and all(same_value(given[k], expected[k], text) for k in given)
    return given is None and expected is None


def _accepted(given: Any, options: Any) -> bool:
    """Whether a value is among BFCL's accepted ones; those of an object name the accepted ones of each of its keys."""
    if not isinstance(options, list):
        options = [options]
    return any(_accepts(given, option) for option in options)


def _accepts(given: Any, option: Any) -> bool:
    if isinstance(given, dict) and isinstance(option, dict):
        if not given.keys() <= option.keys():
            return False
        needed = [key for key, values in option.items() if not (isinstance(values, list) and "" in values)]
        return all(key in given for key in needed) and all(_accepted(given[key], option[key]) for key in given)
    if isinstance(given, list) and isinstance(option, list) and any(isinstance(each, dict) for each in option):
        return len(given) == len(option) and all(_accepts(g, o) for g, o in zip(given, option, strict=True))
    return same_value(given, option, _bare)


def schema(completion: Completion, reference: Reference) -> Score:
    """The final is JSON and valid for the row's schema."""
    if reference.schema is None:
        raise MissingTruthError("the row has no `schema`: give it one, or take another scorer")
    final = answer_of(completion)
    if final is None:
        return Score(0.0, "missing", "no final")
    try:
        value = json.loads(final)
    except (ValueError, RecursionError) as error:
        return Score(0.0, "wrong", f"not JSON: {error}")
    kind, told = verdict(reference.schema, value)
    if kind == "unknown":
        return Score(0.0, "failed", f"the row's schema cannot be applied: {told}")
    return Score(1.0, "right") if kind == "valid" else Score(0.0, "wrong", told[:300])


class Scorers:
    """Scorers by name. `math`, `instructions`, `reasoning_gym` and user functions run in a guarded process.

    Close it when done, or use it as a context manager.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self._guard = Guard(seconds)
        self._seconds = seconds
        self._runner: CodeRunner | None = None
        self._plain: dict[str, Scorer] = {
            "exact": partial(_compared, same_text),
            "number": partial(_compared, same_number),
            "choice": choice,
            "calls": calls,
            "schema": schema,
            **{name: partial(_compared, rule) for name, rule in RULES.items()},
            "code": self._code,
        }

    def check(self, name: str) -> None:
        """ConfigError for an unknown comparison, a missing package, or a missing function."""
        if ":" in name:
            answer = self._guard.call(f"{exists.__module__}:{exists.__name__}", name)
            if answer.failure is not None:
                named = answer.detail.startswith("ConfigError: ")
                raise ConfigError(answer.detail.removeprefix("ConfigError: ") if named else f"{name}: {answer.detail}")
        elif name in _FOREIGN:
            package = _FOREIGN[name].package
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"scorer `{name}` needs {package}: pip install 'counterpoint[eval]'")
        elif name not in self._plain:
            raise _unknown(name, self._plain)
        elif name == "code":
            self._runner = self._runner or CodeRunner(self._seconds)

    def score(self, name: str, completion: Completion, reference: Reference) -> Score:
        """ConfigError for a name that is no scorer, MissingTruthError for a row that has nothing to compare with."""
        if name in self._plain:
            try:
                return self._plain[name](completion, reference)
            except RecursionError:
                return Score(0.0, "failed", "what is compared is nested too deeply")
        if name in _FOREIGN:
            foreign = _FOREIGN[name]
            argument = foreign.needs(reference)
            final = answer_of(completion)
            if final is None:
                return Score(0.0, "missing", "no final")
            return _from_guard(self._guard(foreign.function, final, argument))
        if ":" in name:
            return _from_guard(self._guard(name, completion, reference))
        raise _unknown(name, self._plain)

    def _code(self, completion: Completion, reference: Reference) -> Score:
        """Every test is passed."""
        if reference.tests is None:
            raise MissingTruthError("the row has no tests that can be read: give it `test_cases`, or another scorer")
        final = answer_of(completion)
        if final is None:
            return Score(0.0, "missing", "no final")
        program = program_in(final)
        if program is None:
            return Score(0.0, "missing", "no fenced block of Python")
        try:
            self._runner = self._runner or CodeRunner(self._seconds)
        except ConfigError as error:
            return Score(0.0, "failed", str(error))
        tested = self._runner.run(program, reference.tests, until_failed=True)
        if tested.broken is not None:
            return Score(0.0, "failed", tested.broken)
        right = tested.passed == tested.n
        return Score(float(right), "right" if right else "wrong", tested.detail)

    def close(self) -> None:
        self._guard.close()

    def __enter__(self) -> Scorers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def instructions_value(final: str, argument: tuple[str, Sequence[tuple[str, Mapping[str, Any]]], str]) -> float:
    """How the final keeps its instructions, by a measure of `KEPT` (package if-verifiable).

    All of IFEval, or all of IFBench; ValueError for an id that neither knows.
    """
    from if_verifiable import IFBenchSample, IFEvalSample, evaluate_output_for_sample
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    prompt, items, measure = argument
    names, options = [name for name, _ in items], [dict(k) for _, k in items]
    if all(name in INSTRUCTION_DICT for name in names):
        sample = IFEvalSample(key=0, prompt=prompt, instruction_id_list=names, kwargs=options)
        return float(getattr(evaluate_output_for_sample("ifeval", sample, final)[1], measure))
    # Its registry looks for NLTK's files on the network when it is imported: only where it is needed.
    from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT as IFBENCH

    if unknown := [name for name in names if name not in IFBENCH]:
        raise ValueError(f"{UNKNOWN_INSTRUCTION} `{unknown[0]}`")
    sample = IFBenchSample(key="0", prompt=prompt, instruction_id_list=names, kwargs=options)
    return float(getattr(evaluate_output_for_sample("ifbench", sample, final)[1], measure))


def reasoning_gym_value(final: str, entry: Mapping[str, Any]) -> float:
    """The score of the generator named in `metadata.source_dataset` (package reasoning-gym)."""
    import reasoning_gym

    confine()
    function: Any = reasoning_gym.get_score_answer_fn(entry["metadata"]["source_dataset"])
    return float(function(final, dict(entry)))


def _answers(reference: Reference) -> tuple[str, ...]:
    if reference.answer is None:
        raise MissingTruthError("the row has no `answer`: give it one, or take another scorer")
    return (reference.answer, *reference.accepted)


def _instructions(reference: Reference, measure: str) -> tuple[str, Any, str]:
    if reference.instructions is None:
        raise MissingTruthError("the row names no instructions: give it `instruction_id_list` and `kwargs`")
    return reference.prompt, reference.instructions, measure


def _entry(reference: Reference) -> Mapping[str, Any]:
    if not reference.entry:
        raise MissingTruthError("the row is no entry of reasoning-gym (`metadata.source_dataset`): take another scorer")
    return reference.entry


class _Foreign(NamedTuple):
    """needs: what the function gets of the row. function: run in the guarded process."""

    needs: Callable[[Reference], Any]
    function: str
    package: str


_FOREIGN = {
    "math": _Foreign(_answers, f"{math_answers.__name__}:math_value", "math_verify"),
    **{
        name: _Foreign(partial(_instructions, measure=measure), f"{__name__}:instructions_value", "if_verifiable")
        for name, measure in KEPT.items()
    },
    "reasoning_gym": _Foreign(_entry, f"{__name__}:reasoning_gym_value", "reasoning_gym"),
}


def _unknown(name: str, plain: Iterable[str]) -> ConfigError:
    known = ", ".join([*plain, *_FOREIGN])
    return ConfigError(f"scorer `{name}` is unknown: take one of {known}, or name a function as file.py:function")


def _from_guard(guarded: Guarded) -> Score:
    if guarded.value is None:
        return Score(0.0, "failed", f"{guarded.failure}: {guarded.detail}")
    outcome: Outcome = "right" if guarded.value == 1 else "partly" if guarded.value > 0 else "wrong"
    return Score(guarded.value, outcome)


def _spaced(text: str) -> str:
    """White space made one blank, and none next to anything that is no word: `17 * 8` is `17*8`, and is not `178`."""
    return re.sub(r" ?([^\w ]) ?", r"\1", " ".join(text.split()))


def _bare(text: str) -> str:
    """As BFCL's `standardize_string` leaves it."""
    return re.sub(r"[ ,./\-_*^]", "", text).casefold().replace("'", '"')
