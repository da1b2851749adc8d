"""The types of OpenAI's graders, with the fields of `openai.types.graders` (openai 2.x), and what they refuse."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from counterpoint.configs.errors import ConfigError

_NESTED = 8
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Named(_Part):
    name: str


class StringCheckSpec(_Named):
    type: Literal["string_check"]
    input: str
    reference: str
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilaritySpec(_Named):
    type: Literal["text_similarity"]
    input: str
    reference: str
    evaluation_metric: Literal[
        "cosine",
        "fuzzy_match",
        "bleu",
        "gleu",
        "meteor",
        "rouge_1",
        "rouge_2",
        "rouge_3",
        "rouge_4",
        "rouge_5",
        "rouge_l",
    ]


class PythonSpec(_Named):
    type: Literal["python"]
    source: str
    image_tag: str | None = None


class TextContent(_Part):
    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(_Part):
    role: Literal["user", "assistant", "system", "developer"]
    content: str | TextContent | list[str | TextContent]
    type: Literal["message"] | None = None

    @property
    def texts(self) -> list[str]:
        given = self.content if isinstance(self.content, list) else [self.content]
        return [each if isinstance(each, str) else each.text for each in given]


class SamplingParams(_Part):
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_completions_tokens: int | None = None
    reasoning_effort: Effort | None = None


class ScoreModelSpec(_Named):
    """range: least and largest score."""

    type: Literal["score_model"]
    input: Annotated[list[InputMessage], Field(min_length=1)]
    model: str
    range: tuple[float, float] = (0.0, 1.0)
    sampling_params: SamplingParams | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {k: v for k, v in given.items() if v is not None} if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _ordered(self) -> ScoreModelSpec:
        if self.range[0] >= self.range[1]:
            raise ValueError("range: the least score comes first")
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """As a chat request has them."""
        given = {} if self.sampling_params is None else self.sampling_params.model_dump(exclude_none=True)
        if "max_completions_tokens" in given:
            given["max_tokens"] = given.pop("max_completions_tokens")
        return given


class LabelModelSpec(_Named):
    type: Literal["label_model"]
    input: Annotated[list[InputMessage], Field(min_length=1)]
    model: str
    labels: Annotated[list[str], Field(min_length=1)]
    passing_labels: list[str]

    @model_validator(mode="after")
    def _subset(self) -> LabelModelSpec:
        if unknown := [label for label in self.passing_labels if label not in self.labels]:
            raise ValueError(f"passing_labels: `{unknown[0]}` is none of `labels`")
        return self


class MultiSpec(_Named):
    """graders: by name, as OpenAI's guide has them, or a single one, as its package's type does."""

    type: Literal["multi"]
    calculate_output: str
    graders: Any
    parts: dict[str, Any] = Field(default_factory=dict, exclude=True)


GraderSpec = StringCheckSpec | TextSimilaritySpec | PythonSpec | ScoreModelSpec | LabelModelSpec | MultiSpec
_KINDS: dict[str, type[Any]] = {
    "string_check": StringCheckSpec,
    "text_similarity": TextSimilaritySpec,
    "python": PythonSpec,
    "score_model": ScoreModelSpec,
    "label_model": LabelModelSpec,
    "multi": MultiSpec,
}


def read_grader(given: Any, where: str, depth: int = 0) -> GraderSpec:
    """ConfigError for what is no grader, naming the field."""
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in _KINDS:
        told = f"type `{kind}`" if kind is not None else "no `type`"
        raise ConfigError(f"{where}: {told}: take one of {', '.join(_KINDS)}")
    if "parts" in given:
        raise ConfigError(f"{where}: parts: no field of a grader")
    try:
        spec = _KINDS[kind].model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        told = first["msg"].removeprefix("Value error, ")
        if place.endswith(("TextContent.type", "image_url")) or any(
            isinstance(each, dict) and each.get("type") in ("input_image", "input_audio") for each in _contents(given)
        ):
            told = "images and audio cannot be sent: grade text"
        raise ConfigError(f"{where} `{given.get('name', kind)}`: {place + ': ' if place else ''}{told}") from None
    if not isinstance(spec, MultiSpec):
        return spec
    if depth >= _NESTED:
        raise ConfigError(f"{where} `{spec.name}`: more than {_NESTED} graders inside each other")
    graders = spec.graders
    if isinstance(graders, dict) and isinstance(graders.get("type"), str):
        graders = {str(graders.get("name")): graders}
    if not isinstance(graders, dict) or not graders:
        raise ConfigError(f'{where} `{spec.name}`: graders: write them by name, as {{"exact": {{...}}}}')
    parts = {name: read_grader(each, where, depth + 1) for name, each in graders.items()}
    return spec.model_copy(update={"parts": parts})


def _contents(given: dict[str, Any]) -> list[Any]:
    messages = given.get("input")
    found = [each.get("content") for each in messages if isinstance(each, dict)] if isinstance(messages, list) else []
    return [part for each in found for part in (each if isinstance(each, list) else [each])]
