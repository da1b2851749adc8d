"""gpt-oss's built-in tool `browser` over a corpus: search, open a page or a link, find a text in a page.

Its schema is openai-harmony's, its displays and error texts are those of gpt-oss's `simple_browser` (see page_text.py),
character for character, but for three things: `topn` acts (there 20 results are shown whatever it is), a cursor keeps
showing what it showed (there a second search replaces the results of the first), and arguments that do not fit are told
to the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote, unquote

from counterpoint.data.conversation import Tool
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.train.episodes.corpus import Corpus, Page, linked
from counterpoint.train.episodes.function_schema import validated
from counterpoint.train.episodes.page_text import end_of_view, numbered, plain, without_links
from counterpoint.train.sampling.rollout import MAX_RESULT_CHARS, ToolResult

MOST_RESULTS = 20
MOST_MATCHES, MATCH_LINES = 50, 4
_MOST_NAMED = 1024
_SOURCE = "view-source:"


class UsageError(Exception):
    """What the model asked for is not there; it reads why."""


class Browser:
    """The pages that one rollout has seen, by their cursors. A `Provider`."""

    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[str, ...] = ("browser",)

    def __init__(self, corpus: Corpus, view_tokens: int) -> None:
        """view_tokens: of o200k, after which a display ends with the line that they reach."""
        self._corpus, self._view_tokens = corpus, view_tokens
        self._shown: list[Page] = []
        self._functions: dict[str, Callable[..., str]] = {
            "search": self._search,
            "open": self._open,
            "find": self._find,
        }

    def call(self, call: ToolCall) -> ToolResult | None:
        if call.namespace != "browser":
            return None
        arguments = call.arguments if call.arguments_text else {}
        if arguments is None:
            return ToolResult(json.dumps({"error": "Invalid function arguments"}), "bad_arguments")
        function = self._functions.get(call.name)
        if function is None:
            return ToolResult(json.dumps({"error": f"Unknown function: {call.name}"}), "unknown_tool")
        try:
            given = validated(function.__func__, arguments, method=True)  # pyright: ignore[reportFunctionMemberAccess]
        except Exception as error:
            return ToolResult(f"error: {type(error).__name__}: {error}"[:300], "bad_arguments")
        try:
            return ToolResult(function(**given), most=max(MAX_RESULT_CHARS, 8 * self._view_tokens))
        except UsageError as error:
            return ToolResult(str(error), "bad_arguments")

    def close(self) -> None: ...

    def _search(self, query: str, topn: int = 10, source: str | None = None) -> str:
        links: dict[str, str] = {}
        found = self._corpus.search(query, min(max(topn, 1), MOST_RESULTS))
        lines = [
            f"  * {linked(links, plain(each.title), each.url)} {' '.join(plain(each.summary).split())}"
            for each in found
        ]
        results = "\n".join(["\nURL: \n# Search Results", *([""] if lines else []), *lines])
        return self._display(Page("", query, results, links))

    def _open(
        self,
        id: int | str = -1,
        cursor: int = -1,
        loc: int = -1,
        num_lines: int = -1,
        view_source: bool = False,
        source: str | None = None,
    ) -> str:
        mark = None
        if isinstance(id, str):
            page = self._fetched(id, view_source)
        else:
            page = self._at(cursor)
            if id >= 0:
                if str(id) not in page.links:
                    raise UsageError(f"Invalid link id `{id}`.")
                mark = page.marks[id] if page.marks is not None and not view_source else None
                page = self._linked(page.links[str(id)], view_source)
            elif view_source:
                page = self._fetched(page.url, True)
        if loc < 0:
            # Where a match is, with the lines before it.
            loc = 0 if mark is None else mark - 4 if mark > 4 else mark
        return self._display(page, loc, num_lines)

    def _find(self, pattern: str, cursor: int = -1) -> str:
        page = self._at(cursor)
        if page.marks is not None:
            raise UsageError("Cannot run `find` on search results page or find results page")
        pattern = pattern.lower()
        lines = without_links("\n".join(page.lines)).split("\n")
        marks: list[int] = []
        number = 0
        while number < len(lines) and len(marks) < MOST_MATCHES:
            if pattern in lines[number].lower():
                marks.append(number)
                number += MATCH_LINES
            else:
                number += 1
        chunks = [
            "\n".join([f"# 【{id}†match at L{mark}】", *lines[mark : mark + MATCH_LINES]])
            for id, mark in enumerate(marks)
        ]
        return self._display(
            Page(
                f"{page.url}/find?pattern={quote(pattern)}",
                f"Find results for text: `{pattern}` in `{page.title}`",
                "\n\n".join(chunks) or f"No `find` results for pattern: `{pattern}`",
                {str(id): page.url for id in range(len(marks))},
                tuple(marks),
            )
        )

    def _at(self, cursor: int) -> Page:
        if not self._shown:
            raise UsageError("No pages to access!")
        try:
            return self._shown[cursor]
        except IndexError:
            raise UsageError(
                f"Cursor `{cursor}` is out of range. Available cursor indices: [0 - {len(self._shown) - 1}]."
            ) from None

    def _linked(self, url: str, view_source: bool) -> Page:
        """What was shown of an address last (results of a search have none to be fetched at), or the page."""
        seen = [] if view_source else [page for page in self._shown if page.url == url]
        return seen[-1] if seen else self._fetched(url, view_source)

    def _fetched(self, url: str, view_source: bool = False) -> Page:
        """The page at an address; its source is the same text."""
        url = _SOURCE + url if view_source else url
        page = self._corpus.page(url.removeprefix(_SOURCE))
        if page is None:
            told = _short(f"No contents returned for {url.removeprefix(_SOURCE)}")
            raise UsageError(f"Error fetching URL `{_short(url)}`: {told}")
        return page

    def _display(self, page: Page, first: int = 0, count: int = -1) -> str:
        """Lines of a page from `first`, under the next cursor. UsageError, and no cursor, for a line beyond its end."""
        lines = page.lines
        if first >= len(lines):
            raise UsageError(f"Invalid location parameter: `{first}`. Cannot exceed page maximum of {len(lines) - 1}.")
        self._shown.append(page)
        end = end_of_view(lines, first, count, self._view_tokens)
        place = f" ({_short(unquote(page.url))})" if page.url else ""
        return (
            f"[{len(self._shown) - 1}] {page.title}{place}\n"
            f"**viewing lines [{first} - {end - 1}] of {len(lines) - 1}**\n\n{numbered(lines[first:end], first)}"
        )


def _short(text: str) -> str:
    return text if len(text) <= _MOST_NAMED else f"{text[: _MOST_NAMED - 3]}..."
