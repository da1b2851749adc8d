"""Builds the site: docs/ with the pages that are made from the code, then the generator. `make docs` runs it.

python docs/_site/make_site.py [--serve]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
CSS = """
/* On a phone a row of a table stands as lines below each other. */
@media (max-width: 44em) {
  .md-typeset table:not([class]), .md-typeset table:not([class]) tbody, .md-typeset table:not([class]) tr,
  .md-typeset table:not([class]) td { display: block; min-width: 0; }
  .md-typeset table:not([class]) thead { display: none; }
  .md-typeset table:not([class]) td { border-top: 0; padding: .2em .8em; }
  .md-typeset table:not([class]) td[data-column]::before {
    content: attr(data-column) ": "; color: var(--md-default-fg-color--light);
  }
  .md-typeset table:not([class]) td:first-child {
    border-top: .05rem solid var(--md-typeset-table-color); padding-top: .8em;
  }
  .md-typeset table:not([class]) td:last-child { padding-bottom: .8em; }
}
.md-typeset td code { overflow-wrap: anywhere; }
.md-typeset img[src$=".svg"] { background: #fff; border-radius: .2rem; }
"""

sys.path.insert(0, str(Path(__file__).parent))

import reference_pages  # noqa: E402


def assemble(to: Path) -> list[Path]:
    """Writes every page of the site below `to`: those of docs/, README.md as the first page, and the reference."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(ROOT / "docs", to, ignore=shutil.ignore_patterns("_site", "launch"))
    (to / "site.css").write_text(CSS, encoding="utf-8")
    made = reference_pages.pages()
    for source, target in (("README", "index"), ("CHANGELOG", "changelog"), ("CONTRIBUTING", "contributing")):
        made[f"{target}.md"] = (ROOT / f"{source}.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for path, text in made.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_text(text, encoding="utf-8")
    pages = sorted(to.rglob("*.md"))
    names = {page.relative_to(to).as_posix() for page in pages}
    for page in pages:
        text = linked(page.read_text(encoding="utf-8"), page.relative_to(to).as_posix(), names)
        page.write_text(text, encoding="utf-8")
    return pages


def linked(text: str, page: str, names: set[str]) -> str:
    """`docs/data.md` in a sentence as a link to that page."""
    up = "../" * page.count("/")

    def link(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"[{name}]({up}{name})" if name in names and name != page else found.group(0)

    parts = re.split(r"(^```.*?^```|`[^`\n]+`|\[[^\]]*\]\([^)]*\)|^    .*$)", text, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"(?<![\w/(])docs/([\w/-]+\.md)", link, part) for part in parts[::2]]
    return "".join(parts)


def finish(site: Path) -> None:
    """What the generator leaves to do in every page."""
    for page in site.rglob("*.html"):
        text = without_hosts(page.read_text(encoding="utf-8"))
        page.write_text(re.sub(r"<table>.*?</table>", labelled, text, flags=re.DOTALL), encoding="utf-8")


def without_hosts(text: str) -> str:
    """Takes out the script that the generator asks a host for: where a page is a file, the search does without it."""
    return re.sub(r'<script src="https?://[^>]*></script>', "", text)


def labelled(table: re.Match[str]) -> str:
    """A table whose cells name their column, all but the first of a row: on a phone they stand below each other."""
    heads = [re.sub(r"<[^>]+>", "", head).strip() for head in re.findall(r"<th[^>]*>(.*?)</th>", table[0], re.DOTALL)]

    def row(found: re.Match[str]) -> str:
        names = iter(heads)

        def cell(opened: re.Match[str]) -> str:
            name, first = next(names, ""), opened.start() == found[0].find("<td")
            label = f' data-column="{name.replace(chr(34), "&quot;")}"' if name and not first else ""
            return f"<td{label}{opened[1]}>"

        return re.sub(r"<td([^>]*)>", cell, found[0])

    return re.sub(r"<tr>.*?</tr>", row, table[0], flags=re.DOTALL)


if __name__ == "__main__":
    assemble(PAGES)
    if "--serve" in sys.argv:
        raise SystemExit(subprocess.call([sys.executable, "-m", "zensical", "serve"], cwd=ROOT))
    code = subprocess.call([sys.executable, "-m", "zensical", "build", "--strict"], cwd=ROOT)
    finish(SITE)
    raise SystemExit(code)
