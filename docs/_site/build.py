"""Builds the site: docs/ with the pages that are made from the code, then the generator. `make docs` runs it.

python docs/_site/build.py [--serve]
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "build" / "docs"
sys.path.insert(0, str(Path(__file__).parent))

import reference  # noqa: E402


def assemble(to: Path) -> list[Path]:
    """Writes every page of the site below `to`: those of docs/, README.md as the first page, and the reference."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(ROOT / "docs", to, ignore=shutil.ignore_patterns("_site", "launch"))
    made = reference.pages()
    for source, target in (("README", "index"), ("CHANGELOG", "changelog"), ("CONTRIBUTING", "contributing")):
        made[f"{target}.md"] = (ROOT / f"{source}.md").read_text(encoding="utf-8").replace("](docs/", "](")
    for path, text in made.items():
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        (to / path).write_text(text, encoding="utf-8")
    pages = sorted(to.rglob("*.md"))
    names = {page.relative_to(to).as_posix() for page in pages}
    for page in pages:
        page.write_text(
            linked(page.read_text(encoding="utf-8"), page.relative_to(to).as_posix(), names), encoding="utf-8"
        )
    return pages


def linked(text: str, page: str, names: set[str]) -> str:
    """`docs/data.md` in a sentence as a link to that page: what a reader of the repository opens, one of the site clicks."""
    up = "../" * page.count("/")

    def link(found: re.Match[str]) -> str:
        name = found.group(1)
        return f"[{name}]({up}{name})" if name in names and name != page else found.group(0)

    parts = re.split(r"(^```.*?^```|`[^`\n]+`|\[[^\]]*\]\([^)]*\)|^    .*$)", text, flags=re.DOTALL | re.MULTILINE)
    parts[::2] = [re.sub(r"(?<![\w/(])docs/([\w/-]+\.md)", link, part) for part in parts[::2]]
    return "".join(parts)


if __name__ == "__main__":
    assemble(PAGES)
    raise SystemExit(
        subprocess.call([sys.executable, "-m", "zensical", "serve" if "--serve" in sys.argv else "build", "--strict"])
    )
