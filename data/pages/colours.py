"""The one table of colours, of pages, figures and the terminal: a channel has one everywhere.

On pages the colours of texts have a contrast of 4.5 to `ground` and `surface`, and each channel's to its own tint.
"""

from __future__ import annotations

LIGHT = {
    "ground": "#fafaf8",
    "surface": "#ffffff",
    "text": "#1c2024",
    "muted": "#59626c",
    "line": "#dfe1dd",
    "control": "#8a929b",
    "bar": "#6b7682",
    "focus": "#1f5fbf",
    "warning": "#8f4300",
    "warning-tint": "#fff3e4",
    "bad": "#a32a12",
    "bad-tint": "#ffe3db",
    "good": "#0a6b54",
    "found": "#ffe14d",
    "found-text": "#1c2024",
    "analysis": "#1f5fbf",
    "analysis-tint": "#dbe9ff",
    "commentary": "#9a4f00",
    "commentary-tint": "#ffe6c7",
    "final": "#0a6b54",
    "final-tint": "#d2f2e4",
    "fourth": "#7a3ea8",
}
DARK = LIGHT | {
    "ground": "#14171a",
    "surface": "#1a1e22",
    "text": "#e4e7ea",
    "muted": "#9ba5b0",
    "line": "#2d333a",
    "control": "#6f7984",
    "bar": "#76818d",
    "focus": "#8ab8ff",
    "warning": "#ffb45c",
    "warning-tint": "#2b2115",
    "bad": "#ff9b85",
    "bad-tint": "#45201a",
    "good": "#5fd6b4",
    "analysis": "#8ab8ff",
    "analysis-tint": "#16325c",
    "commentary": "#ffb45c",
    "commentary-tint": "#4a2c08",
    "final": "#5fd6b4",
    "final-tint": "#0d3d33",
    "fourth": "#cf9df5",
}
# A terminal does not report whether its background is dark: the hues of the pages at a lightness that is readable on
# either.
TERMINAL = {"analysis": "#2f7de1", "commentary": "#c2660a", "final": "#0a8f70"}
SERIES = ("analysis", "commentary", "final", "fourth")
"""Colours of the lines of a figure, in their order: a figure of channels gives each its own."""


def css() -> str:
    """The table as variables, dark where a screen asks for it; paper gets the light one."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    return f":root {{ {light} }}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
