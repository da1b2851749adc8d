"""The pages of the reference, made from the tables and docstrings of the code: settings by recipe, commands, run files,
the folder of a run, metrics, notices and bad rows, codes of the checker, the Python API.

    python docs/_site/reference_pages.py    # prints the page names, and writes nothing: `make docs` builds the site
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from pydantic import BaseModel

import counterpoint
from counterpoint.configs import builtin
from counterpoint.configs.schema import RECIPES, json_schema
from counterpoint.data.harmony.codes import Code
from counterpoint.data.notices import NOTICES, REASONS
from counterpoint.recipes.cli import COMMANDS
from counterpoint.train.run import contents

Schema = Mapping[str, Any]


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown."""
    made = {f"reference/settings-{recipe}.md": settings_page(recipe) for recipe in RECIPES}
    made["reference/commands.md"] = commands_page()
    made["reference/run-files.md"] = run_files_page()
    made["reference/run-folder.md"] = run_folder_page()
    made["reference/metrics.md"] = metrics_page()
    made["reference/notices.md"] = notices_page()
    made["reference/codes.md"] = codes_page()
    made["reference/api.md"] = api_page()
    return made


def settings_page(recipe: str) -> str:
    """Every setting of a recipe: name, type with its range, default, meaning."""
    schema = json_schema(recipe)
    lines = [f"# Settings of `recipe: {recipe}`", ""]
    lines += [_prose(schema.get("description", "")), "", "Write them in a run file, or behind it: `lora.rank=8`.", ""]
    top, sections = [], []
    for name, each in schema["properties"].items():
        (sections if _section(each, schema) else top).append((name, each))
    lines += ["## The run", "", *_table((leaf for each in top for leaf in _leaves(*each, schema)), schema)]
    for name, each in sections:
        lines += ["", f"## {name}", ""]
        if told := _prose(each.get("description") or _resolved(each, schema).get("description", "")):
            lines += [told, ""]
        lines += _table(_leaves(name, each, schema), schema)
    return "\n".join(lines) + "\n"


def settings_of(recipe: str) -> list[str]:
    """The names of all settings of a recipe, as they are written on a command line; kinds of a section in brackets."""
    schema = json_schema(recipe)
    return [path for name, each in schema["properties"].items() for path, _ in _leaves(name, each, schema)]


def _leaves(path: str, each: Schema, schema: Schema, above: tuple[str, ...] = ()) -> Iterator[tuple[str, Schema]]:
    refs = [ref for ref in _refs(each) if ref not in above]
    if not refs:
        yield path, each
        return
    if len(refs) > 1 or not _section(each, schema):
        yield path, each
    for ref in refs:
        section = schema["$defs"][ref]
        kind = section.get("properties", {}).get("type", {}).get("const")
        prefix = f"{path}[{kind}]" if kind is not None and len(refs) > 1 else path
        for name, inner in section.get("properties", {}).items():
            if "const" not in inner:
                own = each.get("default")  # of the whole section, where this recipe has other ones than its class
                inner = {**inner, "default": own[name]} if isinstance(own, dict) and name in own else inner
                yield from _leaves(f"{prefix}.{name}", inner, schema, (*above, ref))


def _refs(each: Schema) -> list[str]:
    """The classes of settings that a value may be, or hold."""
    found: list[str] = []
    for key in ("anyOf", "oneOf", "allOf"):
        found += [ref for option in each.get(key, ()) for ref in _refs(option)]
    for key in ("items", "additionalProperties"):
        if isinstance(each.get(key), dict):
            found += _refs(each[key])
    if "$ref" in each:
        found.append(each["$ref"].rpartition("/")[2])
    return list(dict.fromkeys(found))


def _section(each: Schema, schema: Schema) -> bool:
    """Whether a value is a section and nothing else."""
    return "$ref" in each and "properties" in _resolved(each, schema)


def _resolved(each: Schema, schema: Schema) -> Schema:
    return schema["$defs"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each


def _table(rows: Iterator[tuple[str, Schema]], schema: Schema) -> list[str]:
    lines = ["| setting | type | default | meaning |", "|---|---|---|---|"]
    for path, each in rows:
        default = f"`{_shown(each['default'])}`" if "default" in each else "" if path == "extends" else "required"
        lines.append(f"| `{path}` | {_type(each, schema)} | {default} | {_cell(each.get('description', ''))} |")
    return lines


def _type(each: Schema, schema: Schema) -> str:
    if "enum" in each:
        return " or ".join(f"`{_shown(value)}`" for value in each["enum"])
    if "const" in each:
        return f"`{_shown(each['const'])}`"
    for key in ("anyOf", "oneOf"):
        if key in each:
            return ", or ".join(dict.fromkeys(_type(option, schema) for option in each[key]))
    if "$ref" in each:
        target = _resolved(each, schema)
        return _type(target, schema) if "properties" not in target else "a section"
    if each.get("type") == "array":
        items = each.get("items")
        return f"list of {_type(items, schema)}" if isinstance(items, dict) and items else "list"
    if each.get("type") == "object":
        values = each.get("additionalProperties")
        return f"names to {_type(values, schema)}" if isinstance(values, dict) and values else "a mapping"
    words = {"integer": "whole number", "string": "text", "boolean": "true or false"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = ", ".join(f"{sign} {each[key]}" for key, sign in bounds.items() if key in each)
    kind = str(each.get("type", "any"))
    return f"{words.get(kind, kind)} {limits}".rstrip()


def commands_page() -> str:
    """Every command with its help, as the terminal prints it."""
    lines = ["# Commands", ""]
    for name, (module, purpose) in COMMANDS.items():
        parser = argparse.ArgumentParser(
            prog=f"counterpoint {name}",
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=100),
        )
        loaded = import_module(f"counterpoint.recipes.commands.{module}")
        parser.description = loaded.__doc__
        loaded.add_arguments(parser)
        lines += [f"## counterpoint {name}", "", purpose[0].upper() + purpose[1:] + ".", ""]
        lines += ["```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


def codes_page() -> str:
    """Every rule of the strict checker, by group."""
    lines = ["# Codes of the checker", "", "What `counterpoint check`, `validate` and the evaluation name.", ""]
    for group in dict.fromkeys(code.group for code in Code):
        lines += [f"## {group}", "", "| code | what breaks it |", "|---|---|"]
        lines += [f"| `{code.value}` | {_cell(code.meaning)} |" for code in Code if code.group == group] + [""]
    return "\n".join(lines)


def run_files_page() -> str:
    """Every shipped run file: a table of what each is for, and its text."""
    lines = ["# Run files", "", "`counterpoint configs cp NAME my.yaml` copies one; `train NAME` runs it as it is.", ""]
    lines += ["| run file | what it is for |", "|---|---|"]
    for name in builtin.names():
        path = builtin.find(name)
        assert path is not None
        lines.append(f"| [{name}](#{name.replace('/', '')}) | {_cell(builtin.description(path))} |")
    lines.append("")
    for name in builtin.names():
        path = builtin.find(name)
        assert path is not None
        lines += [f"## {name}", "", "```yaml", path.read_text(encoding="utf-8").rstrip(), "```", ""]
    return "\n".join(lines)


def run_folder_page() -> str:
    """Every file of a run folder."""
    intro = "Written by `counterpoint train`, below `output` (`runs/`). No secret is in any of these files."
    return _words_page("The folder of a run", intro, {"": ("path", contents.FILES)})


def metrics_page() -> str:
    """Every number that a run writes."""
    tables = {
        "metrics.jsonl": ("number", contents.METRICS),
        "eval/metrics.jsonl": ("number", contents.EVALUATION_METRICS),
        "adapter.jsonl": ("number", contents.ROUTING_METRICS),
    }
    return _words_page("Metrics", (inspect.getdoc(contents) or "").partition("\n\n")[2], tables)


def notices_page() -> str:
    """Every kind of notice, and every reason for which a row is bad."""
    intro = (
        "`validate` and `prepare` count them, and tell the first of each kind with its line. A notice is a change or a "
        "guess, and the row is used; a bad row is not used, and `--quarantine FILE` keeps it with its reason."
    )
    rows = {"Notices": ("notice", NOTICES), "Reasons of bad rows": ("reason", REASONS)}
    page = _words_page("Notices and bad rows", intro, rows)
    return page + "\nA row is bad too where a trained action breaks a rule of the checker: [codes](codes.md).\n"


def _words_page(title: str, intro: str, tables: Mapping[str, tuple[str, Mapping[str, str]]]) -> str:
    lines = [f"# {title}", "", intro, ""]
    for heading, (word, rows) in tables.items():
        lines += [f"## {heading}", ""] if heading else []
        lines += [f"| {word} | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {_cell(meaning)} |" for name, meaning in rows.items()] + [""]
    return "\n".join(lines)


def api_page() -> str:
    """Every public name with signature and docstring."""
    lines = ["# Python API", "", _prose(inspect.getdoc(counterpoint) or "").partition("\n")[0], ""]
    for name in sorted(counterpoint.__all__):
        value = getattr(counterpoint, name)
        if isinstance(value, str):
            continue
        lines += [f"## {name}", ""]
        if inspect.isclass(value) and issubclass(value, BaseModel):
            lines += [_doc(value), "", *(f"- `{text}`" for text in _fields(value)), ""]
            continue
        lines += ["```python", _signature(name, value), "```", "", _doc(value), ""]
        for member, method in _methods(value):
            lines += [f"### {name}.{member}", "", "```python", _signature(member, method), "```", "", _doc(method), ""]
    return "\n".join(lines)


def _fields(settings: type[BaseModel]) -> Iterator[str]:
    for name, field in settings.model_fields.items():
        yield f"{name}={field.get_default(call_default_factory=True)!r}" if not field.is_required() else name


def _methods(value: object) -> Iterator[tuple[str, object]]:
    if not inspect.isclass(value):
        return
    for name, member in vars(value).items():
        own = inspect.isfunction(member) or isinstance(member, classmethod)
        if own and not name.startswith("_") and inspect.getdoc(getattr(value, name)):
            yield name, getattr(value, name)


def _signature(name: str, value: Any) -> str:
    text = f"{name}{inspect.signature(value)}"
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", re.sub(r"counterpoint\.[\w.]+\.(\w+)", r"\1", text))
    return text if len(text) <= 80 else re.sub(r"(?<=[(,]) ?(?=\w+:|\*)", "\n    ", text)


def _doc(value: object) -> str:
    """A docstring, its fields (`effort, date: ...` at the start of a line or a sentence) as a list."""
    paragraphs = []
    for text in re.split(r"\n\s*\n", inspect.getdoc(value) or ""):
        if text.startswith("    "):
            paragraphs.append(text)
            continue
        fields = re.split(r"(?:^|\n|(?<=[.;] ))(?=[a-z_]+(?:, [a-z_]+)*: )", " ".join(text.split()))
        listed = [re.sub(r"^([a-z_, ]+): ", r"- `\1`: ", field.strip()) for field in fields if field.strip()]
        paragraphs.append("\n".join(listed))
        paragraphs[-1] = re.sub(r"(?m)^(?!- )(.+)\n(?=- )", r"\1\n\n", paragraphs[-1])
    return "\n\n".join(paragraphs)


def _prose(text: str) -> str:
    return text.strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "{...}" if isinstance(value, dict) and value else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value or '""'


if __name__ == "__main__":
    for path, text in pages().items():
        print(f"{path}: {len(text.splitlines())} lines")
