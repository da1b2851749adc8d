"""The report of an evaluation in a browser: no request, nothing runs, it fits every width, both colour schemes, print."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser.chrome import CONTRAST, Chrome
from unit.train.evals.test_report_data import EVIL, RIGHT, row, two_sides

from counterpoint.train.evals.publish import write_report
from counterpoint.train.evals.report_data import Report, Side


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(folder, two_sides())
    return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_asks_for_nothing(chrome: Chrome, page: Path, width: int, dark: bool) -> None:
    chrome.size(width, 900, dark)
    chrome.open(page.as_uri())
    assert chrome.requests == [page.as_uri()]
    assert chrome.problems == []
    assert chrome.run("document.documentElement.scrollWidth") <= width
    assert chrome.run(CONTRAST) == []
    assert chrome.text("h2") == "Verdict"
    ground = chrome.run("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 23, 26)") == dark


def test_figures_take_their_colours_from_the_page(chrome: Chrome, page: Path) -> None:
    chrome.open(page.as_uri())
    looks = "getComputedStyle(document.querySelector('svg .mark-tuned')).fill"
    assert chrome.run(looks) == "rgb(31, 95, 191)"
    chrome.size(1280, 900, dark=True)
    assert chrome.run(looks) == "rgb(138, 184, 255)"
    names = "[...document.querySelectorAll('svg[role=img]')].every(svg => svg.getAttribute('aria-label').length > 9)"
    assert chrome.run(names)


def test_hostile_rows_do_nothing(chrome: Chrome, tmp_path: Path) -> None:
    text = f"<|channel|>analysis<|message|>{EVIL}<|end|><|start|>assistant<|channel|>final<|message|>{EVIL}<|return|>"
    rows = [row(text, asked=EVIL, id_=EVIL), {**row(RIGHT), "task": EVIL}]
    write_report(tmp_path, Report(EVIL, Side("tuned", rows), Side("base", rows), [(EVIL, EVIL)], notes=[EVIL]))
    chrome.open((tmp_path / "report.html").as_uri())
    assert len(chrome.requests) == 1
    assert chrome.problems == []
    assert chrome.run("window.owned") is None
    assert chrome.run("document.querySelectorAll('script, img, a').length") == 0


def test_it_prints(chrome: Chrome, page: Path, tmp_path: Path) -> None:
    chrome.size(1280, 900, dark=True)
    chrome.open(page.as_uri())
    chrome.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    chrome.call("Emulation.setEmulatedMedia", media="print", features=dark)
    assert chrome.run("getComputedStyle(document.body).color") == "rgb(28, 32, 36)", (
        "dark on white, whatever the screen"
    )
    chrome.call("Emulation.setEmulatedMedia", media="")
