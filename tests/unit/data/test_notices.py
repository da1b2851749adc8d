"""Every word that rows are counted by has its meaning in the tables, and no other; the settings that they name exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from counterpoint.configs.schema import DpoRun, SftRun
from counterpoint.data.notices import NOTICES, REASONS

ROOT = Path(__file__).parents[3]
PLACE = {"Notice": 0, "notice": 0, "RowError": 0, "BadRow": 1, "json_of": 3}
"""What makes a notice or a reason -> at which place its kind is."""


def test_every_notice_has_a_meaning() -> None:
    assert sorted(kinds("Notice", "notice")) == sorted(NOTICES)


def test_every_reason_has_a_meaning() -> None:
    assert sorted(kinds("RowError", "BadRow", "json_of")) == sorted(REASONS)


def test_the_settings_that_are_named_exist() -> None:
    text = " ".join((*NOTICES.values(), *REASONS.values()))
    named = re.findall(r"`(data|dpo)\.(\w+)(?:: (\w+))?`", text)
    assert len(named) > 20
    for section, name, value in named:
        settings = (SftRun if section == "data" else DpoRun).model_fields[section].annotation
        assert settings is not None
        field = settings.model_fields[name]
        assert not value or value in str(field.annotation) or value in str(DpoRun.model_json_schema()), (name, value)


def kinds(*makers: str) -> set[str]:
    """The kinds that the code gives to these calls: literals, and what the variables that it gives may hold."""
    found: set[str] = set()
    for folder in ("data", "recipes", "train"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if any(f"{maker}(" in text for maker in makers):
                found |= set(_kinds_of(ast.parse(text), makers))
    return found


def _kinds_of(tree: ast.Module, makers: tuple[str, ...]) -> Iterator[str]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in makers and len(call.args) > PLACE[name]:
                yield from _texts(call.args[PLACE[name]], tree)


def _texts(value: ast.expr, tree: ast.Module | None = None) -> Iterator[str]:
    """The strings that an expression may be: itself, its branches, or what its name is given in the module."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from (*_texts(value.body), *_texts(value.orelse))
    elif isinstance(value, ast.Name) and tree is not None:
        for each in ast.walk(tree):
            if isinstance(each, ast.Assign) and any(getattr(name, "id", "") == value.id for name in each.targets):
                yield from _texts(each.value)
            elif isinstance(each, ast.arguments):
                given = each.args[len(each.args) - len(each.defaults) :]
                for name, default in zip(given, each.defaults, strict=True):
                    yield from _texts(default) if name.arg == value.id else ()
