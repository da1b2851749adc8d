"""Pages from templates: each is one HTML file that needs nothing else and may run nothing but what was written into it.

Templates are named by their place in the tree (`data/show/page.html`) and extend `data/pages/base.html`. What they
print is made visible (`counterpoint.data.pages.visible`) and escaped; a name that they do not get is an error.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from counterpoint.data.pages import colours
from counterpoint.data.pages.visible import visible, visible_line

if TYPE_CHECKING:
    from jinja2 import Environment

_LONGEST_LINE, _LONGEST_BLOCK = 400, 4_000


def render_page(template: str, *, figures: str = "", script: str = "", **values: Any) -> str:
    """The page of a template that gets `values`, of which `title` is one.

    figures: style rules of the page's drawings, added to the style sheet. script: the only one that may run.
    """
    style = f"{colours.css()}{text_file('data/pages/style.css')}{figures}"
    policy = [
        "default-src 'none'",
        f"script-src {_hash(script)}" if script else "",
        f"style-src {_hash(style)}",
        "img-src data:" if script else "",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    page = _environment().get_template(template)
    return page.render(style=style, script=script, policy="; ".join(filter(None, policy)), **values)


def text_file(name: str) -> str:
    """A file of the package by its place in the tree, as `data/show/page.js`."""
    folder, _, file = name.rpartition("/")
    place = resources.files(f"counterpoint.{folder.replace('/', '.')}")
    return place.joinpath(file).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    # Inside, so that only who writes a page waits for the import.
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FunctionLoader(text_file),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"line": _line, "block": _block, "number": _number}
    return environment


def _line(text: Any) -> str:
    """Any text on one line, nothing in it hidden."""
    return visible_line(str(text), _LONGEST_LINE)


def _block(text: Any) -> str:
    """Any text with its line breaks, nothing in it hidden."""
    return visible(str(text))[:_LONGEST_BLOCK]


def _number(value: int) -> str:
    """`1,234,567`."""
    return f"{value:,}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
