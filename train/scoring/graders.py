"""Graders of OpenAI's API (`openai.types.graders`), read from their JSON and run here.

string_check      eq, ne, like (contains), ilike (contains, whatever the case)
text_similarity   fuzzy_match (rapidfuzz), bleu, gleu, meteor (nltk), rouge_1 to rouge_5 and rouge_l (rouge-score)
python            `grade(sample, item)`, in bubblewrap
score_model, label_model   asked of the server of the run file
multi             a formula over other graders
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.reward_section import GraderReward
from counterpoint.data.harmony.completion import Completion
from counterpoint.train.episodes.sandbox import PythonSandbox, SandboxLimits
from counterpoint.train.scoring.asking import (
    QUOTED,
    Asking,
    Bill,
    UnjudgedError,
    object_schema,
    score_in,
    score_schema,
)
from counterpoint.train.scoring.code_runner import sandbox_notes
from counterpoint.train.scoring.formulas import Formula
from counterpoint.train.scoring.function_rewards import Found
from counterpoint.train.scoring.grader_types import (
    GraderSpec,
    LabelModelSpec,
    MultiSpec,
    PythonSpec,
    ScoreModelSpec,
    StringCheckSpec,
    TextSimilaritySpec,
    read_grader,
)
from counterpoint.train.scoring.outcome import Outcome
from counterpoint.train.scoring.scorers import answer_of
from counterpoint.train.scoring.similarity import check_similarity, similarity
from counterpoint.train.scoring.templates import MissingValueError, Template, value_of

_SAMPLE = ("sample.output_text", "sample.output_json", "sample.output_tools")
_CHECKS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}
_PYTHON = """
import json
_graded = grade(json.loads(_sample), json.loads(_item))
if not isinstance(_graded, (bool, int, float)):
    raise TypeError(f"grade returned a {type(_graded).__name__}, not a number")
print("\\n" + float(_graded).hex())
"""


class Grader:
    """One grader file. Thread-safe; close it. ConfigError for one that cannot be used, or an unknown variable."""

    def __init__(self, settings: GraderReward, name: str, pause: float = 1.0) -> None:
        self._where = f"reward {name}: grader"
        self._spec = read_grader(_given(settings, self._where), self._where)
        self._settings = settings
        self._templates: dict[str, Template] = {}
        self._formulas: dict[str, Formula] = {}
        self.notes: list[str] = []
        asked = [each for each in _all(self._spec) if isinstance(each, ScoreModelSpec | LabelModelSpec)]
        if asked and settings.url is None:
            raise ConfigError(f"{self._where} `{asked[0].name}` asks a model: set `url` of the reward")
        for each in _all(self._spec):
            self._check(each)
        self.asking: Asking | None = Asking(settings, settings.url or "", name, pause) if asked else None
        tagged = [each for each in _all(self._spec) if isinstance(each, PythonSpec) and each.image_tag is not None]
        self.notes += [
            f"{self._where} `{each.name}`: image_tag is ignored: it runs in this machine's Python, without packages"
            for each in tagged
        ]

    def missing(self, outcome: Outcome) -> str | None:
        """The first of the row's fields that it names and that is not there."""
        for template in self._templates.values():
            for variable in template.variables():
                if variable.path[0] == "item":
                    try:
                        value_of(variable, {"item": outcome.row})
                    except MissingValueError:
                        return f"`{{{{ {variable} }}}}`"
        return None

    def one(self, outcome: Outcome) -> Found:
        """0 where there is no final and nothing but text is graded."""
        if self.missing(outcome) is not None:
            return Found(None, applies=False)
        values = {"item": outcome.row, "sample": _sample(outcome.completion)}
        bill = Bill()
        try:
            return Found(self._value(self._spec, values, bill), tokens=bill.tokens)
        except UnjudgedError as error:
            return Found(None, failed=str(error), tokens=bill.tokens)

    def close(self) -> None:
        if self.asking is not None:
            self.asking.close()

    def _check(self, spec: GraderSpec) -> None:
        where = f"{self._where} `{spec.name}`"
        for text in _texts(spec):
            self._templates[text] = Template.read(text, where, _SAMPLE, ("item",))
        if isinstance(spec, TextSimilaritySpec):
            check_similarity(spec.evaluation_metric, where)
        if isinstance(spec, MultiSpec):
            self._formulas[spec.calculate_output] = Formula.read(spec.calculate_output, tuple(spec.parts), where)
        if isinstance(spec, PythonSpec):
            try:
                compile(spec.source, "<grader>", "exec")
            except (SyntaxError, ValueError) as error:
                raise ConfigError(f"{where}: source: no Python: {error}") from None
            try:
                self.notes += [f"{where}: {note}" for note in sandbox_notes(SandboxLimits(), "python graders")]
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None

    def _value(self, spec: GraderSpec, values: Mapping[str, Any], bill: Bill) -> float:
        if isinstance(spec, MultiSpec):
            return self._formulas[spec.calculate_output](
                {name: self._value(part, values, bill) for name, part in spec.parts.items()}
            )
        if isinstance(spec, PythonSpec):
            return self._python(spec, values)
        try:
            if isinstance(spec, StringCheckSpec):
                text, reference = (self._templates[each].filled(values) for each in (spec.input, spec.reference))
                return float(_CHECKS[spec.operation](text, reference))
            if isinstance(spec, TextSimilaritySpec):
                text, reference = (self._templates[each].filled(values) for each in (spec.input, spec.reference))
                return similarity(spec.evaluation_metric, text, reference)
            messages = [
                {
                    "role": each.role,
                    "content": "\n".join(self._templates[t].filled(values, _SAMPLE) for t in each.texts),
                }
                for each in spec.input
            ]
        except MissingValueError:  # of the sample: no final, no JSON, no call
            return 0.0
        return self._asked(spec, messages, bill)

    def _asked(self, spec: ScoreModelSpec | LabelModelSpec, messages: Sequence[Mapping[str, str]], bill: Bill) -> float:
        assert self.asking is not None
        said = [{"role": "system", "content": QUOTED}, *messages]
        if isinstance(spec, LabelModelSpec):
            schema = object_schema({"explanation": {"type": "string"}, "label": {"enum": list(spec.labels)}})
            label = self.asking.ask(said, schema, _label_in(spec.labels), bill, spec.model)
            return float(label in spec.passing_labels)
        least, most = spec.range
        schema, read = score_schema(least, most), score_in(least, most)
        return self.asking.ask(said, schema, read, bill, spec.model, spec.sampling)

    def _python(self, spec: PythonSpec, values: Mapping[str, Any]) -> float:
        with PythonSandbox(SandboxLimits(seconds=self._settings.seconds, memory_mb=1024)) as sandbox:
            sample, item = (json.dumps(values[each], default=str) for each in ("sample", "item"))
            for code in (spec.source, f"_sample = {sample!r}\n_item = {item!r}", _PYTHON):
                ran = sandbox.run(code)
                if ran.failed is not None:
                    raise UnjudgedError(f"grader {spec.name}: {ran.output.strip().rpartition(chr(10))[2][:300]}")
        try:
            return _finite(float.fromhex(ran.output.strip().rpartition("\n")[2]))
        except ValueError:
            raise UnjudgedError(f"grader {spec.name}: no number") from None


def _given(settings: GraderReward, where: str) -> Any:
    if settings.path is None:
        return settings.grader
    try:
        return json.loads(Path(settings.path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{where}: {settings.path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {settings.path}: no JSON ({error})") from None


def _all(spec: GraderSpec) -> list[GraderSpec]:
    parts = list(spec.parts.values()) if isinstance(spec, MultiSpec) else []
    return [spec, *(each for part in parts for each in _all(part))]


def _texts(spec: GraderSpec) -> list[str]:
    if isinstance(spec, StringCheckSpec | TextSimilaritySpec):
        return [spec.input, spec.reference]
    return (
        [text for each in spec.input for text in each.texts]
        if isinstance(spec, ScoreModelSpec | LabelModelSpec)
        else []
    )


def _sample(completion: Completion) -> dict[str, Any]:
    """The sample as graders know it: what is not there has no name."""
    final = answer_of(completion)
    sample: dict[str, Any] = {
        "output_tools": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": call.recipient.removeprefix("functions."), "arguments": call.arguments_text},
            }
            for number, call in enumerate(completion.calls)
        ]
    }
    if final is None:
        return sample
    sample["output_text"] = final
    with suppress(ValueError, RecursionError):
        sample["output_json"] = json.loads(final)
    return sample


def _label_in(labels: Sequence[str]) -> Callable[[Any], str]:
    def read(answer: Any) -> str:
        if answer.get("label") not in labels:
            raise ValueError(f"an answer whose `label` is none of the grader's ({str(answer.get('label'))[:40]})")
        return answer["label"]

    return read


def _finite(value: float) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError("no finite number")
    return value
