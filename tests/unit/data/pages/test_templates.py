"""Colours that read and are the same everywhere; templates that show every text and run none."""

from __future__ import annotations

import base64
import colorsys
import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import DictLoader, UndefinedError

from counterpoint.data.pages import templates
from counterpoint.data.pages.colours import DARK, LIGHT, SERIES, TERMINAL, css
from counterpoint.data.pages.templates import render_page, text_file
from counterpoint.data.pages.visible import visible

CHANNELS = ("analysis", "commentary", "final")
EVIL = "</style></title><script>owned = 1</script><img src=x onerror='owned = 2'>\u202e\x1b[31m\n{{ style }} & \"q\""


def rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    return red, green, blue


def luminance(colour: str) -> float:
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(a: str, b: str) -> float:
    """WCAG 2.2, 1.4.3."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def hue(colour: str) -> float:
    return 360 * colorsys.rgb_to_hls(*rgb(colour))[0]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_every_text_has_the_contrast_of_wcag_aa(colours: dict[str, str]) -> None:
    for text in ("text", "muted", "warning", "bad", "good", *SERIES):
        for ground in ("ground", "surface"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for channel in CHANNELS:
        assert contrast(colours["text"], colours[f"{channel}-tint"]) >= 4.5
        assert contrast(colours[channel], colours[f"{channel}-tint"]) >= 4.5
    for kind in ("warning", "bad"):
        assert contrast(colours[kind], colours[f"{kind}-tint"]) >= 4.5


def test_a_channel_has_one_hue_on_every_ground() -> None:
    for channel in CHANNELS:
        hues = [hue(colours[channel]) for colours in (LIGHT, DARK, TERMINAL)]
        assert max(hues) - min(hues) < 4, channel
        for ground in ("#ffffff", "#000000"):
            assert contrast(TERMINAL[channel], ground) >= 4, "a terminal may be dark or light"


def test_the_style_sheet_uses_the_table_and_nothing_else() -> None:
    style = text_file("data/pages/style.css")
    screen = style.partition("@media print")[0]
    assert not re.findall(r"#[0-9a-f]{6}\b|\brgb\(\d+ [1-9]|hsl\(", screen)
    own = set(re.findall(r"--([\w-]+):", style))
    assert set(re.findall(r"var\(--([\w-]+)", style)) <= own | LIGHT.keys()
    assert DARK.keys() == LIGHT.keys()
    assert css().index(LIGHT["ground"]) < css().index("@media screen and") < css().index(DARK["ground"])


def page_with(monkeypatch: pytest.MonkeyPatch, body: str, **values: object) -> str:
    """A page whose body is a template of its own."""
    monkeypatch.setattr(
        templates._environment(),
        "loader",
        DictLoader(
            {
                "x.html": f'{{% extends "base.html" %}}{{% block body %}}{body}{{% endblock %}}',
                "base.html": text_file("data/pages/base.html"),
            }
        ),
    )
    return render_page("x.html", **{"title": "t", **values})


def body_of(page: str) -> str:
    return page.partition("<body>")[2].partition("</body>")[0].strip()


@pytest.mark.parametrize("how", ["text", "text | line", "text | block"])
def test_every_text_is_escaped_and_visible_whichever_way_it_is_printed(
    monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    body = body_of(page_with(monkeypatch, f'<p title="{{{{ {how} }}}}">{{{{ {how} }}}}</p>', text=EVIL))
    inside = re.fullmatch(r'<p title="([^<>"]*)">([^<>"]*)</p>', body)
    assert inside is not None
    for text in inside.groups():
        assert text.startswith("&lt;/style&gt;&lt;/title&gt;&lt;script&gt;")
        assert "⟨U+202E⟩⟨U+001B⟩[31m" in text
        assert "{{ style }} &amp; &#34;q&#34;" in text
        assert ("\n" in text) == ("line" not in how)


def test_a_name_that_a_template_does_not_get_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UndefinedError, match="missing"):
        page_with(monkeypatch, "{{ missing }}")


def test_limits_of_a_line_and_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    assert body_of(page_with(monkeypatch, "{{ t | line }}", t="x" * 401)) == "x" * 400 + "…"
    assert body_of(page_with(monkeypatch, "{{ t | block }}", t="x" * 4001)) == "x" * 4000
    assert body_of(page_with(monkeypatch, "{{ n | number }}", n=1234567)) == "1,234,567"


@pytest.mark.parametrize("script", ["", "let a = '<' + 1 && 2;\n"])
def test_the_policy_lets_only_what_was_written_in_run(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    page = page_with(
        monkeypatch, "<script>{{ script | safe }}</script>", script=script, title=EVIL, figures="svg .x {}"
    )
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert style.endswith("svg .x {}")
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    policy = re.search('Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = [f"script-src 'sha256-{hashes[0]}'"] if script else []
    assert policy.group(1).split("; ") == [
        "default-src 'none'",
        *allowed,
        f"style-src 'sha256-{hashes[1]}'",
        *(["img-src data:"] if script else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert page.index("Content-Security-Policy") < page.index("<title>") < page.index("<style>")
    assert page.count("<title>") == page.count("</title>") == 1


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_title_of_any_text_stays_a_title(text: str) -> None:
    page = render_page("data/pages/base.html", title=text)
    title = page.partition("<title>")[2].partition("</title>")[0]
    assert not set(title) & set('<>"')
    assert visible(title) == title
