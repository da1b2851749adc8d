"""Write a checkpoint as an adapter or as merged bf16 weights, loaded again and proven equal before it counts."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a run folder, a checkpoint in one, an adapter, or a model folder")
    parser.add_argument("--to", choices=("adapter", "bf16"), default="adapter", help="what to write (default adapter)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write, which must not be there yet")
    parser.add_argument("--limit", type=float, metavar="KL", help="largest KL to the live model, in nats, that passes")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to this Hugging Face repository afterwards")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from counterpoint.train.checkpoints.export import export, push
    from counterpoint.train.checkpoints.find import find_checkpoint

    done = export(find_checkpoint(args.checkpoint), args.to, Path(args.out), limit=args.limit)
    print(done.gate.line())
    for note in done.notes:
        print(f"note: {note}")
    print(f"{args.to:<8} {done.folder}")
    if args.push:
        print(f"pushed   {push(done.folder, args.push)}")
    return 0
