"""Arguments of commands that read data files: the files, their format, and settings of the section `data`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from counterpoint.configs.errors import ConfigError
from counterpoint.data.formats.registry import CHOICES, check_format

if TYPE_CHECKING:
    from counterpoint.configs.schema import DataSettings

_SETTING = re.compile(r"[\w-]+(\.[\w-]+)*=")


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="FILE",
        help="data files, folders, or example:NAME; and settings as data.key=value (data.train_on=final)",
    )
    parser.add_argument("--format", metavar="F", help=f"format of the rows: {CHOICES} (auto)")
    parser.add_argument(
        "--config",
        metavar="RUN.yaml",
        help="a run file for the settings of `data`, and for the files where none is given",
    )


def data_settings(args: argparse.Namespace) -> DataSettings:
    """The section `data` of the run file, the command line's files and settings laid over it. Raises ConfigError."""
    from counterpoint.configs.load import load_run

    settings = [text for text in args.inputs if _SETTING.match(text) and not Path(text).exists()]
    files = [text for text in args.inputs if text not in settings]
    if not files and args.config is None:
        raise ConfigError("no data file: name one, or a run file with --config")
    values: dict[str, Any] = {} if args.config else {"recipe": "sft"}
    if files:
        values["data"] = {"train": [{"path": path, "format": args.format or "auto"} for path in files]}
    data = getattr(load_run(args.config, settings, values, check_format), "data", None)
    if data is None:
        raise ConfigError(f"{args.config}: its recipe has no section `data`: name a run file of recipe sft")
    if args.format and not files:
        try:
            check_format(args.format)
        except ConfigError as error:
            raise ConfigError(f"--format {args.format}: {error}") from None
        sources = tuple(source.model_copy(update={"format": args.format}) for source in data.train)
        return data.model_copy(update={"train": sources})
    return data
