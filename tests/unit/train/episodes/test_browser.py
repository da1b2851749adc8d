"""The browser shows a corpus as gpt-oss's own `SimpleBrowserTool` does, and nothing that a model asks breaks it."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.configs.data_section import RenderSettings
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.tool_section import BrowserSettings
from counterpoint.data.conversation import Conversation, Message
from counterpoint.data.harmony.completion import ToolCall
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.train.episodes.browser import Browser
from counterpoint.train.episodes.corpus import Corpus
from counterpoint.train.episodes.episodes import run_episodes
from counterpoint.train.episodes.page_text import LONGEST_TOKEN
from counterpoint.train.episodes.toolkit import Toolkit
from counterpoint.train.sampling.rollout import Citation, Rollout, ToolResult
from counterpoint.train.sampling.scripted import ScriptedEngine

GOLDEN = Path(__file__).parents[3] / "golden" / "browser.jsonl"
PAGES, *RECORDED = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
LAMP = "https://docs.example/lamp"


def write(file: Path, *pages: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(page) + "\n" for page in pages), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def corpus(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(str(write(tmp_path_factory.mktemp("corpus") / "pages.jsonl", *PAGES["pages"])))


def use(browser: Browser, name: str, text: Any = None, **arguments: Any) -> ToolResult:
    text = json.dumps(arguments) if text is None else text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    given = value if isinstance(value, dict) else None
    result = browser.call(ToolCall(name, "browser", f"browser.{name}", text, given, "role", "analysis"))
    assert result is not None
    return result


@pytest.mark.parametrize("dialogue", RECORDED, ids=[f"{n}-{d['view_tokens']}" for n, d in enumerate(RECORDED)])
def test_displays_are_those_of_the_reference(corpus: Corpus, dialogue: dict[str, Any]) -> None:
    browser = Browser(corpus, dialogue["view_tokens"])
    for called in dialogue["calls"]:
        if called["name"] == "search":
            found = corpus.search(called["arguments"]["query"], called["arguments"].get("topn", 10))
            assert [{"url": f.url, "title": f.title, "summary": f.summary} for f in found] == called["results"]
        assert use(browser, called["name"], **called["arguments"]).content == called["text"]


def test_what_differs_from_the_reference_is_meant(corpus: Corpus) -> None:
    browser = Browser(corpus, 1024)
    assert use(browser, "search", query="lamp", topn=2).content.count("【") == 2
    assert "Warranty" in use(browser, "search", query="receipt").content
    assert "Lamp manual" in use(browser, "open", cursor=0).content  # the reference shows the second search here
    assert use(browser, "search", query="lamp", topn="many").fault == "bad_arguments"
    assert use(browser, "find").content.startswith("error: ValidationError")
    assert use(browser, "close").content == '{"error": "Unknown function: close"}'
    assert use(browser, "open", "[1]").content == '{"error": "Invalid function arguments"}'
    assert use(browser, "open", "").content.startswith("[3] lamp")
    assert Browser(corpus, 9).call(ToolCall("python", None, "python", "1", None, "role", "analysis")) is None


def test_mistakes_of_the_model_are_faults_that_it_reads(corpus: Corpus) -> None:
    browser = Browser(corpus, 1024)
    assert use(browser, "open", id=LAMP).fault is None
    for arguments in ({"id": 99}, {"cursor": 7}, {"loc": 10_000}, {"id": "https://docs.example/no"}):
        assert use(browser, "open", **arguments).fault == "bad_arguments"
    assert use(browser, "open").content.startswith("[1] Lamp manual")  # none of them took a cursor


WHOLE = st.integers(-3, 12)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "query": st.text(max_size=12) | st.sampled_from(["lamp", 'two "years', "a* OR (", "NEAR/2", "\x00"]),
        "topn": WHOLE | st.just("x"),
        "id": WHOLE | st.sampled_from([LAMP, "view-source:", "\x00"]) | st.text(max_size=5) | st.none(),
        "cursor": WHOLE | st.just(10**30),
        "loc": st.integers(-2, 90),
        "num_lines": st.integers(-2, 90),
        "pattern": st.text(max_size=3) | st.sampled_from(["lamp", "】", "(", "\ud800"]),
        "view_source": st.booleans(),
        "source": st.just("web"),
    },
)
FITTING = {"search": ("query", "topn"), "open": ("id", "cursor", "loc", "num_lines"), "find": ("pattern", "cursor")}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([*FITTING, "x"]), ARGUMENTS, st.booleans()), max_size=12))
def test_any_calls_give_texts_and_each_rollout_has_its_pages(corpus: Corpus, calls: list[Any]) -> None:
    both = Browser(corpus, 60), Browser(corpus, 60)
    alone: tuple[list[Any], list[Any]] = [], []
    displays = [0, 0]
    for second, name, arguments, fitting in calls:
        given = {k: v for k, v in arguments.items() if not fitting or k in FITTING.get(name, ())}
        result = use(both[second], name, **given)
        alone[second].append((name, given, result))
        if result.fault is None:
            assert re.match(rf"\[{displays[second]}\] ", result.content)
            displays[second] += 1
        assert len(result.content) <= 8_000
    for said in alone:
        browser = Browser(corpus, 60)
        assert [use(browser, name, **given) for name, given, _ in said] == [result for *_, result in said]


def test_an_index_is_made_once_for_each_content(cache: Path, tmp_path: Path) -> None:
    pages = [{"url": f"https://a.example/{n}", "title": f"Page {n}", "text": f"word{n} and more"} for n in range(3)]
    one = Corpus(str(write(tmp_path / "one.jsonl", *pages)))
    (file,) = (cache / "counterpoint" / "corpora").glob(f"{one.digest}.sqlite")
    made = file.stat().st_mtime_ns
    other = Corpus(str(write(tmp_path / "other.jsonl", *pages)))
    assert (other.digest, file.stat().st_mtime_ns, other.size) == (one.digest, made, 3)
    changed = Corpus(str(write(tmp_path / "one.jsonl", *pages, {"url": "https://a.example/new", "text": "word1"})))
    assert changed.digest != one.digest
    assert {f.url for f in changed.search("WORD1", 9)} == {"https://a.example/new", "https://a.example/1"}
    assert [f.url for f in one.search("word1 word2", 1)] == ["https://a.example/1"]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        one._read("delete from pages")


def test_the_texts_of_a_folder_are_pages_whose_links_can_be_followed(cache: Path, tmp_path: Path) -> None:
    docs = tmp_path / "Docs"
    (docs / "guide").mkdir(parents=True)
    (docs / "index.md").write_text(
        "# The manual\n\nSee [the guide](guide/a%20b.md#top), [x](y), ![p](guide/a%20b.md).\n"
    )
    (docs / "guide" / "a b.md").write_text("Back to [it](../index.md).")
    (docs / "picture.png").write_bytes(b"\x89PNG")
    with Toolkit(browser=BrowserSettings(corpus=str(docs))) as toolkit:
        assert toolkit.notes == (
            f"tools.browser.corpus: 1 files of {docs} are no texts and are left out, the first: picture.png",
        )
        (browser,) = toolkit.toolbox().providers
    assert isinstance(browser, Browser)
    text = use(browser, "open", id="https://docs.local/index.md").content
    assert text.startswith(
        "[0] The manual (https://docs.local/index.md)\n**viewing lines [0 - 5] of 5**\n\nL0: \nL1: URL: "
    )
    assert "See 【0†the guide】, [x](y), ![p](guide/a%20b.md)." in text
    assert use(browser, "open", id=0).content.startswith("[1] guide/a b.md (https://docs.local/guide/a b.md)")
    assert "【0†it】" in use(browser, "open").content


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"url": "u"}\n', "a.jsonl:1: `text` is no text: each page needs one"),
        ("a.jsonl", '{"url": "", "text": "t"}\n', "a.jsonl:1: `url` is no text"),
        ("a.jsonl", '{"url": "u", "text": "t"}\n{"url": "u", "text": "s"}\n', "two pages have the url u"),
        ("a.jsonl", '{"url": "u", "text": "t", "title": 1}\n', "a.jsonl:1: `title` is no text"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: not an object"),
        ("a.jsonl", '{"url": "u", "text": \n', "a.jsonl:1"),
        ("a.jsonl", "\n", "no rows"),
        ("docs/a.png", "x", "the folder has no .md"),
        ("docs/a.md", "\udcff", "not UTF-8"),
    ],
)
def test_what_is_no_corpus_is_told(cache: Path, tmp_path: Path, name: str, content: str, told: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"^tools\.browser\.corpus: ") as error:
        Corpus(str(file if file.parent == tmp_path else file.parent))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("tmp*"))


def test_a_corpus_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match=r"tools\.browser\.corpus: .*nowhere"):
        Toolkit(browser=BrowserSettings(corpus="nowhere.jsonl"))


def test_results_go_back_to_the_call_and_finals_cite_what_was_shown(corpus: Corpus) -> None:
    asked = "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>analysis to=browser.{} code<|message|>{}<|call|>"
    final = "Three turns 【1†L2-L3】, 【1†L999】, 【7†L1】.", "Replaced【1†L2】"
    script = [
        asked.format("search", '{"query": "lamp"}'),
        asked.format("open", '{"id": 0}'),
        f"<|channel|>final<|message|>{final[0]}<|return|>",
    ]
    vocabulary = load_vocabulary()
    renderer = Renderer(vocabulary, RenderSettings(serving="sampled"))
    with Toolkit(browser=BrowserSettings(corpus=corpus.where, view_tokens=50)) as toolkit:
        prompt = toolkit.declared(Conversation((Message("user", "How is it switched off?"),)))
        (episode,) = run_episodes([prompt], renderer, ScriptedEngine(vocabulary, script), toolbox=toolkit.toolbox)
    assert "namespace browser" in vocabulary.decode(episode.prompt_ids)
    text = vocabulary.decode(episode.completion_ids)
    head = "<|start|>browser.search to=assistant<|channel|>analysis<|message|>[0] lamp\n**viewing lines [0 - "
    assert head in text
    assert "<|start|>browser.open to=assistant<|channel|>analysis<|message|>[1] Lamp manual (https://docs" in text
    assert [called.fault for called in episode.called] == [None, None]
    rollout = Rollout({}, "", "medium", prompt, episode.turns, episode.stop)
    (shown, beyond, nowhere) = rollout.citations
    lines = "The lamp has a switch at its foot. Turn it once for a warm light, twice for a \nbright one, and a third time to turn the lamp off."
    assert shown == Citation(1, 2, 3, LAMP, lines)
    assert (beyond, nowhere) == (Citation(1, 999, 999, LAMP), Citation(7, 1, 1))


def test_the_longest_token_is_as_long_as_views_are_cut_by() -> None:
    assert max(len(token.decode("utf-8", "replace")) for token in load_vocabulary().tokens()) == LONGEST_TOKEN
