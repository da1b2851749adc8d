"""Settings of tools that are run: section `tools` of grpo, `eval.tools`, and `tools` of a task."""

from __future__ import annotations

from typing import Annotated

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
