"""Settings of the rewards of `recipe: grpo`: one class per kind. Its function is in `train/scoring/rewards.py`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from counterpoint.configs.base import (
    Count,
    CountOrZero,
    Effort,
    NotEmpty,
    OneOrMany,
    Positive,
    Settings,
    Share,
    Text,
    Unique,
)


def _check_function(value: str) -> str:
    if ":" not in value:
        raise ValueError("write module:function or file.py:function")
    return value


class RewardSettings(Settings):
    """One reward, a number for each rollout, and its weight in the sum."""

    type: Any
    """What is rewarded."""

    name: Text | None = None
    """Name in the metrics; null takes the type."""

    weight: float = 1.0
    """Weight in the sum. Weigh the answer above the format, else only the format is learned."""

    gate: Text | None = None
    """Name of another reward, or `environment/NAME` of the environment's, by whose value this one is multiplied; null
    pays it by itself, to silence and junk as well where it judges the format alone."""


class ChannelReward(RewardSettings):
    """Every Harmony rule is kept."""

    type: Literal["channel"]


class AnswerReward(RewardSettings):
    """The final is right."""

    type: Literal["answer"]

    scorer: Text | None = None
    """`exact`, `number`, `math`, `choice`, `reasoning_gym`, ...; null takes what fits each row's truth."""


class CallsReward(RewardSettings):
    """Tool calls are valid, right, and succeed."""

    type: Literal["calls"]

    need: Annotated[tuple[Literal["valid", "right", "succeeded"], ...], NotEmpty, Unique, OneOrMany] = (
        "valid",
        "right",
        "succeeded",
    )
    """What every call must be: `valid` for a declared tool's schema, `right` by the row's truth (where it has one),
    `succeeded` when it was run."""


class GatedReward(RewardSettings):
    """A reward for format or style."""

    gated: bool = True
    """Multiplied with the run's rewards of type `answer`, so that format without a correct answer earns nothing.
    Without such a reward, or for a row without a reference, it is used as it is."""


class LengthReward(GatedReward):
    """The analysis keeps to the budget of its effort."""

    type: Literal["length"]

    budgets: Annotated[dict[Effort, tuple[CountOrZero, Count]], NotEmpty]
    """For each effort the minimum and maximum tokens of analysis that earn 1; outside, the reward falls."""

    slope: Positive = 1.0
    """How fast the reward falls outside of the budget. With 1 it reaches 0 at no tokens and at twice the maximum, with
    4 at three quarters of the minimum and five quarters of the maximum."""

    @field_validator("budgets")
    @classmethod
    def _fewest_first(cls, budgets: dict[Effort, tuple[int, int]]) -> dict[Effort, tuple[int, int]]:
        for effort, (least, most) in budgets.items():
            if least > most:
                raise ValueError(f"`budgets.{effort}`: {least} is more than {most}: write the fewest tokens first")
        return budgets


class OverlongReward(RewardSettings):
    """Less for a rollout that nears the longest (DAPO's soft overlong punishment, arXiv:2503.14476): 0 up to `longest`
    less `buffer`, from there falling to -1 at `longest`."""

    type: Literal["overlong"]

    longest: Count
    """Tokens of a rollout, results of tools among them, that earn -1: `rollout.completion_tokens` or less."""

    buffer: Count
    """Tokens over which the reward falls."""

    @model_validator(mode="after")
    def _checks(self) -> OverlongReward:
        if self.buffer > self.longest:
            raise ValueError(f"`buffer` ({self.buffer}) is more than `longest` ({self.longest})")
        return self


class LanguageReward(GatedReward):
    """Analysis or final is in a language."""

    type: Literal["language"]

    language: Annotated[str, Field(pattern="^[a-z]{2}$")]
    """The wanted language, as its code (`en`, `fr`, `zh`), told by py3langid from 15 letters on; less earns 0."""

    channel: Literal["analysis", "final"] = "final"
    """The channel that is checked."""

    share: Share = 0.9
    """The share of letters in that language which earns 1."""


class JsonReward(GatedReward):
    """The final is JSON, valid for the row's schema."""

    type: Literal["json"]


class OutsideReward(RewardSettings):
    """A reward that other code or another model gives: where it fails, nothing is learned from the rollout."""


class FunctionReward(OutsideReward):
    """Your own function."""

    type: Literal["function"]

    function: Annotated[Text, AfterValidator(_check_function)]
    """`module:function` or `file.py:function`, called with the rollout (docs/environments.md), or, where it has two
    parameters, with the typed completion and the row's reference. It returns any finite number, numbers by name, or
    None where it does not apply, and may be `async`. A rollout for which it raises or hangs is invalid."""

    per: Literal["rollout", "group", "step"] = "rollout"
    """What it is called with: a rollout, or a list of a group's or of all of a step's rollouts, for which it returns a
    list."""

    range: tuple[float, float] | None = None
    """Least and largest number that it may return; any other is a failure. null takes every number."""

    seconds: Positive = 10.0
    """Timeout of one call in seconds, loading the file left out."""

    workers: Count = 16
    """Maximum processes in which it is called at the same time."""

    @model_validator(mode="after")
    def _checks(self) -> FunctionReward:
        if self.range is not None and self.range[0] > self.range[1]:
            raise ValueError("`range`: write the least number first")
        return self


class CodeReward(OutsideReward):
    """The program in the final passes the tests of its row, each in a fresh sandbox (bubblewrap)."""

    type: Literal["code"]

    score: Literal["all", "share"] = "all"
    """`all` earns 1 where every test passes, and nothing else; `share` earns the share that passes."""

    seconds: Positive = 10.0
    """Timeout of one test in seconds, starting its sandbox left out."""

    memory_mb: Annotated[int, Field(ge=64)] = 1024
    """Memory of a program in MiB."""

    parallel: Count = 8
    """Maximum tests that run at the same time."""


class AskingReward(OutsideReward):
    """A reward that asks a model. A key is read from COUNTERPOINT_JUDGE_KEY, never from a run file."""

    model: Text | None = None
    """Name of the model; null takes the grader's, else the first one that the server lists."""

    cache: Text | None = None
    """SQLite file in which answers are kept by their request, so that the same request is asked once; null keeps
    none."""

    timeout: Positive = 60.0
    """Timeout of one request in seconds."""

    retries: CountOrZero = 3
    """Retries of a request that failed in transit, for the server's load, or with an answer that is no score."""

    parallel: Count = 16
    """Maximum requests at the same time."""

    max_tokens: Count | None = 1024
    """Longest answer in tokens; null sends no limit, for servers that refuse `max_tokens`."""

    max_tokens_total: Count | None = None
    """Maximum tokens of all requests and answers of this process; once they are spent, the run stops. null for no
    limit."""

    request: dict[str, Any] = Field(default_factory=dict)
    """Further fields of a request, as `{temperature: 0}`."""


class CriterionSettings(Settings):
    """One criterion of a rubric."""

    criterion: Text
    """What the answer does or holds; where it should not, `points` are negative."""

    points: float = 1.0
    """Points where the criterion is met."""


class JudgeReward(AskingReward):
    """A model reads the answer and gives a score, or says of each criterion of a rubric whether it is met."""

    type: Literal["judge"]

    url: Text
    """Address of an OpenAI-compatible server, up to `/v1`. It must support `response_format` with a JSON schema."""

    template: Text | None = None
    """What the model is asked, with `{{prompt}}`, `{{final}}`, `{{transcript}}` (everything said but thoughts),
    `{{analysis}}`, `{{row.NAME}}` and, with a rubric, `{{criterion}}`; null takes a plain text."""

    range: tuple[float, float] | None = None
    """Least and largest score, which is the reward as it is; null takes 0 to 1."""

    rubric: Annotated[tuple[CriterionSettings, ...], NotEmpty] | Text | None = None
    """Criteria, or the field of a row that holds them as `{criterion, points}`, as HealthBench does. Each is asked in a
    request of its own; the reward is the sum of the points that are met, divided by that of the positive ones."""

    @model_validator(mode="after")
    def _checks(self) -> JudgeReward:
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("`range`: write the least score first")
        if not isinstance(self.rubric, str | None) and not any(each.points > 0 for each in self.rubric):
            raise ValueError("`rubric`: no criterion has positive points, so that no answer could be good")
        if self.rubric is not None and self.range is not None:
            raise ValueError("`range` is of a score, and a `rubric` is scored by its points: leave one of them out")
        return self


class GraderReward(AskingReward):
    """A grader of OpenAI's API: `string_check`, `text_similarity`, `python`, `score_model`, `label_model`, `multi`."""

    type: Literal["grader"]

    path: Text | None = None
    """JSON file with the grader."""

    grader: dict[str, Any] | None = None
    """The grader itself, in place of `path`."""

    url: Text | None = None
    """Address of an OpenAI-compatible server, up to `/v1`, which `score_model` and `label_model` ask."""

    seconds: Positive = 10.0
    """Timeout of one call of a `python` grader in seconds."""

    @model_validator(mode="after")
    def _checks(self) -> GraderReward:
        if (self.path is None) == (self.grader is None):
            raise ValueError("write `path`, or the grader itself as `grader`")
        return self
