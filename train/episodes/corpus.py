"""The pages that the `browser` tool sees: read from files, indexed once for each content, searched by their words.

The index is a SQLite file (FTS5, BM25) in the user's cache folder, named by the content's hash: all processes and all
runs on the same pages share it, and it is only read.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import quote, urljoin, urlparse

from counterpoint.configs.errors import ConfigError, DataError, RowError
from counterpoint.data.rows.containers import find, read_rows
from counterpoint.data.rows.row import BadRow, read
from counterpoint.data.rows.strict_json import BOM, decode
from counterpoint.train.episodes.page_text import plain, wrapped

_LAYOUT = b"counterpoint corpus 1"
DOCUMENTS = (".md", ".markdown", ".txt", ".rst")
_HEADING = re.compile(r"^#+ +(.*\S)", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^()\s]+)\)")
_WORD = re.compile(r"\w+")
_SUMMARY_WORDS = 30
_PAGES_KEPT = 256


@dataclass(frozen=True)
class Page:
    """What a display shows. links: addresses by their id. marks: of find results, the line of each; None of others."""

    url: str
    title: str
    text: str
    links: Mapping[str, str] = field(default_factory=dict)
    marks: tuple[int, ...] | None = None

    @cached_property
    def lines(self) -> list[str]:
        return wrapped(self.text)


@dataclass(frozen=True, slots=True)
class Found:
    """A search result. summary: the words around those that were asked for."""

    url: str
    title: str
    summary: str


class Corpus:
    """Pages of `{url, title, text}`: rows of a data file, or the text files of a folder (`.md`, `.txt`, `.rst`), whose
    addresses are `https://FOLDER.local/PATH` and whose titles are their first headings.

    Thread-safe: each thread has a connection of its own. notes: what was left out. ConfigError for what is no corpus.
    """

    def __init__(self, where: str) -> None:
        self.where, self.notes = where, []
        self._local = threading.local()
        try:
            place = find(where)
        except DataError as error:
            raise ConfigError(f"tools.browser.corpus: {error}") from None
        if place.is_dir():
            documents, others = _documents(place)
            if not documents:
                raise ConfigError(
                    f"tools.browser.corpus: {where}: the folder has no {', '.join(DOCUMENTS)} files: name a folder of "
                    "texts, or a data file with `url`, `title` and `text`"
                )
            if others:
                self.notes.append(
                    f"tools.browser.corpus: {len(others)} files of {where} are no texts and are left out, the first: "
                    f"{others[0].relative_to(place)}"
                )
            self.digest = _digest((str(file.relative_to(place)), file) for file in documents)
            pages = _pages_of_folder(place, documents)
        else:
            self.digest = _digest([("", place)])
            pages = _pages_of_file(where)
        self._file = _indexed(self.digest, pages)
        self.page = lru_cache(maxsize=_PAGES_KEPT)(self._page)

    @property
    def size(self) -> int:
        """Pages."""
        return self._read("select count(*) from pages")[0][0]

    def search(self, query: str, most: int) -> list[Found]:
        """The pages that hold words of the query, the best first (BM25, of a title's words thrice); equal ones in the
        corpus's order."""
        words = " OR ".join(f'"{word}"' for word in dict.fromkeys(_WORD.findall(query.lower())))
        if not words:
            return []
        rows = self._read(
            "select pages.url, pages.title, snippet(words, 1, '', '', ' ... ', ?) from words "
            "join pages on pages.id = words.rowid where words match ? order by bm25(words, 3.0, 1.0), pages.id limit ?",
            _SUMMARY_WORDS, words, most,
        )  # fmt: skip
        return [Found(url, title, summary.strip()) for url, title, summary in rows]

    def _page(self, url: str) -> Page | None:
        """The page at an address, links to other pages of the corpus numbered; None where there is none."""
        rows = self._read("select title, text from pages where url = ?", url)
        if not rows:
            return None
        title, text = rows[0]
        links: dict[str, str] = {}

        def numbered(link: re.Match[str]) -> str:
            target = urljoin(url, link[2]).partition("#")[0]
            if not self._read("select 1 from pages where url = ?", target):
                return link[0]
            return linked(links, link[1], target, url)

        return Page(url, title, f"\nURL: {url}\n{_LINK.sub(numbered, plain(text))}", links)

    def _read(self, query: str, *values: object) -> list[tuple]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = sqlite3.connect(f"{self._file.as_uri()}?immutable=1", uri=True)
        return connection.execute(query, values).fetchall()


def linked(links: dict[str, str], text: str, url: str, seen_at: str = "") -> str:
    """A link as displays write it, entered into `links`; one to another host names it."""
    ids = {url: number for number, url in links.items()}
    number = ids.get(url, str(len(links)))
    links[number] = url
    label = " ".join(text.replace("†", "‡").split())
    host = urlparse(url).netloc
    return f"【{number}†{label}】" if host == urlparse(seen_at).netloc else f"【{number}†{label}†{host}】"


def _documents(folder: Path) -> tuple[list[Path], list[Path]]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    texts = [file for file in files if file.suffix.lower() in DOCUMENTS]
    return texts, [file for file in files if file not in set(texts)]


def _digest(files: Iterator[tuple[str, Path]] | list[tuple[str, Path]]) -> str:
    whole = hashlib.sha256(_LAYOUT)
    try:
        for name, file in files:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            whole.update(f"{name}\0{content}\n".encode())
    except OSError as error:
        raise ConfigError(f"tools.browser.corpus: {error.filename}: cannot be read ({error.strerror})") from None
    return whole.hexdigest()[:32]


def _pages_of_file(where: str) -> Iterator[tuple[str, str, str]]:
    for each in read_rows(where):
        row = read(each)
        if isinstance(row, BadRow):
            raise ConfigError(f"tools.browser.corpus: {row.message}")
        value = row.value
        if not isinstance(value, dict):
            raise ConfigError(f"tools.browser.corpus: {row.source}: not an object with `url`, `title` and `text`")
        for name in ("url", "text"):
            if not isinstance(value.get(name), str) or not value[name]:
                raise ConfigError(f"tools.browser.corpus: {row.source}: `{name}` is no text: each page needs one")
        title = value.get("title")
        if title is not None and not isinstance(title, str):
            raise ConfigError(f"tools.browser.corpus: {row.source}: `title` is no text")
        yield value["url"], title or value["url"], value["text"]


def _pages_of_folder(folder: Path, files: list[Path]) -> Iterator[tuple[str, str, str]]:
    for file in files:
        path = file.relative_to(folder).as_posix()
        try:
            text = decode(file.read_bytes().removeprefix(BOM), path)
        except RowError as error:
            raise ConfigError(f"tools.browser.corpus: {file}: {error.what}: {error.fix}") from None
        heading = _HEADING.search(text)
        yield (
            f"https://{quote(folder.resolve().name.lower())}.local/{quote(path)}",
            heading[1] if heading else path,
            text,
        )


def _indexed(digest: str, pages: Iterator[tuple[str, str, str]]) -> Path:
    """The index, made where there is none yet. A second process that makes it at the same time replaces it by its
    equal."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "counterpoint" / "corpora"
    target = folder / f"{digest}.sqlite"
    if target.is_file():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="counterpoint-corpus-"))
        target = folder / f"{digest}.sqlite"
        handle, part = tempfile.mkstemp(dir=folder)
    os.close(handle)
    try:
        _write(Path(part), pages)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return target


def _write(file: Path, pages: Iterator[tuple[str, str, str]]) -> None:
    connection = sqlite3.connect(file, isolation_level=None)
    try:
        connection.execute("pragma journal_mode = off")
        connection.execute("begin")
        connection.execute("create table pages (id integer primary key, url text unique, title text, text text)")
        for url, title, text in pages:
            try:
                connection.execute("insert into pages (url, title, text) values (?, ?, ?)", (url, title, text))
            except sqlite3.IntegrityError:
                raise ConfigError(
                    f"tools.browser.corpus: two pages have the url {url}: leave one of them out"
                ) from None
        if not connection.execute("select count(*) from pages").fetchone()[0]:
            raise ConfigError("tools.browser.corpus: no pages: each row is a page with `url`, `title` and `text`")
        connection.execute(
            "create virtual table words using fts5(title, text, content=pages, content_rowid=id, "
            "tokenize='porter unicode61 remove_diacritics 2')"
        )
        connection.execute("insert into words (words) values ('rebuild')")
        connection.execute("insert into words (words) values ('optimize')")
        connection.execute("commit")
    finally:
        connection.close()
