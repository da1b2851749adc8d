"""Settings that name code to run: functions of the user's own, and commands that start MCP servers.

Code is run where the command line names it, or a run file given there; a run folder may only repeat it. Its rows,
prompts and checkpoints never name any.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.problems import dotted, place_of, shown
from counterpoint.configs.schema import RunSettings
from counterpoint.configs.yaml_file import COMMAND_LINE, Document, Key, read_text

FUNCTIONS = ("class", "format", "function", "functions", "scorer")
"""Settings whose value is a function where it holds a colon (`module:function`, `file.py:function`)."""
COMMANDS = ("mcp",)
SHIPPED = (
    "counterpoint.train.episodes.example_environments:",
    "counterpoint.train.episodes.example_tools:",
    "counterpoint.train.evals.retention_probes:",
)
"""The beginnings of functions that are part of the package and made to be named in rows and run files."""


def is_foreign(function: str) -> bool:
    """Whether the value of a setting of `FUNCTIONS`, or of a row's `scorer`, is code that is not part of the
    package."""
    return ":" in function and not function.startswith(SHIPPED)


def code_in(run: RunSettings) -> dict[Key, str]:
    """The settings of a run that name code which is not part of the package, by their path."""
    return dict(_code(run, ()))


def refuse_foreign_code(run: RunSettings, document: Document, where: str) -> None:
    """ConfigError where the file `where`, and not the command line, names code; it says what to add there."""
    found = {path: code for path, code in code_in(run).items() if place_of(path, document, where) != COMMAND_LINE}
    if found:
        path, code = next(iter(found.items()))
        raise ConfigError(
            f"{where}: `{dotted(path)}` names code to run ({shown(code)}), which a run folder may not do by itself: "
            f"give your run file as CONFIG, or add {_added(found)}"
        )


def resume_command(run_folder: str, run: RunSettings) -> str:
    """The command that continues a run, with the code that has to be named again."""
    added = _added(code_in(run))
    return f"counterpoint train --resume {shlex.quote(run_folder)}" + (f" {added}" if added else "")


def _code(value: Any, path: Key) -> Iterator[tuple[Key, str]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _code(getattr(value, name), (*path, name))
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _code(item, (*path, number))
    elif isinstance(value, str):
        name = next((part for part in reversed(path) if isinstance(part, str)), "")
        if name in COMMANDS or (name in FUNCTIONS and is_foreign(value)):
            yield path, value


def _added(code: dict[Key, str]) -> str:
    return " ".join(shlex.quote(f"{dotted(path)}={_written(value)}") for path, value in code.items())


def _written(value: str) -> str:
    """A value as the command line takes it, in quotes where YAML would read something else."""
    try:
        same = read_text(value, COMMAND_LINE).value == value
    except ConfigError:
        same = False
    return value if same else json.dumps(value)
