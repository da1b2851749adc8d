"""Tutorial pages as notebooks: `python docs/_site/notebooks.py FOLDER` writes one .ipynb for each of NOTEBOOKS.

Text becomes cells of text, a file that a page shows a `%%writefile` cell, and a command a `!` cell; what a page prints
below a command is left out, because the notebook prints its own.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).resolve().parents[1] / "tutorials"
NOTEBOOKS = ("first-report", "rewards-and-environment")
_FILE = r"```(?:python|yaml)\n# (?P<name>\w+\.(?:py|yaml))\n(?P<text>.*?)```\n"
_BLOCK = r"(?P<block>(?:^    [^\n]*\n|^\n(?=    ))*^    \$ [^\n]*\n(?:^    [^\n]*\n|^\n(?=    ))*)"


def cells(page: str) -> list[dict[str, Any]]:
    """The cells of a page in Markdown."""
    out: list[dict[str, Any]] = []
    at = 0
    for found in re.finditer(f"{_FILE}|{_BLOCK}", page, re.MULTILINE | re.DOTALL):
        _text(out, page[at : found.start()])
        if found["name"]:
            _code(out, f"%%writefile {found['name']}\n{found['text'].strip()}")
        else:
            for command in re.findall(r"^    \$ (.*)$", found["block"], re.MULTILINE):
                _code(out, f"!{_newest(command)}")
        at = found.end()
    _text(out, page[at:])
    return out


def notebook(page: str) -> dict[str, Any]:
    """The notebook of a page, in Jupyter's format 4.5."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    numbered = [{**cell, "id": f"cell-{number}"} for number, cell in enumerate(cells(page))]
    return {"cells": numbered, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _newest(command: str) -> str:
    """`runs/name-...` as the newest folder of that name."""
    return re.sub(r"runs/(\w+)-\.\.\.", r"$(ls -d runs/\1-* | tail -n 1)", command)


def _text(out: list[dict[str, Any]], text: str) -> None:
    if text.strip():
        out.append({"cell_type": "markdown", "metadata": {}, "source": text.strip()})


def _code(out: list[dict[str, Any]], source: str) -> None:
    out.append({"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": [], "source": source})


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in NOTEBOOKS:
        page = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8")
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook(page), indent=1) + "\n", encoding="utf-8")
