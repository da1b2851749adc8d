"""List, copy and check run files; print the schema of their settings.

examples:
  counterpoint configs ls
  counterpoint configs cp quickstart my.yaml
  counterpoint configs validate my.yaml lora.rank=8
  counterpoint configs schema sft
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from counterpoint.configs.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ls | cp | validate | schema")
    commands.add_parser("ls", help="built-in run files, one a line, with what each is for")
    copy = commands.add_parser("cp", help="copy a built-in run file, to change it")
    copy.add_argument("name", metavar="NAME")
    copy.add_argument("to", metavar="DEST", help="a file or a folder; what is there already stays")
    check = commands.add_parser("validate", help="check run files without running them")
    check.add_argument("files", nargs="+", metavar="FILE", help="run files or built-in names, then section.key=value")
    check.add_argument("--print", action="store_true", dest="show", help="print every setting, defaults included")
    schema = commands.add_parser("schema", help="JSON schema of a recipe's settings, for editors and for reading")
    schema.add_argument("recipe", nargs="?", metavar="RECIPE")
    schema.add_argument("--write", action="store_true", help="write the schemas of all recipes into configs/schemas")


def run(args: argparse.Namespace) -> int:
    actions = {"ls": _ls, "cp": _cp, "validate": _validate, "schema": _schema}
    return actions[args.action](args)


def _ls(args: argparse.Namespace) -> int:
    from counterpoint.configs import builtin

    width = max(map(len, builtin.names()))
    for name in builtin.names():
        print(f"{name:<{width}}  {builtin.description(builtin.FOLDER / f'{name}.yaml')}")
    return 0


def _cp(args: argparse.Namespace) -> int:
    from counterpoint.configs import builtin
    from counterpoint.configs.load import find_run_file

    source, _ = find_run_file(args.name)
    target = Path(args.to)
    if target.is_dir():
        target = target / source.name
    if target.exists():
        raise ConfigError(f"{target}: it is there already: give another name")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: no folder {target.parent}: make it first")
    shutil.copyfile(source, target)
    hint = "" if not source.is_relative_to(builtin.FOLDER) else f": train it with `counterpoint train {target}`"
    print(f"wrote {target}{hint}")
    return 0


def _validate(args: argparse.Namespace) -> int:
    """Checks every file, and reports each bad one; 2 where there was one."""
    from counterpoint.configs.dump import to_yaml
    from counterpoint.configs.load import load_run
    from counterpoint.data.formats.registry import check_name

    settings = [text for text in args.files if re.match(r"[\w.-]+=", text) and not Path(text).exists()]
    files = [text for text in args.files if text not in settings]
    if not files:
        raise ConfigError("configs validate: name a run file before the settings")
    bad = 0
    for file in files:
        try:
            settings_of_run = load_run(file, settings, check_format=check_name)
        except ConfigError as error:
            bad += 1
            print(error, file=sys.stderr)
        else:
            print(to_yaml(settings_of_run) if args.show else f"{file}: recipe {settings_of_run.recipe}, in order")
    return ConfigError.exit_code if bad else 0


def _schema(args: argparse.Namespace) -> int:
    from counterpoint.configs import builtin
    from counterpoint.configs.schema import RECIPES, json_schema

    if args.recipe is not None and args.recipe not in RECIPES:
        raise ConfigError(f"configs schema: no recipe `{args.recipe}`: it must be one of {', '.join(RECIPES)}")
    if args.write:
        folder = builtin.FOLDER / "schemas"
        folder.mkdir(exist_ok=True)
        for recipe in RECIPES:
            (folder / f"{recipe}.json").write_text(schema_text(recipe), encoding="utf-8")
        print(f"wrote {len(RECIPES)} schemas into {folder}")
        return 0
    if args.recipe is None:
        raise ConfigError(f"configs schema: name a recipe, one of {', '.join(RECIPES)}")
    print(json.dumps(json_schema(args.recipe), indent=2, ensure_ascii=False))
    return 0


def schema_text(recipe: str) -> str:
    """The text of `configs/schemas/<recipe>.json`."""
    from counterpoint.configs.schema import json_schema

    return json.dumps(json_schema(recipe), indent=2, ensure_ascii=False) + "\n"
