from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser.chrome import Chrome


@pytest.fixture(scope="session")
def browser() -> Iterator[Chrome]:
    with Chrome() as chrome:
        yield chrome


@pytest.fixture
def chrome(browser: Chrome) -> Chrome:
    """The session's browser, with a desktop's window and an empty page."""
    browser.size(1280, 900)
    browser.open("about:blank")
    return browser
