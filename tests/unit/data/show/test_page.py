from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

from counterpoint.data.conversation import Conversation, Message, Notice
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.spans import CHANNEL_NAMES
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.rows.row import BadRow
from counterpoint.data.show.explain import explain
from counterpoint.data.show.page import PageBuilder, as_json

TURN = (
    Message("user", "q"),
    Message("assistant", "think", "analysis"),
    Message("assistant", "x↔", "final", weight=0.5),
)
EVIL = "</script><script>alert(1)</script></pre><!-- \u2028 \u202e \x1b &amp; ]]>"


def row(messages: tuple[Message, ...], **fields: Any) -> Any:
    return explain(
        Conversation(messages, **{"source": "a.jsonl:1", "format": "openai"} | fields), Renderer(load_vocabulary())
    )


def builder(examples: int = 200, **limits: int) -> PageBuilder:
    return PageBuilder(load_vocabulary(), examples, **limits)


class _Reader(HTMLParser):
    """Elements of a page, and the texts of its script and style elements, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[dict[str, str | None], str]] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag in ("script", "style")
        if self._inside:
            self.texts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        if self._inside:
            attributes, text = self.texts.pop()
            self.texts.append((attributes, text + data))


def data_of(page: str) -> dict[str, Any]:
    return next(json.loads(text) for attributes, text in _Reader(page).texts if attributes.get("id") == "data")


def test_every_token_is_in_the_page_with_its_fate() -> None:
    pages = builder()
    explained = row((*TURN, *TURN))
    pages.add(explained)
    data = data_of(pages.page("a.jsonl", ["one row"]))
    assert data["channels"] == list(CHANNEL_NAMES)
    for index, example in enumerate(explained.examples):
        shown = data["examples"][index]
        ids, fates = [], []
        for block in shown["blocks"]:
            for stored, position, weight, channel, part, reason in block["spans"]:
                assert position == len(ids)
                pieces = data["ids"][stored]
                flat = [i for piece in pieces for i in (piece if isinstance(piece, list) else [piece])]
                assert all((",".join(map(str, p)) if isinstance(p, list) else str(p)) in data["words"] for p in pieces)
                ids += flat
                fates.append((weight, data["channels"][channel], part, data["reasons"][reason], len(flat)))
        spans = [span for block in example.blocks for span in block.spans]
        assert ids == [i for span in spans for i in span.ids]
        assert fates == [(s.weight, s.channel, s.kind, s.reason, len(s.ids)) for s in spans]
        assert shown["tokens"] == len(ids)
        assert shown["trained"] == dict(example.trained)
    final = data["examples"][1]["blocks"][-1]
    assert (final["label"], final["number"], final["channel"]) == ("final", 6, "final")
    assert [data["reasons"][r] for r in final["reasons"]] == ["weight 0.5 in the row"]
    assert [18707, 242] in [piece for stored in data["ids"] for piece in stored]
    assert data["words"]["18707,242"] == "↔"


def test_texts_that_come_again_are_stored_once() -> None:
    pages = builder()
    pages.add(row(TURN))
    tokens = pages.tokens
    for _ in range(20):
        pages.add(row(TURN))
    assert pages.tokens == tokens
    assert pages.told() == "21 examples of 21 rows"


def test_only_its_own_script_and_style_may_run() -> None:
    pages = builder()
    pages.add(row(TURN))
    page = pages.page("a.jsonl", [])
    reader = _Reader(page)
    policy = next(a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in reader.texts
        if attributes.get("type") != "application/json"
    ]
    style, script = hashes
    assert policy == (
        f"default-src 'none'; script-src {script}; style-src {style}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head = page.index("Content-Security-Policy")
    assert head < page.index("<title>") < page.index("<style>")
    for tag, attributes in reader.elements:
        if tag == "link":
            assert attributes == {"rel": "icon", "href": "data:,"}
            continue
        assert not {"src", "href", "style", "action", "srcset"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.findall(r"url\(|@import|https?:|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", page)


def test_hostile_text_stays_data() -> None:
    pages = builder()
    pages.add(
        row(
            (Message("user", EVIL), Message("assistant", EVIL, "commentary", f"functions.{EVIL}"), *TURN),
            source=f"{EVIL}:1",
            format=EVIL,
            notices=(Notice("nul", EVIL, EVIL),),
            instructions=EVIL,
        )
    )
    pages.add(BadRow(f"{EVIL}:2", "not_json", EVIL, EVIL, EVIL))
    page = pages.page(f"{EVIL}{{{{script}}}}", [EVIL, "{{data}}"])
    plain = builder()
    plain.add(row(TURN))
    harmless = [(tag, a) for tag, a in _Reader(plain.page("a", [])).elements if tag != "meta"]
    assert [(tag, a) for tag, a in _Reader(page).elements if tag != "meta"] == harmless
    assert not set(page) & set("\u2028\u202e\x1b")
    data = data_of(page)
    assert data["facts"] == [
        "</script><script>alert(1)</script></pre><!-- ⟨U+2028⟩ ⟨U+202E⟩ ⟨U+001B⟩ &amp; ]]>",
        "{{data}}",
    ]
    assert data["rows"][1]["bad"].startswith("</script>")


def test_json_for_a_script_element() -> None:
    value = {"</script>&\u2028\u2029": ["<!--", "🙂", '"\\']}
    text = as_json(value)
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value


def test_a_page_is_full_at_its_limit_of_examples() -> None:
    pages = builder(3)
    for _ in range(2):
        assert not pages.full
        pages.add(row(TURN * 2))
    assert pages.full
    assert len(pages.examples) == 3
    assert pages.told() == "3 examples of 2 rows; the page is full, --limit N and --rows A:B choose others"


def test_a_page_is_full_at_its_limit_of_tokens() -> None:
    pages = builder(max_tokens=100)
    pages.add(row((Message("user", "word " * 200), *TURN[1:])))
    assert pages.full
    assert 200 < pages.tokens < 400


def test_long_texts_leave_a_gap_that_is_counted() -> None:
    pages = builder()
    explained = row((Message("user", "x " * 10_000), Message("assistant", "a", "final")))
    pages.add(explained)
    page = pages.page("a", [])
    data = data_of(page)
    long = next(stored for stored in data["ids"] if any(isinstance(i, int) and i < 0 for i in stored))
    assert len(long) == 2_801
    assert sum(-i if i < 0 else 1 for i in long) == len(explained.examples[0].blocks[1].spans[0].ids)
    final = data["examples"][0]["blocks"][-1]["spans"][-1]
    assert final[1] == explained.examples[0].n_tokens - 1
    assert len(page) < 100_000
