"""Settings that name code: all of them are known, and what has to be named again survives the command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from counterpoint.configs.load import load_run
from counterpoint.configs.schema import RECIPES, json_schema
from counterpoint.configs.user_code import COMMANDS, FUNCTIONS, code_in, resume_command


def settings(node: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting of a JSON schema, by its name."""
    if isinstance(node, dict):
        for name, inner in node.get("properties", {}).items():
            yield name, inner
        for inner in node.values():
            yield from settings(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from settings(inner)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_setting_that_names_code_is_known(recipe: str) -> None:
    for name, setting in settings(json_schema(recipe)):
        told = setting.get("description", "")
        if ":function`" in told or "Commands that start" in told:
            assert name in FUNCTIONS + COMMANDS, f"{recipe}: {name}"


@pytest.mark.parametrize(
    "code", ["a.py:f", "my file.py:f", 'python server.py --x "a: b"', "python 'x' {1}", "sh -c 'echo: $A'"]
)
def test_what_is_named_again_is_what_was_named(code: str) -> None:
    given = ["rewards=[{type: answer}]", "data.train={type: arithmetic}", "recipe=grpo", "train.batch_rows=8"]
    run = load_run(None, given, {"tools": {"mcp": [code]}})
    assert code_in(run) == {("tools", "mcp", 0): code}
    *_, added = shlex.split(resume_command("runs/a b", run))
    assert load_run(None, [*given, "tools.mcp=[x]", added]) == run


def test_functions_of_the_package_are_no_foreign_code() -> None:
    run = load_run("grpo/tiny_calculator")
    assert code_in(run) == {}
    assert resume_command("runs/x", run) == "counterpoint train --resume runs/x"
