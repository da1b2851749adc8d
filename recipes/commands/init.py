"""Look at your data file and write a run file for it: held-out rows, evaluation prompts, settings that fit your GPU.

examples:
  counterpoint init support.jsonl --gpu-memory 80
  counterpoint init support.jsonl --gpu-memory 80 --gpus 8 --model 120b --out support.yaml
  counterpoint init pairs.jsonl --cpu

Two files are written: the run file, and prompts out of your own rows, which training then leaves out. What `plan` says
of the run file is printed. On a terminal it asks for what no flag says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from counterpoint.configs.errors import ConfigError
from counterpoint.recipes.commands.argument_types import count, positive
from counterpoint.recipes.commands.data_arguments import data_settings

Number = TypeVar("Number", int, float)

MODELS = {"tiny": "tiny", "20b": "openai/gpt-oss-20b", "120b": "openai/gpt-oss-120b"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE", help="data files or folders, and settings (data.key=value)"
    )
    parser.add_argument("--format", metavar="F", help="format of the rows, as of `validate` (auto)")
    parser.set_defaults(config=None)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--gpu-memory", type=positive, metavar="GIB", help="memory of one GPU: 24, 48, 80, 141, ...")
    where.add_argument("--cpu", action="store_true", help="no GPU: try the file on the embedded tiny model")
    parser.add_argument("--gpus", type=count, metavar="N", help="GPUs that share the work (1)")
    parser.add_argument("--model", choices=tuple(MODELS), help="gpt-oss-20b or 120b (20b); tiny on a CPU")
    parser.add_argument("--out", metavar="RUN.yaml", help="the run file (the data file's name, .yaml, here)")
    parser.add_argument("--force", action="store_true", help="write over files that are there")


def run(args: argparse.Namespace) -> int:
    from counterpoint.recipes.commands.places import check_data

    data = data_settings(args)
    check_data(data)
    out, prompts = _files(args, data.train[0].path)
    memory, gpus = _device(args)
    model = MODELS[args.model or ("tiny" if memory is None else "20b")]
    if (memory is None) != (model == "tiny"):
        fix = "leave --model out" if memory is None else "say --cpu"
        raise ConfigError(f"init: the tiny model is for a CPU, and 20b and 120b need a GPU: {fix}")

    from counterpoint.data.counts.lines import validation_lines
    from counterpoint.recipes.commands import plan
    from counterpoint.recipes.commands.init_look import look
    from counterpoint.recipes.commands.init_settings import Target, check_bad_rows, run_file

    found = look(data)
    print("\n".join(validation_lines(found.counter, found.seconds)))
    check_bad_rows(found, data)
    kept = found.write_prompts(prompts)
    text = run_file(found, data, Target(model, memory, gpus), out, prompts if kept else None)
    out.write_text(text, encoding="utf-8")
    print(f"\nwrote    {out}" + (f"\n         {prompts}: {kept} prompts of your own rows" if kept else ""))
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    on = [] if memory is None else ["--device", "cuda", "--memory", str(memory)]
    code = plan.run(parser.parse_args([str(out), *on]))
    print(f"next     counterpoint train {out}" if code == 0 else "next     change what `fits` says, then `plan` again")
    return code


def _files(args: argparse.Namespace, data: str) -> tuple[Path, Path]:
    """The run file and the file of prompts beside it; ConfigError where one is there."""
    name = Path(data.rpartition(":")[2].rstrip("/")).name.partition(".")[0]
    out = Path(args.out or f"{name or 'run'}.yaml")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"init: --out {out}: a run file ends in .yaml")
    prompts = out.with_suffix(".prompts.jsonl")
    for path in (out, prompts):
        if path.exists() and not args.force:
            raise ConfigError(f"init: {path} is there already: name another with --out, or write over it with --force")
    if not out.parent.is_dir():
        raise ConfigError(f"init: {out}: no folder {out.parent}: make it first")
    return out, prompts


def _device(args: argparse.Namespace) -> tuple[float | None, int]:
    """Memory of a GPU in GiB, None for a CPU, and how many: of the flags, else asked for on a terminal."""
    if args.cpu:
        if args.gpus is not None:
            raise ConfigError("init: --gpus goes with --gpu-memory: leave one of --cpu and --gpus out")
        return None, 1
    if args.gpu_memory is not None:
        return args.gpu_memory, args.gpus or 1
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError("init: on what will it train? Say --gpu-memory GIB (and --gpus N), or --cpu")
    memory = _asked("Memory of a GPU in GiB (24, 48, 80, ...; Enter for none, to try it on this CPU): ", positive)
    return memory, 1 if memory is None else args.gpus or _asked("How many GPUs (Enter for 1): ", count) or 1


def _asked(question: str, read: Callable[[str], Number]) -> Number | None:
    """The answer, None for an empty one; asked again where it cannot be read."""
    while True:
        try:
            text = input(question).strip()
            return read(text) if text else None
        except argparse.ArgumentTypeError as error:
            print(error)
        except EOFError:
            raise ConfigError("init: no answer: say --gpu-memory GIB (and --gpus N), or --cpu") from None
