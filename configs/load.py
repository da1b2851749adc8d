"""A run file, the files that it extends, and the command line's settings -> one checked, frozen run.

Every mistake is a ConfigError of one line, raised before anything is loaded.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from counterpoint.configs import builtin
from counterpoint.configs.errors import ConfigError
from counterpoint.configs.problems import dotted, explain, place_of, shown
from counterpoint.configs.redact import looks_secret
from counterpoint.configs.schema import RECIPES, Run
from counterpoint.configs.user_code import refuse_foreign_code
from counterpoint.configs.yaml_file import COMMAND_LINE, Document, Key, read_file, read_text

RECORDED = "config.yaml"
"""Every setting of a run, in its folder next to `run.json`."""


def load_run(
    source: str | Path | None,
    overrides: Iterable[str] = (),
    values: Mapping[str, Any] | None = None,
    check_format: Callable[[str], None] | None = None,
    of_run_folder: bool = False,
) -> Run:
    """Settings of a run.

    source: a file, or the name of a built-in run file (`quickstart`); None for a run that `values` describe alone.
    overrides: `section.key=value`, values in YAML. values: settings that a command takes from its own arguments, laid
    over the file's. check_format: raises ConfigError for the name of a format that cannot be used; None takes any text.
    of_run_folder: the user named a run folder, and `source` is the file in it; ConfigError for code that it names.
    `name` is set to the file's name where the run does not set it.
    """
    if source is None:
        document, where, name = Document({}), COMMAND_LINE, None
    else:
        path, where = find_run_file(source)
        document, name = read_with_extends(path, where), path.stem
        if path.name == RECORDED and (path.parent / "run.json").is_file():
            _keep_first_form(document)
            _drop_retired(document)
    if values:
        document = _merged(document, Document(dict(values), _places(values, ())))
    for override in overrides:
        document = _overridden(document, override)
    if of_run_folder:
        refuse_foreign_code(check_run(document, where, name=name), document, where)
    return check_run(document, where, name=name, check_format=check_format)


def _keep_first_form(document: Document) -> None:
    """A run of version 0.1 recorded no form of serving: what it rendered stays as it was."""
    data = document.value.get("data")
    if isinstance(data, dict) and "serving" not in data:
        data["serving"] = "counterpoint_0_1"


_RETIRED = {
    "dpo": "data.pack_tokens data.tree model.loss train.on_loss_spike train.spike_factor",
    "grpo": "model.loss train.on_loss_spike train.spike_factor grpo.share_prompts",
    "distill": (
        "model.loss tracking data.valid data.max_tokens data.too_long data.pack_tokens data.tree data.shuffle "
        "data.bad_rows_limit data.effort_buckets data.missing_thinking data.train_on data.weights data.call_style"
    ),
}
"""Settings that recorded runs have and that changed no number in them."""


def _drop_retired(document: Document) -> None:
    for name in _RETIRED.get(str(document.value.get("recipe")), "").split():
        section, _, key = name.partition(".")
        inside = document.value if not key else document.value.get(section)
        if isinstance(inside, dict):
            inside.pop(key or section, None)


def _places(value: Any, path: Key) -> dict[Key, str]:
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    places = {path: COMMAND_LINE} if path else {}
    for key, item in inner:
        places |= _places(item, (*path, key))
    return places


def check_run(
    document: Document, where: str, name: str | None = None, check_format: Callable[[str], None] | None = None
) -> Run:
    """Settings of a complete document; `where` names it in messages."""
    run = _recipe_of(document, where)
    value = dict(document.value)
    _open_sections(value, run)
    _refuse_secrets(value, (), document, where)
    if value.get("name") is None and name is not None:
        value["name"] = "".join(filter(str.isprintable, name)).lstrip(".").replace("\\", "_") or "run"
    try:
        return run.model_validate(value, context=check_format and {"check_format": check_format})
    except ValidationError as error:
        raise ConfigError(explain(error, Document(value, document.places), run, where)) from None


def find_run_file(source: str | Path) -> tuple[Path, str]:
    """The file of a path or built-in name, and what to call it in messages."""
    path = Path(source)
    if path.is_file():
        return path, str(source)
    if found := builtin.find(str(source)):
        return found, found.relative_to(builtin.FOLDER).as_posix()
    if path.is_dir():
        raise ConfigError(f"{source}: a folder, not a run file: give the YAML file in it")
    close = difflib.get_close_matches(str(source), builtin.names(), n=1)
    hint = f"did you mean the built-in `{close[0]}`?" if close else "`counterpoint configs ls` lists those built in"
    raise ConfigError(f"{source}: no such run file; {hint}")


def read_with_extends(path: Path, where: str, seen: tuple[Path, ...] = ()) -> Document:
    """A run file laid over the one that it extends: sections are merged key by key, lists and values replaced."""
    if path.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{where}: `extends` goes in a circle: {chain}")
    document = read_file(path, where)
    if "extends" not in document.value:
        return document
    place = document.places[("extends",)]
    base = document.value.pop("extends")
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{place}: `extends` must be the name of one run file")
    neighbour = path.parent / base
    built_in = builtin.find(base)
    if neighbour.is_file():
        found, name = neighbour, str(neighbour)
    elif built_in is not None:
        found, name = built_in, built_in.relative_to(builtin.FOLDER).as_posix()
    else:
        raise ConfigError(
            f"{place}: `extends` is {shown(base)}: no such file in {path.parent}, and no built-in of that name"
        )
    return _merged(read_with_extends(found, name, (*seen, path.resolve())), document)


def _merged(base: Document, over: Document) -> Document:
    lists = {path for path in over.places if path and isinstance(path[-1], int)}
    replaced = {path[:-1] for path in lists}
    places = {p: place for p, place in base.places.items() if not any(p[: len(r)] == r for r in replaced)}
    return Document(_merged_value(base.value, over.value), places | over.places)


def _merged_value(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return base if isinstance(base, dict) and over is None else over
    return base | {key: _merged_value(base[key], value) if key in base else value for key, value in over.items()}


def _overridden(document: Document, override: str) -> Document:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(f"{COMMAND_LINE}: {shown(override)}: write `section.key=value`, for example `lora.rank=8`")
    if key == "extends":
        raise ConfigError(f"{COMMAND_LINE}: `extends` is allowed in run files only: write one that extends it")
    try:
        given = read_text(text, COMMAND_LINE)
    except ConfigError:
        raise ConfigError(f"{COMMAND_LINE}: the value of `{key}` is not valid YAML: put it in quotes") from None
    path: Key = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    value = _set(document.value, path, given.value, key)
    places = {p: place for p, place in document.places.items() if p[: len(path)] != path}
    opened = {path[:n]: COMMAND_LINE for n in range(1, len(path)) if path[:n] not in places}
    return Document(value, places | opened | {path: COMMAND_LINE})


def _set(value: Any, path: Key, new: Any, name: str) -> Any:
    """A copy of `value` with `new` at `path`."""
    if not path:
        return new
    head, *rest = path
    if isinstance(value, list):
        if not isinstance(head, int) or head >= len(value):
            raise ConfigError(f"{COMMAND_LINE}: `{name}`: it leads into a list of {len(value)}: count entries from 0")
        return [_set(item, tuple(rest), new, name) if n == head else item for n, item in enumerate(value)]
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{COMMAND_LINE}: `{name}`: it leads into a single value: name the setting above it")
    head = str(head)
    inner = (value or {}).get(head)
    return {**(value or {}), head: _set(inner, tuple(rest), new, name)}


def _recipe_of(document: Document, where: str) -> type[Run]:
    recipe = document.value.get("recipe")
    known = ", ".join(RECIPES)
    if recipe is None:
        raise ConfigError(f"{where}: `recipe` is missing: begin the file with `recipe: sft` (known: {known})")
    if isinstance(recipe, str) and recipe in RECIPES:
        return RECIPES[recipe]
    close = difflib.get_close_matches(str(recipe), RECIPES, n=1)
    hint = f"; did you mean `{close[0]}`?" if close else ""
    place = place_of(("recipe",), document, where)
    raise ConfigError(f"{place}: `recipe` is {shown(recipe)}: it must be one of {known}{hint}")


def _open_sections(value: dict[str, Any], model: type[BaseModel]) -> None:
    """An empty section (`lora:` with nothing under it) is one without settings, and so is a required one left out."""
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            if value.get(name) is None and (name in value or info.is_required()):
                value[name] = {}
            if isinstance(value.get(name), dict):
                value[name] = dict(value[name])
                _open_sections(value[name], info.annotation)


def _refuse_secrets(value: Any, path: Key, document: Document, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_secrets(inner, (*path, key), document, where)
    elif isinstance(value, list):
        for n, inner in enumerate(value):
            _refuse_secrets(inner, (*path, n), document, where)
    elif isinstance(value, str) and looks_secret(value, key=str(path[-1])):
        raise ConfigError(
            f"{place_of(path, document, where)}: `{dotted(path)}` looks like a secret: "
            "keep it out of run files, in the environment (HF_TOKEN, WANDB_API_KEY)"
        )
