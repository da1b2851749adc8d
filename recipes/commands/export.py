"""Write a checkpoint as an adapter, as merged weights, or for llama.cpp; loaded again and compared before it counts.

counterpoint export runs/mine-20260101-120000 --out mine-adapter
counterpoint export runs/mine-20260101-120000 --to bf16 --out mine-merged --push me/mine
counterpoint export runs/mine-20260101-120000 --to gguf --converter llama.cpp --out mine-gguf

`adapter` is the default: it is used with an MXFP4 base without loss. `mxfp4` rounds the merged experts and says how
much of the adapter is left."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a run folder, a checkpoint in one, an adapter, or a model folder")
    targets = ("adapter", "bf16", "mxfp4", "gguf")
    parser.add_argument("--to", choices=targets, default="adapter", help="what to write (default adapter)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write, which must not be there yet")
    parser.add_argument("--limit", type=float, metavar="KL", help="largest KL to the live model, in nats, that passes")
    parser.add_argument("--converter", metavar="PATH", help="llama.cpp, or its convert_hf_to_gguf.py (for --to gguf)")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to this Hugging Face repository afterwards")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from counterpoint.train.checkpoints.find import find_checkpoint
    from counterpoint.train.export.exporter import export, push

    done = export(find_checkpoint(args.checkpoint), args.to, Path(args.out), limit=args.limit, converter=args.converter)
    print(done.gate.line())
    for note in done.notes:
        print(f"note: {note}")
    print(f"{args.to:<8} {done.folder}")
    if done.launch:
        print(f"serve    {done.launch}")
        print(f"verify   counterpoint verify http://localhost:8000 --checkpoint {done.folder}")
    if args.push:
        print(f"pushed   {push(done.folder, args.push)}")
    return 0
