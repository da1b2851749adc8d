"""Figures on the page, as SVG files and as PNG: the same marks, and colours that can be read."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from counterpoint.data.pages.colours import LIGHT
from counterpoint.train.evals.card import TASKS, card_bands, size_of
from counterpoint.train.evals.drawing import (
    STYLES,
    Circle,
    Drawing,
    Path,
    Text,
    css,
    dashed,
    png_file,
    svg_file,
    svg_in_page,
)
from counterpoint.train.evals.effort import Point
from counterpoint.train.evals.figures import Curve, Series, accuracy_by_length, lines

EVERY_KIND = Drawing(
    100,
    40,
    'it says "<&>"',
    [
        *(Path(kind, [(0, 5), (50, 5), (50, 20)], closed=kind.endswith("band")) for kind in STYLES),
        *(Circle(kind, 80, 20, 5) for kind in STYLES),
        *(Text(kind, 20, 30, "<b>&", "middle") for kind in STYLES),
    ],
)
BASE = Curve("base", "base", [Point("low", 0.5, 0.4, 0.6, 90, None, 80), Point("high", 0.9, 0.8, 1.0, 900, None, 800)])


def test_every_kind_of_mark_has_its_looks_in_every_writer() -> None:
    rules = css()
    assert all(f"svg .{kind} {{" in rules for kind in STYLES)
    names = set(re.findall(r"var\(--([\w-]+)\)", rules))
    assert names <= LIGHT.keys()
    document = ElementTree.fromstring(svg_file(EVERY_KIND))
    assert document.attrib["aria-label"] == 'it says "<&>"'
    assert "var(" not in svg_file(EVERY_KIND)
    assert len(document) == 1 + 3 * len(STYLES)
    assert "style=" not in svg_in_page(EVERY_KIND), "the page's policy allows no inline style"
    assert "&lt;b&gt;&amp;" in svg_in_page(EVERY_KIND)


def test_a_png_has_the_drawing_s_size_and_colours() -> None:
    blue = tuple(int(LIGHT["analysis"][n : n + 2], 16) for n in (1, 3, 5))
    drawing = Drawing(60, 30, "", [Circle("mark-tuned", 15, 15, 10), Path("line-s1", [(35, 15), (55, 15)])])
    image = Image.open(io.BytesIO(png_file(drawing, scale=3)))
    assert image.size == (180, 90)
    assert image.getpixel((45, 45)) == blue
    assert image.getpixel((0, 0)) == (255, 255, 255)
    Image.open(io.BytesIO(png_file(EVERY_KIND))).load()


@given(
    points=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=6),
    dash=st.lists(st.floats(0.5, 30), min_size=2, max_size=4).filter(lambda dash: len(dash) % 2 == 0),
)
def test_dashes_keep_the_share_of_the_line_that_is_on(points: list[tuple[float, float]], dash: list[float]) -> None:
    def length(line: list[tuple[float, float]]) -> float:
        return sum(((x - u) ** 2 + (y - v) ** 2) ** 0.5 for (x, y), (u, v) in pairwise(line))

    left, number, on = length(points), 0, 0.0
    while left > 0:
        step = min(left, dash[number % len(dash)])
        on += step * (number % 2 == 0)
        left -= step
        number += 1
    assert sum(map(length, dashed(points, dash))) == pytest.approx(on, abs=1e-6)
    assert dashed(points, ()) == [points]


def test_accuracy_stands_over_thought_with_the_card_s_bands() -> None:
    drawing = accuracy_by_length([BASE], card_bands("AIME-2025", "20b"), "card 20b")
    assert drawing.told.startswith("accuracy by length of the chain of thought: base low: 0.50 at 80 tokens")
    assert drawing.told.endswith("card 20b low: 0.371; card 20b medium: 0.721; card 20b high: 0.917")
    marks = [mark for mark in drawing.marks if isinstance(mark, Circle)]
    assert marks[0].x < marks[1].x
    assert marks[0].y > marks[1].y
    assert sum(isinstance(mark, Path) and mark.kind == "card-band" for mark in drawing.marks) == 3
    nothing = Point("low", 0.0, 0.0, 0.5, 3, None, 0.0)
    assert accuracy_by_length([Curve("tuned", "t", [nothing])]).marks, "no thought at all has a place on the axis"


def test_bands_are_the_card_s_and_reach_to_what_others_measured() -> None:
    high = card_bands("aime_2025", "20b")[2]
    assert (high.effort, high.value, high.low, high.high) == ("high", 0.917, pytest.approx(0.842), pytest.approx(0.937))
    assert [band.value for band in card_bands("GPQA Diamond", "120b")] == pytest.approx([0.671, 0.731, 0.801])
    assert card_bands("my sums", "20b") == ()
    assert all(len(card_bands(task, size)) == 3 for task in TASKS for size in ("20b", "120b"))
    assert (size_of("openai/gpt-oss-120b"), size_of("tiny")) == ("120b", "20b")


def test_a_line_of_one_point_is_drawn() -> None:
    assert lines([Series("one", [(3, 0.5)])], "step", "rate", (0.0, 1.0)).told == "rate by step: one from 0.5 to 0.5"


def test_a_series_has_the_colour_of_its_place_whatever_the_others_hold() -> None:
    drawing = lines([Series("analysis", []), Series("commentary", []), Series("final", [(0, 1.0)])], "step", "loss")
    named = next(mark for mark in drawing.marks if isinstance(mark, Text) and mark.text == "final")
    assert STYLES[named.kind].fill == "final"


@pytest.mark.parametrize("name", ["x", "channel-correct", "a rather long name of a line"])
def test_the_name_of_a_line_is_within_the_drawing(name: str) -> None:
    """At the widths of DejaVu Sans Bold, which Linux browsers take for system-ui."""
    drawing = lines([Series(name, [(0, 0.5), (4, 1.0)])], "step", "rate", (0.0, 1.0))
    (label,) = (mark for mark in drawing.marks if isinstance(mark, Text) and mark.text == name)
    assert label.x + 8.2 * len(name) <= drawing.width
    assert drawing.width == (470 if len(name) < 10 else pytest.approx(378 + 8.2 * len(name)))
