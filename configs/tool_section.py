"""Settings of tools that are run: section `tools` of grpo, `eval.tools`, and `tools` of a task."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from counterpoint.configs.base import Count, OneOrMany, Positive, Settings, Text, Unique


class BrowserSettings(Settings):
    """The built-in `browser` tool: search, open and find over a corpus, without a network."""

    corpus: Text
    """A data file whose rows are pages (`url`, `text`, and a `title`), or a folder of text files (.md, .txt, .rst)."""

    view_tokens: Count = 1024
    """Tokens of one display; it ends with the line that they reach."""


class ToolSettings(Settings):
    """Tools that are run inside a rollout. Prompts that do not declare them get their declarations."""

    functions: Annotated[tuple[Text, ...], Unique, OneOrMany] = ()
    """Python functions as `module:function` or `file.py:function`; the schema comes from the signature. They run in a
    child process of this program, not in the sandbox."""

    mcp: Annotated[tuple[Text, ...], Unique, OneOrMany] = ()
    """MCP servers: commands that start them on their standard input and output, or addresses (`http://...`) of servers
    that run. All rollouts share a server and what it keeps."""

    python: bool = False
    """The built-in `python` tool of gpt-oss, in a sandbox (bubblewrap); refused where there is none. A session is one
    process, with one bound each for memory, CPU time, threads and files over all its calls."""

    browser: BrowserSettings | None = None
    """The built-in `browser` tool of gpt-oss over pages of yours; null offers none."""

    seconds: Positive = 10.0
    """Timeout of one call in seconds; a call that takes longer returns an error to the model."""

    @property
    def any(self) -> bool:
        """Whether there is a tool."""
        return any(getattr(self, name) for name in ToolSettings.model_fields if name != "seconds")


class TaskToolSettings(ToolSettings):
    """Tools of one task."""

    declared: Annotated[tuple[Text, ...], Unique, OneOrMany] = ()
    """Tools that are only declared, to items that have none: `python`, `browser`, or a JSON file with OpenAI's list of
    tools. A call to one ends the sample."""

    @model_validator(mode="after")
    def _checks(self) -> TaskToolSettings:
        if not self.any and self.seconds != type(self).model_fields["seconds"].default:
            raise ValueError("`tools.seconds` times nothing, since no tool is run: leave it out")
        return self


def _only_declared(value: Any) -> Any:
    return {"declared": value} if isinstance(value, str | list | tuple) else value


TaskTools = Annotated[
    TaskToolSettings,
    BeforeValidator(_only_declared, json_schema_input_type=str | list[str] | TaskToolSettings),
]
"""A list names tools that are only declared."""
