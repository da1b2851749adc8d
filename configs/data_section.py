"""Settings of the data: section `data`. Each ambiguous case of a source row has its default and its option here."""

from __future__ import annotations

from datetime import date as calendar_date
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from counterpoint.configs.base import (
    Count,
    Effort,
    NotEmpty,
    OneOrMany,
    Positive,
    Settings,
    Share,
    Text,
    Unique,
)
from counterpoint.configs.share import check_share, share_of
from counterpoint.configs.source_columns import ColumnSettings, RoleSettings
from counterpoint.configs.target_section import BadTargetSettings, ChannelWeights

Overlap = Literal["held_out", "train", "both"]
TrainOn = Literal["turns", "last_turn", "assistant", "final"]
MissingThinking = Literal["keep", "final_body", "effort_low"]
CallStyle = Literal["channel", "role"]
ServingName = Literal[
    "vllm",
    "vllm_0_30",
    "vllm_responses",
    "transformers",
    "transformers_5_19",
    "llama_cpp",
    "sglang",
    "sglang_responses",
    "reference",
    "ollama",
    "openai_harmony",
    "sampled",
    "counterpoint_0_1",
]
CONTINUED = ("sampled", "counterpoint_0_1")
"""Of these, the forms in which no server writes the history."""
ToolSchemas = Literal["as_given", "cleaned"]
NO_DATE = "none"


def check_date(value: str) -> str:
    if value in ("", NO_DATE):
        return ""
    try:
        if calendar_date.fromisoformat(value).isoformat() != value:
            raise ValueError
    except ValueError:
        raise ValueError(f"it is no date: write YYYY-MM-DD, or {NO_DATE} to leave the line out") from None
    return value


def _check_buckets(value: tuple[int, int]) -> tuple[int, int]:
    if value[1] <= value[0]:
        raise ValueError("the second number must be larger than the first")
    return value


def _check_tag(value: str) -> str:
    opening, _, closing = value.partition(" ")
    if not opening or (not closing and (len(opening) < 3 or opening[-1] not in ">])}")):
        raise ValueError("it is no tag: write `<plan>`, or the opening and the closing one with a space between")
    return value


def _source_of_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _check_format(value: str, info: ValidationInfo) -> str:
    """The formats belong to the data code: the caller that loads a run passes the check, see `load_run`."""
    if info.context is not None:
        info.context["check_format"](value)
    return value


Format = Annotated[Text, AfterValidator(_check_format)]


class SourceSettings(Settings):
    """One data file."""

    path: Text
    """A file, relative to the current folder, or `example:NAME` for one included in the package."""

    format: Format = "auto"
    """Format of the rows; `auto` detects it row by row. A name that docs/data.md describes (`openai`, `messages`,
    `sharegpt`, ...), or your own function as `file.py:function` or `module:function`."""

    weight: Positive = 1.0
    """How often its rows are seen in an epoch: 2 takes each twice, 0.5 half of them, drawn by the seed."""

    rows: Count | None = None
    """Number of rows to read from the start of the file; null reads all."""

    columns: ColumnSettings | None = None
    """Which column is what, for a table or a chat that no format knows."""

    roles: RoleSettings | None = None
    """Who speaks under a name that no format knows: `{user: customer, assistant: [agent, robot]}`."""

    @model_validator(mode="after")
    def _checks_mapping(self) -> SourceSettings:
        if (self.columns or self.roles) and self.format != "auto":
            raise ValueError("`columns` and `roles` say themselves what the rows are: leave `format` out")
        return self


class HeldOutSourceSettings(SourceSettings):
    """One file of held-out data."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """Name of the set that the file belongs to: letters, digits and hyphens. Each set's loss is reported as
    `valid_NAME_loss`, beside `valid_loss` of all of them."""

    @property
    def share(self) -> float | None:
        """The share of `data.train` that a path such as `2%` names."""
        return share_of(self.path)


HeldOutSource = Annotated[
    HeldOutSourceSettings, BeforeValidator(_source_of_path, json_schema_input_type=str | HeldOutSourceSettings)
]
Source = Annotated[SourceSettings, BeforeValidator(_source_of_path, json_schema_input_type=str | SourceSettings)]


class ServedSettings(Settings):
    """What the clients of the server do, where it differs from what its own API gives them."""

    reasoning: Literal["of_server", "returned", "lost"] = "of_server"
    """Whether clients send the analysis of an open tool loop back: many never do (`lost`)."""

    arguments: Literal["of_server", "verbatim", "spaced", "ascii"] = "of_server"
    """The arguments of calls as clients send them back: as they were sampled, or parsed and written again as JSON with
    spaces (`spaced`), or the same in ASCII, as vLLM's answers are that are not streamed (`ascii`)."""


class SchemaSettings(Settings):
    """How tools are declared."""

    tool_schemas: ToolSchemas = "as_given"
    """JSON schemas of tools are declared as the row has them, because servers do so. `cleaned` rewrites what
    openai-harmony cannot write; clients must then send the rewritten tools."""


class OpeningSettings(SchemaSettings):
    """The prompt: contents of the system message for rows that do not set them, and the server that writes it."""

    effort: Effort = "medium"
    """Reasoning effort of rows that have none."""

    date: Annotated[str, AfterValidator(check_date)] = "2025-06-28"
    """Current date in the system message, as YYYY-MM-DD; fixed, so that training does not depend on the day it runs.
    `none` leaves the line out, and is read as empty text."""

    identity: Text | None = None
    """First sentence of the system message; null keeps OpenAI's, which the model was trained with."""

    serving: ServingName = "vllm"
    """The server that the tuned model will meet: declarations, history and results are written as it writes them. The
    names are in docs/serving.md; `sampled` continues sampled ids, for loops that never leave the tokens."""

    served: ServedSettings = ServedSettings()
    """What the clients of that server send back."""

    response_formats: Literal["as_served", "prompt"] = "as_served"
    """A row's `response_format`: as the server of `serving` treats it (none writes it into the prompt), or written into
    the developer message under `# Response Formats` (`prompt`)."""

    @model_validator(mode="after")
    def _checks_served(self) -> OpeningSettings:
        if self.serving in CONTINUED and self.served != ServedSettings():
            raise ValueError(
                f"`served` says what clients send back, and under `serving: {self.serving}` sampled ids go on, so it "
                "would change nothing: leave it out, or name a server"
            )
        return self


class RenderSettings(OpeningSettings):
    """How conversations are rendered as tokens and weights: the renderer's settings."""

    effort_buckets: Annotated[tuple[Count, Count], AfterValidator(_check_buckets)] | None = None
    """Effort by the tokens of the analysis, for rows that have none: low below the first number, medium below the
    second, else high. null gives those rows `effort`."""

    missing_thinking: MissingThinking = "keep"
    """Turns without thinking get no analysis message, and train the model to answer without one: `keep` does so with
    a warning, `final_body` puts loss on the answer's text only, `effort_low` renders such rows at effort low."""

    train_on: TrainOn = "turns"
    """`turns` trains every assistant turn in the context it will be sampled from, `last_turn` only the last one,
    `assistant` all assistant messages in one sequence (earlier analysis included), `final` only the answers."""

    weights: ChannelWeights = ChannelWeights()
    """Loss weights by channel and part."""

    call_style: CallStyle = "channel"
    """Where a trained call names its recipient: `channel` as gpt-oss samples it, `role` as openai-harmony writes it."""

    bad_targets: BadTargetSettings = BadTargetSettings()
    """Trained actions are held against the rules of `counterpoint check`: which of them cost the row."""

    @classmethod
    def of(cls, opening: OpeningSettings) -> RenderSettings:
        """`opening` itself where it sets every field, else its fields with defaults for the rest."""
        if isinstance(opening, RenderSettings):
            return opening
        return cls(**{name: getattr(opening, name) for name in OpeningSettings.model_fields})


class ConversionSettings(SchemaSettings):
    """What is done where a source row is ambiguous: the settings of the format readers. The report counts every
    case."""

    text_beside_call: Literal["preamble", "analysis"] = "preamble"
    """Text in a message with tool calls: shown to the user before the call, or taken as thinking. Where the row has
    thinking as well, such text is always the preamble."""

    parallel_calls: Literal["pair", "first", "together"] = "pair"
    """Several calls in one message, of which the model samples one: `pair` writes call, result, call, result; `first`
    keeps the first of them; `together` keeps call, call, result, result and trains the first alone."""

    calls_without_result: Literal["first", "quarantine"] = "first"
    """Several calls in one message of which some have no result: keep the first of those, or quarantine the row."""

    unmatched_results: Literal["order", "quarantine"] = "order"
    """Tool results whose id matches no call of the turn: pair them by their order, or quarantine the row. Rows that
    remain ambiguous are always quarantined."""

    double_encoded_arguments: Literal["decode", "quarantine"] = "decode"
    """Arguments that are a JSON string holding a JSON object: decode once more, or quarantine the row."""

    object_arguments: Literal["text", "quarantine"] = "text"
    """Arguments given as an object instead of a string: write them as compact JSON, or quarantine the row."""

    late_system: Literal["developer", "quarantine"] = "developer"
    """A system message after the first user message: a developer message in its place, or quarantine the row."""

    harmony_system: Literal["parse", "text"] = "parse"
    """A system message that already is a Harmony system block: take effort and date out of it, or keep it as text."""

    images: Literal["quarantine", "placeholder"] = "quarantine"
    """Images and audio, which gpt-oss cannot take: quarantine the row, or write a placeholder in their place."""

    unanswered: Literal["keep", "trim", "quarantine"] = "keep"
    """Rows that end in a user message or a tool's result: train the assistant turns before it with the end left in the
    row, cut the end off, or quarantine the row. Rows without any assistant turn train nothing."""

    harmony_markup: Literal["text", "quarantine"] = "text"
    """Control tokens typed inside content (`<|start|>`): plain text with a warning, or quarantine the row."""

    think_tags: Annotated[tuple[Annotated[Text, AfterValidator(_check_tag)], ...], Unique, OneOrMany] = ()
    """Tags of your own around reasoning that an answer begins with, besides `<think>`, `<thinking>`, `<reasoning>`,
    `[THINK]` and others that are known: `<plan>` (closed by `</plan>`), or both with a space between (`{{ }}`)."""

    tool_names: Literal["keep", "rename"] = "keep"
    """Tool names with characters that OpenAI does not allow: keep them with a warning, or replace the characters with
    underscores in declarations, calls and results alike."""

    effort_field: Text | None = None
    """Field of the row that holds its effort (`reasoning_effort`, `metadata.effort`); rows without it take
    `effort_buckets` or `effort`."""

    date_field: Text | None = None
    """Field of the row that holds its date; rows without it take `date`."""

    tools: Text | None = None
    """A JSON file with the tools of rows that declare none: OpenAI's list, or what an MCP server's `tools/list` gives
    (`{"tools": [...]}`), or a folder of such files."""

    builtin_tools: Annotated[tuple[Literal["python", "browser"], ...], Unique, OneOrMany] = ()
    """Built-in tools of gpt-oss that every row declares; calls to them go to the analysis channel, not to
    `functions`."""


class QuestionSettings(OpeningSettings, ConversionSettings):
    """Rows whose questions are asked, and how they are rendered."""

    train: Annotated[tuple[Source, ...], NotEmpty, OneOrMany]
    """The rows: one or several files, each a path or `{path, format, weight, rows}`."""

    @model_validator(mode="after")
    def _checks_thinking(self) -> QuestionSettings:
        if any(source.columns is not None and source.columns.thinking is not None for source in self.train):
            raise ValueError("`train.columns.thinking` would not be read, since reasoning is sampled: leave it out")
        return self


class ReadSettings(RenderSettings, ConversionSettings):
    """What every recipe that learns from rows has: which are trained, which are held out, and how they are rendered."""

    train: Annotated[tuple[Source, ...], NotEmpty, OneOrMany]
    """Training data: one or several files, each a path or `{path, format, weight, rows}`."""

    valid: Annotated[tuple[HeldOutSource, ...], OneOrMany] = ()
    """Held-out data, of which only the loss is measured, every `eval.every` steps and after the last; empty for none.
    A `name` beside `path` makes a set of its own. `2%` splits a share off the training data, by prompt and seed."""

    overlap: Overlap = "held_out"
    """Rows that stand in training and held-out data alike, and rows whose prompt the evaluation samples, are reported:
    left out of training (`held_out`), left out of the held-out data (`train`), or kept on both sides (`both`)."""

    max_tokens: Count = 8192
    """Longest conversation, in tokens of its layout; of a pair, the longer side with its prompt."""

    too_long: Literal["drop", "cut", "error"] = "drop"
    """Longer ones: left out and counted (under `train_on: turns` only the actions whose history is too long), ended
    behind the last turn that fits (`cut`, for `train_on: assistant` and `last_turn`), or the run stops before it
    starts."""

    shuffle: bool = True
    """Draw a new order of rows for every epoch from the seed."""

    bad_rows_limit: Share = 0.05
    """Share of rows that may be quarantined before the run stops, of the training data and of the held-out data."""

    @model_validator(mode="after")
    def _checks_share(self) -> ReadSettings:
        for source in self.valid:
            if source.share is None:
                continue
            check_share(source.path, source.share)
            if len(self.valid) > 1 or source != HeldOutSourceSettings(path=source.path, name=source.name):
                raise ValueError(f"`valid: {source.path}` is a share of `train` and stands alone: leave the rest out")
        return self

    @property
    def valid_share(self) -> float | None:
        """The share of the training rows that is held out."""
        return self.valid[0].share if self.valid else None

    @property
    def valid_sets(self) -> dict[str, tuple[HeldOutSourceSettings, ...]]:
        """Held-out sources by the name of their set, in their order; "" holds those without a name."""
        names = dict.fromkeys(source.name or "" for source in self.valid)
        return {name: tuple(source for source in self.valid if (source.name or "") == name) for name in names}


class DataSettings(ReadSettings):
    """Which rows are trained, how they are rendered, and how they are laid out in rows of tokens."""

    pack_tokens: Count | None = None
    """Tokens per row when several conversations are packed into one, without attending to each other; null gives each
    conversation a row of its own."""

    tree: bool = True
    """All turns of a conversation in one pass over its tokens; false makes one row of each turn."""

    @model_validator(mode="after")
    def _checks(self) -> DataSettings:
        if self.pack_tokens is not None and self.pack_tokens < self.max_tokens:
            raise ValueError(
                f"`pack_tokens` ({self.pack_tokens}) is less than `max_tokens` ({self.max_tokens}), "
                "so the longest conversations fit no row: raise the first or lower the second"
            )
        if self.train_on == "final" and not self.weights.final:
            raise ValueError("`train_on: final` with `weights.final: 0` trains nothing: change one of them")
        if self.too_long == "cut" and self.train_on not in ("assistant", "last_turn"):
            raise ValueError(
                f"`too_long: cut` with `train_on: {self.train_on}` would change nothing, since each action is an "
                "example of its own, and those that fit are trained: leave it out"
            )
        return self


class PairSettings(ReadSettings):
    """Which rows become pairs or rated completions, and how they are rendered."""

    @model_validator(mode="after")
    def _checks(self) -> PairSettings:
        if self.too_long == "cut":
            raise ValueError("`too_long: cut` ends conversations early, and a pair is compared whole: use `drop`")
        parts = {name: getattr(self.weights, name) for name in type(self.weights).model_fields}
        if shared := [name for name, weight in parts.items() if weight not in (0, 1)]:
            raise ValueError(
                f"`weights.{shared[0]}` is {parts[shared[0]]:g}, and a token of a pair is compared or it is not: "
                "use 1 or 0"
            )
        return self
