"""Texts as gpt-oss's browser displays them: lines of 80 characters, as many of them as a number of tokens.

Source: gpt-oss's `simple_browser` (https://github.com/openai/gpt-oss), whose displays tests/golden/browser.jsonl holds.
"""

from __future__ import annotations

import re
import textwrap

from counterpoint.data.harmony.vocabulary import load_vocabulary

WIDTH = 80
LONGEST_TOKEN = 128
"""Characters of o200k's longest token."""
_LOOKALIKES = str.maketrans({"【": "〖", "】": "〗", "◼": "◾", "\u200b": ""})
_LINK = re.compile(r"【\d+†(?P<text>[^†】]+)(?:†[^†】]+)?】")
_LINK_BEGUN_BEFORE = re.compile(r"^[^【】]*】")
_LINK_ENDED_AFTER = re.compile(r"【\d*(?:†(?P<text>[^†】]*)(?:†[^†】]*)?)?$")


def plain(text: str) -> str:
    """A text whose brackets cannot be read as links."""
    return text.translate(_LOOKALIKES)


def wrapped(text: str) -> list[str]:
    """Its lines, each of at most 80 characters; their white space is kept."""
    return [
        part
        for line in text.split("\n")
        for part in (textwrap.wrap(line, WIDTH, replace_whitespace=False, drop_whitespace=False) if line else [""])
    ]


def numbered(lines: list[str], first: int) -> str:
    return "\n".join(f"L{number}: {line}" for number, line in enumerate(lines, first))


def end_of_view(lines: list[str], first: int, count: int, view_tokens: int) -> int:
    """The line after the last one shown: of `count` lines, or where that is not positive of those that the tokens of a
    view reach."""
    if count <= 0:
        count = len(lines)
        text = numbered(lines[first:], first)
        if len(text) > view_tokens:  # a token has a character at least
            vocabulary = load_vocabulary()
            ids = vocabulary.encode(text[: (view_tokens + 1) * LONGEST_TOKEN])
            if len(ids) > view_tokens:
                # As the reference counts: a token that holds a part of a character counts as one of its own.
                shown = sum(len(vocabulary.decode([i])) for i in ids[:view_tokens])
                count = text[:shown].count("\n") + 1
    return min(first + count, len(lines))


def without_links(text: str) -> str:
    """The texts of links alone, of those that are cut off too."""
    text = _LINK_BEGUN_BEFORE.sub("", text)
    text = _LINK_ENDED_AFTER.sub(lambda link: link["text"] or "", text)
    return _LINK.sub(lambda link: link["text"], text)
