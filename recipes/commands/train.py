"""Train a model as a run file says.

examples:
  counterpoint train quickstart
  counterpoint train my.yaml lora.rank=8 train.learning_rate=1e-4
  counterpoint train my.yaml --resume
  counterpoint train my.yaml --resume auto
  counterpoint train --resume runs/my-20260101-120000
"""

from __future__ import annotations

import argparse
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError
from counterpoint.recipes.commands.allocator import grow_segments

NEWEST, AUTO = "newest", "auto"
_RECIPES = {name: f"counterpoint.recipes.{name}" for name in ("sft", "dpo", "grpo", "distill")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "config",
        nargs="?",
        metavar="CONFIG",
        help="a run file, or a built-in name (`counterpoint configs ls`); with --resume RUN, RUN's own where left out",
    )
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that replace the run file's")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="RUN",
        help="resume a run folder; without RUN the newest of this name; `auto`: that, or a new run where there is none",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="start anew in the newest run folder of this name; with --resume, continue with other settings",
    )


def run(args: argparse.Namespace) -> int:
    """Dispatches on the run file's recipe to `run(settings, resume=..., overwrite=...) -> int` of its module.

    resume: None, `newest` (the newest run folder of this name), `auto` (that, or none), or a run folder.
    """
    from counterpoint.configs.load import load_run
    from counterpoint.data.formats.registry import check_format
    from counterpoint.recipes.commands.launch import signals_to_handle
    from counterpoint.recipes.commands.places import check_places
    from counterpoint.recipes.commands.train_servers import needs_servers, train_with_servers

    config, settings_given, resume = args.config, list(args.settings), args.resume
    of_run_folder = False
    if resume not in (None, NEWEST, AUTO) and _is_setting(resume):
        settings_given, resume = [*settings_given, resume], NEWEST
    grow_segments()
    if resume not in (None, NEWEST, AUTO) and (config is None or _is_setting(config)):
        settings_given = [*([config] if config else []), *settings_given]
        config, of_run_folder = str(_config_of_run(Path(resume))), True
    if config is None:
        raise ConfigError(
            "counterpoint train: the following arguments are required: CONFIG (`counterpoint train --help`)"
        )
    settings: Any = load_run(config, settings_given, check_format=check_format, of_run_folder=of_run_folder)
    if settings.recipe not in _RECIPES:
        raise ConfigError(f"{config}: `recipe: {settings.recipe}` trains nothing: use one of {', '.join(_RECIPES)}")
    check_places(settings)
    if settings.recipe != "distill":
        arguments = ["train", config, *settings_given, *(["--resume", resume] if resume else [])]
        arguments += ["--overwrite"] if args.overwrite else []
        if needs_servers(settings):
            return train_with_servers(settings, arguments, os.environ, signals_to_handle())
        _launch(settings, arguments)
    return import_module(_RECIPES[settings.recipe]).run(settings, resume=resume, overwrite=args.overwrite)


def _is_setting(argument: str) -> bool:
    return re.match(r"[\w.]+=", argument) is not None and not Path(argument).exists()


def _config_of_run(resume: Path) -> Path:
    """The resolved run file of a run folder, or of the run folder that holds a checkpoint."""
    for folder in (resume, *resume.parents[:2]):
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise ConfigError(f"{resume}: no config.yaml there: name a run folder, or give the run file as CONFIG")


def _launch(settings: Any, arguments: list[str]) -> None:
    """Becomes the launcher of a run of several processes, unless this is one of them."""
    from counterpoint.recipes.commands.launch import (
        check_launched,
        is_launched,
        launch_command,
        launch_environment,
        signals_to_handle,
    )

    if is_launched():
        check_launched(settings.launch)
    elif settings.launch.processes * settings.launch.nodes > 1:
        from counterpoint.train.model.load import device_of

        environment = launch_environment(settings.launch, device_of(settings.train.device).type)
        command = launch_command(settings.launch, arguments, signals=signals_to_handle())
        os.execve(command[0], command, environment)
