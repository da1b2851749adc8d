"""The command `counterpoint`. Imports nothing but the standard library's argparse until a command is chosen.

A command is a module of `counterpoint.recipes` with `add_arguments(parser)` and `run(args) -> int`, and a line here.
Exit codes: 0, 1 (a data file, a model, a run), 2 (a setting or an argument), 128 + the number of the signal that ended
it (130 Ctrl-C, 143 SIGTERM), 141 (the reader of its output went away).
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from counterpoint.configs.errors import CounterpointError, RunError

COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "look at a data file, and write a run file for it"),
    "train": ("train", "train a model as a run file says"),
    "plan": ("plan", "before training: what trains, tokens, steps, memory, disk and time, and what to change"),
    "evaluate": ("evaluate", "sample a checkpoint, check every channel, compare with its base"),
    "sample": ("sample", "answer one prompt, channels coloured as they come, and check the answer"),
    "chat": ("chat", "talk to a checkpoint, channels shown as they come, with the tools of its run"),
    "serve": ("serve", "open an OpenAI-compatible endpoint of a checkpoint, for evaluation tools"),
    "compare": ("compare", "compare two evaluations item by item, with errors and the items that flipped"),
    "show": ("show", "print conversations with channels and trained tokens coloured"),
    "validate": ("validate", "list every bad row of data files, with what to do"),
    "prepare": ("prepare", "write the training examples of data files as tokens and weights"),
    "check": ("check", "check sampled completions strictly, one code a rule"),
    "conformance": ("conformance", "measure how faithfully frameworks write Harmony, this one and its peers"),
    "export": ("export", "write an adapter or merged weights, proven equal to what was trained"),
    "verify": ("verify", "ask a running server whether it serves what was trained, prompts id for id"),
    "doctor": ("doctor", "look over this machine: versions, devices, and the lean path against the reference"),
    "configs": ("configs", "list, copy and check run files; print their schema"),
}

LOADS = ("train", "evaluate", "sample", "chat", "serve", "export")
"""The commands that load torch and a model."""
ADDRESS_SPACE = 2 << 30
"""Bytes that the libraries of those map: the embedded model trained under 2.2 GB, and they crashed under 1.5 GB."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help`)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A user's mistake is one line on stderr, a bug shows its traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except CounterpointError as error:
        _fail(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        from counterpoint.train.run.progress import discard

        discard(sys.stdout)  # the reader of a pipe went away (`| head`)
        return 141
    except MemoryError:
        _fail(f"out of memory: {_FAULTS[errno.ENOMEM]}")
        return 1
    except OSError as error:
        if error.filename is None and (lost := _lost_output()) is not None:
            _fail(f"standard output: cannot be written ({lost}): send it somewhere else")
        elif error.errno in _FAULTS:
            place = f"{error.filename}: " if error.filename is not None else ""
            _fail(f"{place}{error.strerror}: {_FAULTS[error.errno]}")
        else:
            raise
        return 1


_FAULTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`)",
    errno.EROFS: "mount it for writing, or write somewhere else (`output`, `--out`)",
    errno.EACCES: "check its rights, and those of its folder",
    errno.EPERM: "check its rights, and those of its folder",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`)",
    errno.ENOMEM: "free some memory, or raise its limit (`ulimit -v`)",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount its file system again",
}
"""What to do about faults of the machine; any other error that comes here is ours."""


def _fail(text: str) -> None:
    from counterpoint.configs.redact import redact

    with suppress(OSError):  # the terminal may be gone
        print(" ".join(redact(text).split()), file=sys.stderr)


def _lost_output() -> str | None:
    """Why standard output cannot be written, where that is so; the error itself does not say where it is from."""
    from counterpoint.train.run.progress import discard

    try:
        print(flush=True)
    except OSError as error:
        discard(sys.stdout)
        return error.strerror
    return None


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"counterpoint {version('counterpoint')}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return _unknown(command)
    module: Any = import_module(f"counterpoint.recipes.commands.{COMMANDS[command][0]}")
    parser = _Parser(prog=f"counterpoint {command}", description=module.__doc__, formatter_class=_Format)
    module.add_arguments(parser)
    args = _parse(parser, arguments[1:])
    if command in LOADS:
        _check_address_space()
    return module.run(args)


def _check_address_space() -> None:
    """RunError where a limit leaves less than the libraries need: they end the process then, without a word."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < ADDRESS_SPACE:
        raise RunError(
            f"memory of this process is limited to {limit / 1e9:.1f} GB (`ulimit -v`), less than the libraries alone "
            f"need ({ADDRESS_SPACE / 1e9:.1f} GB): raise the limit, or limit resident memory by a cgroup"
        )


class _Format(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _parse(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    # Options may come between settings (`a.yaml lora.rank=8 --overwrite train.steps=3`). argparse refuses that for a
    # parser with a remainder, and has no public list of what a parser takes.
    if any(action.nargs in (argparse.PARSER, argparse.REMAINDER) for action in parser._actions):
        return parser.parse_args(arguments)
    return parser.parse_intermixed_args(arguments)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "Fine-tuning and post-training for gpt-oss, exact on every Harmony channel.",
            "",
            "usage: counterpoint COMMAND ...    (counterpoint COMMAND --help, counterpoint --version)",
            "",
            *lines,
            "",
            "A first run:  counterpoint train quickstart",
        ]
    )


def _unknown(command: str) -> int:
    import difflib

    close = difflib.get_close_matches(command, COMMANDS, n=1)
    hint = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(COMMANDS)}"
    print(f"counterpoint: no command `{command}`; {hint}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
