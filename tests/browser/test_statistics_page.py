"""The statistics page of `prepare` in a browser: no request, it fits, every text can be read, hostile names are inert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser.chrome import CONTRAST, Chrome

from counterpoint.recipes.cli import main

EVIL = "</style><script>window.owned = 1</script><img src=http://127.0.0.1:9/x onerror=owned=2>\u202e"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("statistics")
    tool = {"type": "function", "function": {"name": f"f{EVIL}{'x' * 90}", "parameters": {"type": "object"}}}
    talk = [
        {"role": "user", "content": "What is two and two?"},
        {"role": "assistant", "thinking": "An easy sum.", "content": "Four " * 40},
    ]
    rows = [
        json.dumps({"messages": talk}),
        json.dumps({"messages": talk, "tools": [tool]}),
        "not json",
        f'{{"{EVIL}": 1}}',
    ]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    assert main(["prepare", str(folder / "rows.jsonl"), "--out", str(folder / "x.jsonl")]) == 0
    return folder / "x.statistics.html"


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_it_reads_fits_and_asks_for_nothing(chrome: Chrome, page: Path, width: int, dark: bool) -> None:
    chrome.size(width, 900, dark)
    chrome.open(page.as_uri())
    chrome.run("document.querySelector('details').open = true")
    assert chrome.requests == [page.as_uri()]
    assert chrome.problems == []
    assert chrome.run("'owned' in window") is False
    assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
    assert chrome.run(CONTRAST) == []


def test_a_channel_has_its_colour(chrome: Chrome, page: Path) -> None:
    chrome.open(page.as_uri())
    assert chrome.run("getComputedStyle(document.querySelector('.meter .analysis')).fill") == "rgb(31, 95, 191)"
    assert chrome.run("getComputedStyle(document.querySelector('.meter .final')).fill") == "rgb(10, 107, 84)"
