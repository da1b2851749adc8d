"""The page of `counterpoint show --html` in a browser: paging, filters, tokens, hostile rows, requests, contrast."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser.chrome import CONTRAST, Chrome

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Notice
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.rows.row import BadRow
from counterpoint.data.show.explain import explain
from counterpoint.data.show.page import PageBuilder

EVIL = (
    "</script><script>window.owned = 1; alert(1)</script></pre></div>"
    "<img src='http://127.0.0.1:9/x' onerror='owned = 2'><svg onload='owned = 3'><a href='javascript:owned = 4'>"
    "\u202egnp.exe\u202c \x1b[31m <|start|>assistant {{script}} ${owned = 5}"
)
TALK = Conversation(
    (
        Message("user", "What is two and two?"),
        Message("assistant", "An easy sum", "analysis"),
        Message("assistant", "", "commentary", "functions.add", content_type=CONSTRAIN_JSON, weight=0.5),
        Message("tool", "4", "commentary", name="functions.add"),
        Message("assistant", "Four ↔ 4", "final"),
        Message("user", "And three?\nGo on."),
        Message("assistant", "Seven", "final"),
    ),
    source="talk.jsonl:1",
    format="openai",
    notices=(Notice("missing_thinking", "turn 2", "no thinking"), Notice("nul", "a", "b")),
)
PLAIN = Conversation((Message("user", "Hello"), Message("assistant", "Hello yourself", "final")), source="talk.jsonl:2")
PROMPT = Conversation((Message("user", "Only asked"),), source="talk.jsonl:3", format="rl")
LONG = Conversation(
    (Message("user", "long " * 5_000 + "needle"), Message("assistant", "short", "final")), source="talk.jsonl:4"
)
HOSTILE = Conversation(
    (Message("user", EVIL), Message("assistant", EVIL, "final")),
    instructions=EVIL,
    source=f"{EVIL}:5",
    format=EVIL,
    notices=(Notice(f"nul{EVIL}", EVIL, EVIL),),
)
BAD = BadRow(f"bad{EVIL}:6", "not_json", EVIL, EVIL, "fix it")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary, RenderSettings(serving="sampled"))
    builder = PageBuilder(vocabulary, 200)
    for row in (TALK, PLAIN, PROMPT, LONG, HOSTILE):
        builder.add(explain(row, renderer))
    builder.add(BAD)
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(builder.page(f"talk {EVIL}", ["six rows", EVIL]), encoding="utf-8")
    return path


@pytest.fixture
def opened(chrome: Chrome, page: Path) -> Iterator[Chrome]:
    chrome.open(page.as_uri())
    yield chrome
    assert chrome.problems == []
    assert chrome.dialogs == []
    assert chrome.requests == [page.as_uri()]


def heading(chrome: Chrome) -> str:
    return chrome.text("#example h2")


def fields(chrome: Chrome) -> dict[str, str]:
    """What the line at the bottom says of a token."""
    pairs = "[...document.querySelectorAll('#fields div')].map(d => [...d.children].map(c => c.innerText))"
    return dict(chrome.run(pairs))


def token_texts(chrome: Chrome, selector: str) -> list[str]:
    return chrome.run(f"[...document.querySelectorAll({selector!r})].map(t => t.textContent)")


def test_the_first_example_is_there_at_once(opened: Chrome) -> None:
    assert heading(opened) == "talk.jsonl:1"
    assert opened.text(".meta").startswith("turn 1 of 2 · openai · effort medium (data.effort) · ")
    assert "missing_thinking turn 2: no thinking" in opened.text(".notices")
    assert opened.text("#count") == "of 7"
    final = token_texts(opened, ".block.final .t.trained")
    assert final == ["<|channel|>", "final", "<|message|>", "Four", " ↔", " ", "4", "<|return|>"]
    assert opened.text(".block.commentary .weight") == "×0.5"
    assert "↳" in opened.run("getComputedStyle(document.querySelector('.reason'), '::before').content")


def test_paging_by_button_key_number_and_address(opened: Chrome, page: Path) -> None:
    assert opened.run("document.querySelector('#previous').disabled")
    opened.click("#next")
    assert opened.text(".meta").startswith("turn 2 of 2")
    assert "earlier analysis dropped, as at inference: message 2 (analysis)" in opened.text(".block.absent")
    opened.key("ArrowRight")
    assert heading(opened) == "talk.jsonl:2"
    opened.key("ArrowLeft")
    assert opened.text(".meta").startswith("turn 2 of 2")
    opened.set_value("#jump", "4")
    assert heading(opened) == "talk.jsonl:3"
    assert "prompt only: nothing to train, the row ends in a user message" in opened.text(".gone")
    opened.wait("location.hash === '#4'")
    opened.set_value("#jump", "99")
    assert opened.run("document.querySelector('#next').disabled")
    opened.wait("location.hash === '#7'")
    opened.run("location.hash = '#3'")
    opened.wait("document.querySelector('#example h2').innerText === 'talk.jsonl:2'")
    assert opened.run("document.querySelector('#jump').value") == "3"


def test_a_link_opens_its_example(chrome: Chrome, page: Path) -> None:
    chrome.open(f"{page.as_uri()}#3")
    assert heading(chrome) == "talk.jsonl:2"
    chrome.open("about:blank")
    chrome.open(f"{page.as_uri()}#nonsense")
    assert heading(chrome) == "talk.jsonl:1"


def test_filters(opened: Chrome) -> None:
    notices = opened.run("[...document.querySelector('#notice').options].map(o => o.text)")
    assert notices[:3] == ["any", "missing_thinking (2)", "nul (2)"]
    assert notices[-1] == "none (3)"
    assert "bad row (1)" in notices
    opened.set_value("#notice", "=nul")
    assert opened.text("#count") == "of 2 found"
    opened.set_value("#notice", "=bad row")
    assert opened.text("#example .meta") == "This row cannot be used."
    opened.set_value("#notice", "none")
    assert (opened.text("#count"), heading(opened)) == ("of 3 found", "talk.jsonl:2")
    opened.set_value("#notice", "")
    assert heading(opened) == "talk.jsonl:2"
    channels = opened.run("[...document.querySelector('#channel').options].map(o => o.text)")
    assert channels == ["any", "analysis (1)", "commentary (1)", "final (5)", "nothing (2)"]
    opened.set_value("#channel", "commentary")
    assert (opened.text("#count"), heading(opened)) == ("of 1 found", "talk.jsonl:1")
    opened.set_value("#channel", "none")
    assert (opened.text("#count"), heading(opened)) == ("of 2 found", "talk.jsonl:3")
    opened.set_value("#notice", "=nul")
    assert opened.text("#example") == "No example matches."
    assert opened.text("#count") == "of 0 found"
    opened.key("ArrowRight")
    opened.key("ArrowLeft")


def test_search_finds_and_marks_text_across_tokens(opened: Chrome) -> None:
    opened.set_value("#search", "hello YOUR")
    opened.wait("document.querySelector('#count').innerText === 'of 1 found'")
    assert heading(opened) == "talk.jsonl:2"
    assert opened.run("[...CSS.highlights.get('found')].map(String)") == ["Hello your"]
    opened.set_value("#search", "no such text")
    opened.wait("document.querySelector('#example').innerText === 'No example matches.'")
    opened.set_value("#search", "")
    opened.wait("document.querySelector('#count').innerText === 'of 7'")
    assert opened.run("CSS.highlights.has('found')") is False


def test_a_token_tells_everything_when_pointed_at(opened: Chrome) -> None:
    assert opened.text("#token") == "Point at a token, or click into the text and use the arrow keys."
    opened.hover(".block.analysis .t.trained", 3)
    assert fields(opened) == {
        "text": "“An”",
        "id": "2223",
        "weight": "1",
        "channel": "analysis",
        "position": str(opened.run("[...document.querySelectorAll('.t')].findIndex(t => t.matches('.on'))")),
        "part": "analysis",
    }
    assert not opened.run("document.querySelector('#why').checkVisibility()")
    opened.hover(".block:first-child .t", 0)
    assert fields(opened) | {"position": "0", "weight": "0", "id": "200006"} == fields(opened)
    assert fields(opened)["text"] == "<|start|>"
    assert opened.text("#why") == "context: system message; effort from data.effort, date from data.date"
    opened.hover(".block.commentary .t.trained", 2)
    assert fields(opened)["weight"] == "0.5"
    assert opened.text("#why") == "weight 0.5 in the row"


def test_a_character_of_several_tokens_has_all_their_ids(opened: Chrome) -> None:
    index = token_texts(opened, ".t").index(" ↔")
    opened.hover(".t", index)
    assert fields(opened)["ids"].count(" ") == 1
    first, last = fields(opened)["position"].split("–")
    assert int(last) - int(first) == 1
    opened.hover(".t", index + 1)
    assert fields(opened)["position"] == str(int(last) + 1)


def test_tokens_by_keyboard(opened: Chrome) -> None:
    opened.run("document.querySelector('.tokens').focus({preventScroll: true})")
    opened.settle()
    assert fields(opened)["position"] == "0"
    opened.key("ArrowRight")
    opened.key("ArrowRight")
    assert fields(opened)["position"] == "2"
    assert "id 200008" in opened.run("document.querySelector('#spoken').textContent")
    opened.key("ArrowLeft")
    assert fields(opened)["position"] == "1"
    opened.key("ArrowDown")
    assert fields(opened)["part"] == "user"
    opened.key("ArrowDown")
    opened.key("ArrowUp")
    assert fields(opened)["part"] == "user"
    opened.key("End")
    assert fields(opened)["text"] == "<|return|>"
    opened.key("Home")
    assert fields(opened)["position"] == "0"
    assert heading(opened) == "talk.jsonl:1"
    opened.key("Escape")
    opened.key("ArrowRight")
    assert opened.text(".meta").startswith("turn 2 of 2")


def test_everything_can_be_reached_with_the_tab_key(opened: Chrome) -> None:
    active, reached = "document.activeElement", []
    for _ in range(12):
        opened.key("Tab")
        reached.append(opened.run(f"{active}.id || {active}.className || {active}.value || {active}.tagName"))
    for name in ("jump", "next", "notice", "channel", "search", "all", "edges", "tokens"):
        assert name in reached


def test_trained_and_masked_tokens_apart(opened: Chrome) -> None:
    shown = "[...document.querySelectorAll('.t')].filter(t => t.getClientRects().length)"
    everything = opened.run(f"{shown}.length")
    opened.click("input[value=trained] + span")
    assert opened.run(f"{shown}.every(t => t.matches('.trained'))")
    trained = opened.run(f"{shown}.length")
    opened.click("input[value=masked] + span")
    assert opened.run(f"{shown}.every(t => !t.matches('.trained'))")
    assert trained + opened.run(f"{shown}.length") == everything
    opened.click("#next")
    assert opened.run(f"{shown}.every(t => !t.matches('.trained'))")
    opened.click("input[value=all] + span")
    opened.click("#edges")
    assert opened.run("getComputedStyle(document.querySelector('.t')).boxShadow") != "none"


def test_long_texts_are_folded_twice(opened: Chrome) -> None:
    opened.set_value("#jump", "5")
    assert opened.text(".gap") == "2,205 tokens are not in this page"
    height = "document.querySelector('.block .clamped').clientHeight"
    assert opened.run(height) < 200
    assert opened.text(".more") == "Show all 2,800 tokens"
    opened.click(".more")
    assert opened.run("document.querySelector('.more').previousElementSibling.clientHeight") > 1_000
    assert opened.text(".more") == "Show less"
    last = opened.run("document.querySelectorAll('.t').length - 1")
    opened.hover(".t", last)
    assert fields(opened)["position"] == str(last + 2_205)
    opened.set_value("#search", "needle")
    opened.wait("document.querySelector('#count').innerText === 'of 1 found'")
    assert opened.run("[...CSS.highlights.get('found')].length") == 1


def test_the_trained_part_is_one_click_away(opened: Chrome) -> None:
    opened.set_value("#jump", "5")
    opened.click(".more")
    opened.run("window.scrollTo(0, 0)")
    opened.click(".meta button")
    top = opened.run("document.querySelector('.block.on-target').getBoundingClientRect().top")
    bar = opened.run("document.querySelector('.bar').getBoundingClientRect().bottom")
    assert bar - 1 <= top <= 900


@pytest.mark.parametrize("example", [6, 7])
def test_hostile_rows_are_inert(opened: Chrome, example: int) -> None:
    opened.set_value("#jump", str(example))
    assert "<script>window.owned = 1; alert(1)</script>" in opened.text("#example")
    assert "⟨U+202E⟩gnp.exe" in opened.text("#example")
    assert opened.run("'owned' in window") is False
    assert opened.run("document.querySelectorAll('img, svg, a, iframe, #example script').length") == 0
    assert opened.run("document.title").startswith("talk </script><script>")
    assert opened.run("document.querySelectorAll('script').length") == 2


def test_control_tokens_and_typed_ones_look_different(opened: Chrome) -> None:
    opened.set_value("#jump", "6")
    assert "<|start|>" in token_texts(opened, ".special")
    typed = opened.run("[...document.querySelectorAll('.t:not(.special)')].map(t => t.textContent).join('')")
    assert "<|start|>assistant" in typed


class _Handler(BaseHTTPRequestHandler):
    paths: list[str] = []  # noqa: RUF012
    page = b""

    def do_GET(self) -> None:
        self.paths.append(self.path)
        self.send_response(200 if self.path == "/page.html" else 404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.page if self.path == "/page.html" else b"")

    def log_message(self, *_: Any) -> None:
        pass


def test_no_request_leaves_the_page_on_a_server_either(chrome: Chrome, page: Path) -> None:
    _Handler.page = page.read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        chrome.open(f"http://127.0.0.1:{server.server_port}/page.html")
        for number in range(1, 8):
            chrome.set_value("#jump", str(number))
        assert chrome.run("fetch('/other').then(() => 'sent', () => 'refused')") == "refused"
        image = "const i = new Image(); i.onerror = () => done('refused'); i.src = '/i.png';"
        assert chrome.run(f"new Promise(done => {{ {image} }})") == "refused"
    finally:
        server.shutdown()
        server.server_close()
    assert _Handler.paths == ["/page.html"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 360])
def test_contrast_and_width(chrome: Chrome, page: Path, tmp_path: Path, dark: bool, width: int) -> None:
    chrome.size(width, 800, dark)
    chrome.open(page.as_uri())
    background = chrome.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(20, 23, 26)") is dark
    for number in range(1, 8):
        chrome.set_value("#jump", str(number))
        chrome.run("document.querySelectorAll('.more').forEach(b => b.click())")
        assert chrome.run(CONTRAST) == []
        assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
    chrome.hover(".t.trained") if chrome.run("Boolean(document.querySelector('.t.trained'))") else None
    chrome.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_controls_have_names(opened: Chrome) -> None:
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "textbox", "searchbox", "combobox", "checkbox", "radio")
    controls = [node for node in tree if node.get("role", {}).get("value") in roles]
    assert len(controls) >= 9
    assert [node for node in controls if not node.get("name", {}).get("value", "").strip()] == []


def test_print(opened: Chrome, tmp_path: Path) -> None:
    opened.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    opened.call("Emulation.setEmulatedMedia", media="print")
    visible = "[...document.querySelectorAll('.bar, .token, .more')].filter(e => e.getClientRects().length).length"
    assert opened.run(visible) == 0
    assert opened.run("document.querySelector('.trained').getClientRects().length") > 0
    opened.call("Emulation.setEmulatedMedia", media="")


def test_the_actions_of_a_turn_are_pages_of_their_own(chrome: Chrome, tmp_path: Path) -> None:
    builder = PageBuilder(load_vocabulary(), 200)
    builder.add(explain(TALK, Renderer(load_vocabulary(), RenderSettings())))
    (tmp_path / "actions.html").write_text(builder.page("talk", []), encoding="utf-8")
    chrome.open((tmp_path / "actions.html").as_uri())
    assert chrome.text(".meta").startswith("turn 1 of 2, action 1 of 2 · ")
    chrome.click("#next")
    assert chrome.text(".meta").startswith("turn 1 of 2, action 2 of 2 · ")
