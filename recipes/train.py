"""Train a model as a run file says.

examples:
  counterpoint train quickstart
  counterpoint train my.yaml lora.rank=8 train.learning_rate=1e-4
  counterpoint train my.yaml --resume
"""

from __future__ import annotations

import argparse
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from counterpoint.configs.errors import ConfigError

NEWEST = "newest"
_RECIPES = {name: f"counterpoint.recipes.{name}" for name in ("sft", "dpo", "grpo", "distill")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a run file, or a built-in name (`counterpoint configs ls`)")
    parser.add_argument("settings", nargs="*", metavar="section.key=value", help="settings that replace the run file's")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=NEWEST,
        metavar="RUN",
        help="go on with a run folder; without RUN the newest of this name",
    )
    parser.add_argument("--overwrite", action="store_true", help="use a run folder of other settings again")


def run(args: argparse.Namespace) -> int:
    """Dispatches on the run file's recipe to `run(settings, resume=..., overwrite=...) -> int` of its module.

    resume: None, `newest` (the newest run folder of this name), or a run folder.
    """
    from counterpoint.configs.load import load_run

    settings_given, resume = list(args.settings), args.resume
    if resume not in (None, NEWEST) and re.match(r"[\w.]+=", resume) and not Path(resume).exists():
        settings_given, resume = [*settings_given, resume], NEWEST
    settings: Any = load_run(args.config, settings_given)
    if settings.recipe not in _RECIPES:
        raise ConfigError(
            f"{args.config}: `recipe: {settings.recipe}` trains nothing: use one of {', '.join(_RECIPES)}"
        )
    if settings.recipe != "distill" and settings.launch.processes * settings.launch.nodes > 1:
        arguments = ["train", args.config, *settings_given, *(["--resume", resume] if resume else [])]
        _launch(settings, [*arguments, *(["--overwrite"] if args.overwrite else [])])
    return import_module(_RECIPES[settings.recipe]).run(settings, resume=resume, overwrite=args.overwrite)


def _launch(settings: Any, arguments: list[str]) -> None:
    """Becomes the launcher of the run's processes, unless this is one of them."""
    from counterpoint.recipes.launch import is_launched, launch_command, launch_environment
    from counterpoint.train.model.load import device_of

    if not is_launched():
        environment = launch_environment(settings.launch, device_of(settings.train.device).type)
        command = launch_command(settings.launch, arguments)
        os.execve(command[0], command, environment)
