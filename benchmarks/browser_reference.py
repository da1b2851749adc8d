"""What gpt-oss's own `SimpleBrowserTool` displays of a small corpus: writes tests/golden/browser.jsonl again.

    git clone https://github.com/openai/gpt-oss
    python3.12 -m venv v && v/bin/pip install openai-harmony tiktoken aiohttp chz html2text lxml structlog tenacity
    python benchmarks/browser_reference.py > results.json            # in our environment: what our index finds
    v/bin/python benchmarks/browser_reference.py gpt-oss results.json tests/golden/browser.jsonl

The pages reach it through its own backend for the search service Exa, whose answers are made here: a page as HTML of
paragraphs and links, and the results that our index finds (kept with each call, so that ours must find the same again).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
from html import escape
from pathlib import Path
from typing import Any

LAMP = "https://docs.example/lamp"
PAGES = [
    {
        "url": LAMP,
        "title": "Lamp manual",
        "text": "The lamp has a switch at its foot. Turn it once for a warm light, twice for a bright one, and a third "
        "time to turn the lamp off.\n\n"
        "A broken lamp is replaced within two years, see [the warranty](warranty) and [the shop](https://shop.example/)."
        " Read [about bulbs](/lamp/bulbs) before you buy one, or again [the warranty](warranty).\n\n"
        + "\n\n".join(f"Step {n}: hold the lamp, loosen screw {n} by {n * 7} degrees, put it aside." for n in range(60))
        + "\n\nThe LAST step is to close the lid.",
    },
    {
        "url": "https://docs.example/warranty",
        "title": "Warranty † two years",
        "text": "What breaks within two years is replaced. Keep the receipt【!】.\n\nA lamp that fell is no such case.",
    },
    {
        "url": "https://docs.example/lamp/bulbs",
        "title": "Bulbs",
        "text": "Bulbs: 日本語の説明書です。電球は二年間の保証があります。" * 12
        + f"\n\n{'unbroken' * 40}.\n\nEnd of bulbs.",
    },
    {"url": "https://shop.example/", "title": "Shop  of\nlamps", "text": "Lamps, desks, and a café au lait."},
    {"url": "https://docs.example/a%20b", "title": "A b", "text": "Spaces in an address. A lamp."},
]  # fmt: skip
SEQUENCES: list[list[tuple[str, dict[str, Any]]]] = [
    [
        ("search", {"query": "lamp"}),
        ("open", {"id": 0}),
        ("find", {"pattern": "Screw 5"}),
        ("open", {"id": 3, "cursor": 2}),
        ("open", {"id": 0, "cursor": 2}),
        ("open", {"loc": 20}),
        ("open", {"loc": 20, "num_lines": 3}),
        ("open", {"cursor": 1, "loc": 5, "num_lines": 0}),
        ("open", {"id": 0, "cursor": 1}),
        ("find", {"pattern": "two years"}),
        ("find", {"pattern": "x"}),
        ("open", {"id": 9}),
        ("open", {"cursor": 99}),
        ("open", {"cursor": -2}),
        ("open", {"loc": 100000}),
        ("open", {"loc": -5}),
        ("open", {"cursor": 1, "id": 2}),
        ("open", {"loc": 3}),
        ("find", {"pattern": "", "cursor": 3}),
    ],
    [("open", {}), ("find", {"pattern": "a"}), ("open", {"id": "https://nowhere.example/" + "x" * 1200})],
    [
        ("open", {"id": LAMP}),
        ("open", {"id": LAMP, "loc": 9, "num_lines": 200}),
        ("find", {"pattern": "THE WARRANTY"}),
        ("find", {"pattern": "nothing like it"}),
        ("open", {"id": 2, "cursor": 0, "source": "web"}),
        ("open", {"view_source": True}),
        ("open", {"id": 1, "cursor": 0, "view_source": True, "loc": 1}),
        ("open", {"id": "https://docs.example/a%20b"}),
        ("find", {"pattern": "lamp/é 1"}),
    ],
    [("search", {"query": "café desks", "topn": 1}), ("find", {"pattern": "lamps"}), ("search", {"query": "zebra"})],
]
VIEW_TOKENS = (1024, 90)


def html_of(text: str) -> str:
    """A page of paragraphs, each with a full stop, as HTML that the reference turns into the same text again."""
    linked = re.sub(
        r"\[([^\[\]]+)\]\(([^()\s]+)\)", lambda m: f"<a href='{m[2]}'>{m[1]}</a>", escape(text, quote=False)
    )
    return "<html><body>" + "".join(f"<p>{part}</p>" for part in linked.split("\n\n")) + "</body></html>"


def found() -> dict[str, list[dict[str, str]]]:
    """Our index's results by the arguments of a search."""
    from counterpoint.train.episodes.corpus import Corpus

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pages.jsonl"
        file.write_text("".join(json.dumps(page) + "\n" for page in PAGES), encoding="utf-8")
        corpus = Corpus(str(file))
        searches = [arguments for calls in SEQUENCES for name, arguments in calls if name == "search"]
        return {
            json.dumps(each, ensure_ascii=False): [
                {"url": r.url, "title": r.title, "summary": r.summary}
                for r in corpus.search(each["query"], each.get("topn", 10))
            ]
            for each in searches
        }


def main(gpt_oss: str, results_file: str, target: str) -> None:
    sys.path.insert(0, gpt_oss)
    import chz  # pyright: ignore[reportMissingImports]
    from gpt_oss.tools.simple_browser import SimpleBrowserTool  # pyright: ignore[reportMissingImports]
    from gpt_oss.tools.simple_browser.backend import ExaBackend  # pyright: ignore[reportMissingImports]
    from openai_harmony import Message, Role

    known = {page["url"]: page for page in PAGES}
    results: list[dict[str, str]] = []

    @chz.chz(typecheck=True)
    class Local(ExaBackend):
        async def _post(self, session: Any, endpoint: str, payload: dict) -> dict:
            if endpoint == "/search":
                return {"results": [{k: escape(v, quote=False) for k, v in each.items()} for each in results]}
            page = known.get(payload["urls"][0])
            return {"results": [{"title": page["title"], "text": html_of(page["text"])}] if page else []}

    async def shown(tool: Any, name: str, arguments: dict[str, Any]) -> list[str]:
        call = Message.from_role_and_content(Role.ASSISTANT, json.dumps(arguments))
        call = call.with_recipient(f"browser.{name}").with_channel("analysis")
        answers = [message async for message in tool.process(call)]
        assert all(each.author.name == f"browser.{name}" and each.channel == "analysis" for each in answers)
        return [each.content[0].text for each in answers]

    ranked = json.loads(Path(results_file).read_text(encoding="utf-8"))
    lines: list[dict[str, Any]] = [{"pages": PAGES}]
    for view_tokens in VIEW_TOKENS:
        for calls in SEQUENCES:
            tool = SimpleBrowserTool(Local(source="web", api_key="none"), view_tokens=view_tokens)
            said = []
            for name, arguments in calls:
                key = json.dumps(arguments, ensure_ascii=False)
                results[:] = ranked[key] if name == "search" else []
                (text,) = asyncio.run(shown(tool, name, arguments))
                more = {"results": results[:]} if name == "search" else {}
                said.append({"name": name, "arguments": arguments, **more, "text": text})
            lines.append({"view_tokens": view_tokens, "calls": said})
    Path(target).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        print(json.dumps(found(), ensure_ascii=False, indent=1))
