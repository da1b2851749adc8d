"""A figure as marks on a plane, written as SVG for the page, as an SVG file, or as PNG: one drawing, three writers.

Colours are names of `counterpoint.data.pages.colours`. On the page they are CSS variables, so that the figure follows
the colour scheme (dark or light); elsewhere they are the light values, since few programs read variables. PNG needs
Pillow.
"""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from counterpoint.configs.errors import ConfigError
from counterpoint.data.pages.colours import LIGHT, SERIES

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', sans-serif"
_OVERSAMPLE = 4


@dataclass(frozen=True, slots=True)
class Style:
    """How marks of a kind look. stroke, fill: names of colours. width, size in units of the drawing."""

    stroke: str | None = None
    fill: str | None = None
    width: float = 1.0
    dash: tuple[float, ...] = ()
    opacity: float = 1.0
    size: float = 12.0
    bold: bool = False


_DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (2, 3), (8, 3, 2, 3))
_LINES = [(f"s{n}", colour, dash) for n, (colour, dash) in enumerate(zip(SERIES, _DASHES, strict=True))]
_BASE, _TUNED = "commentary", "analysis"
STYLES: dict[str, Style] = {
    "grid": Style(stroke="line"),
    "axis": Style(fill="muted", size=11),
    "label": Style(fill="text"),
    "value": Style(fill="text", bold=True),
    "effort": Style(fill="text", size=11),
    "card-line": Style(stroke="muted", dash=(2, 2)),
    "card-band": Style(fill="muted", opacity=0.14),
    "range-base": Style(stroke=_BASE, width=2.5, opacity=0.5),
    "range-tuned": Style(stroke=_TUNED, width=2.5, opacity=0.5),
    "mark-base": Style(stroke=_BASE, fill="surface", width=2.5),
    "mark-tuned": Style(stroke=_TUNED, fill=_TUNED, width=2.5),
    **{f"line-{name}": Style(stroke=colour, width=2, dash=dash) for name, colour, dash in _LINES},
    **{f"dot-{name}": Style(fill=colour) for name, colour, _ in _LINES},
    **{f"band-{name}": Style(fill=colour, opacity=0.16) for name, colour, _ in _LINES},
    **{f"name-{name}": Style(fill=colour, bold=True) for name, colour, _ in _LINES},
}


@dataclass(frozen=True, slots=True)
class Path:
    """A line through points, or with `closed` an area."""

    kind: str
    points: Sequence[Point]
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Circle:
    kind: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Text:
    """y is the baseline."""

    kind: str
    x: float
    y: float
    text: str
    anchor: Anchor = "start"


Mark = Path | Circle | Text


@dataclass(frozen=True, slots=True)
class Drawing:
    """told: its text alternative. Every kind of a mark is one of STYLES."""

    width: float
    height: float
    told: str
    marks: Sequence[Mark]


def css() -> str:
    """Rules of the page for the kinds of marks."""
    return "\n".join(f"svg .{kind} {{ {_rule(style)} }}" for kind, style in STYLES.items())


def svg_in_page(drawing: Drawing) -> str:
    """An `svg` element that is styled by `css()`."""
    marks = "".join(_svg_mark(mark, f'class="{mark.kind}"') for mark in drawing.marks)
    return f"<svg {_frame(drawing)}>{marks}</svg>"


def svg_file(drawing: Drawing) -> str:
    """A complete SVG document on a white ground, with its style written on every mark."""
    marks = "".join(_svg_mark(mark, _attributes(mark)) for mark in drawing.marks)
    size = f'width="{drawing.width:.0f}" height="{drawing.height:.0f}"'
    ground = '<rect width="100%" height="100%" fill="#ffffff"/>'
    space = 'xmlns="http://www.w3.org/2000/svg"'
    return f'<svg {space} {size} {_frame(drawing)} font-family="{_FONT}">{ground}{marks}</svg>\n'


def png_file(drawing: Drawing, scale: float = 2.0) -> bytes:
    """The drawing at `scale` pixels a unit, on white. ConfigError without Pillow."""
    try:
        from PIL import Image, ImageDraw
    except ImportError:
        raise ConfigError("PNG figures need Pillow: pip install 'counterpoint[eval]', or take the SVG files") from None
    size = (round(drawing.width * scale), round(drawing.height * scale))
    large = scale * _OVERSAMPLE  # Pillow's lines are not smooth: drawn large, then reduced
    image = Image.new("RGB", (round(drawing.width * large), round(drawing.height * large)), "#ffffff")
    pen = ImageDraw.Draw(image, "RGBA")
    for mark in drawing.marks:
        _paint(pen, mark, STYLES[mark.kind], large)
    out = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(out, "PNG", optimize=True)
    return out.getvalue()


def _rule(style: Style) -> str:
    parts = [f"fill: {f'var(--{style.fill})' if style.fill else 'none'}"]
    if style.stroke:
        parts.append(f"stroke: var(--{style.stroke}); stroke-width: {style.width:g}")
    if style.dash:
        parts.append(f"stroke-dasharray: {' '.join(f'{n:g}' for n in style.dash)}")
    if style.opacity < 1:
        parts.append(f"opacity: {style.opacity:g}")
    if style.size != 12:
        parts.append(f"font-size: {style.size:g}px")
    if style.bold:
        parts.append("font-weight: 600")
    return "; ".join(parts) + ";"


def _attributes(mark: Mark) -> str:
    style = STYLES[mark.kind]
    parts = {"fill": LIGHT[style.fill] if style.fill else "none"}
    if style.stroke:
        parts |= {"stroke": LIGHT[style.stroke], "stroke-width": f"{style.width:g}"}
    if style.dash:
        parts["stroke-dasharray"] = " ".join(f"{n:g}" for n in style.dash)
    if style.opacity < 1:
        parts["opacity"] = f"{style.opacity:g}"
    if isinstance(mark, Text):
        parts["font-size"] = f"{style.size:g}"
        if style.bold:
            parts["font-weight"] = "600"
    return " ".join(f'{name}="{value}"' for name, value in parts.items())


def _svg_mark(mark: Mark, looks: str) -> str:
    if isinstance(mark, Path):
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in mark.points)
        return f'<{"polygon" if mark.closed else "polyline"} {looks} points="{points}"/>'
    if isinstance(mark, Circle):
        return f'<circle {looks} cx="{mark.x:.1f}" cy="{mark.y:.1f}" r="{mark.radius:g}"/>'
    place = f'x="{mark.x:.1f}" y="{mark.y:.1f}" text-anchor="{mark.anchor}"'
    return f"<text {looks} {place}>{html.escape(mark.text)}</text>"


def _frame(drawing: Drawing) -> str:
    label = html.escape(drawing.told, quote=True)
    return f'viewBox="0 0 {drawing.width:.0f} {drawing.height:.0f}" role="img" aria-label="{label}"'


def _paint(pen: Any, mark: Mark, style: Style, scale: float) -> None:
    fill, stroke = (_rgba(name, style.opacity) for name in (style.fill, style.stroke))
    width = max(1, round(style.width * scale))
    if isinstance(mark, Text):
        from PIL import ImageFont

        font = ImageFont.load_default(style.size * scale)
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
        bold = round(0.035 * style.size * scale) if style.bold else 0
        pen.text((mark.x * scale, mark.y * scale), mark.text, fill, font, anchor, stroke_width=bold, stroke_fill=fill)
    elif isinstance(mark, Circle):
        box = [(at - mark.radius) * scale for at in (mark.x, mark.y)]
        box += [(at + mark.radius) * scale for at in (mark.x, mark.y)]
        pen.ellipse(box, fill, stroke, width if style.stroke else 0)
    else:
        points = [(x * scale, y * scale) for x, y in mark.points]
        if mark.closed:
            pen.polygon(points, fill)
        for piece in dashed(points, [n * scale for n in style.dash]):
            if stroke:
                pen.line(piece, stroke, width, joint="curve")


def dashed(points: Sequence[Point], dash: Sequence[float]) -> list[list[Point]]:
    """The pieces of a line that a dash pattern (lengths on, off, on, ...) leaves; without one the line itself."""
    if not dash:
        return [list(points)]
    pieces: list[list[Point]] = []
    piece: list[Point] = [points[0]] if points else []
    left, number = dash[0], 0
    for (x, y), (to_x, to_y) in pairwise(points):
        while (rest := ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5) > left:
            x, y = x + (to_x - x) * left / rest, y + (to_y - y) * left / rest
            if number % 2 == 0:
                pieces.append([*piece, (x, y)])
            number += 1
            left, piece = dash[number % len(dash)], [(x, y)]
        left -= rest
        piece.append((to_x, to_y))
    return [*pieces, piece] if number % 2 == 0 and len(piece) > 1 else pieces


def _rgba(name: str | None, opacity: float) -> tuple[int, int, int, int] | None:
    if name is None:
        return None
    value = LIGHT[name]
    red, green, blue = (int(value[n : n + 2], 16) for n in (1, 3, 5))
    return red, green, blue, round(255 * opacity)
