"""Write a checkpoint as an adapter, as merged weights, or for llama.cpp; loaded again and compared before it counts.

counterpoint export runs/mine-20260101-120000 --out mine-adapter
counterpoint export runs/mine-20260101-120000 --to bf16 --out mine-merged --push me/mine
counterpoint export runs/mine-20260101-120000 --to mxfp4 --out mine-mxfp4
counterpoint export runs/mine-20260101-120000 --to gguf --converter llama.cpp --out mine-gguf

`adapter` is the default: it is used with an MXFP4 base without loss. `mxfp4` merges and rounds the experts, by the
rows of the run so that what they learned survives; killed, the same command goes on. The gate compares with the trained
model on rows and prompts of the run; R is the share of what was learned that is lost."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="a run folder, a checkpoint in one, an adapter, or a model folder")
    targets = ("adapter", "bf16", "mxfp4", "gguf")
    parser.add_argument("--to", choices=targets, default="adapter", help="what to write (default adapter)")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write, which must not be there yet")
    roundings = ("calibrated", "dithered", "nearest")
    usual = "calibrated where the run's rows are at hand, else dithered"
    parser.add_argument("--rounding", choices=roundings, help=f"of the experts, for --to mxfp4 (default: {usual})")
    parser.add_argument("--seed", type=int, default=0, help="of dithering (default 0)")
    parser.add_argument("--limit", type=float, metavar="R", help="largest R that passes (without a base, KL in nats)")
    parser.add_argument("--prompts", type=int, default=32, metavar="N", help="eval prompts to answer (default 32)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="cpu", help="default cpu")
    parser.add_argument("--converter", metavar="PATH", help="llama.cpp, or its convert_hf_to_gguf.py (for --to gguf)")
    parser.add_argument("--push", metavar="REPO", help="upload the folder to this Hugging Face repository afterwards")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from counterpoint.recipes.commands.places import check_checkpoint

    check_checkpoint(args.checkpoint)

    from counterpoint.train.checkpoints.find import find_checkpoint
    from counterpoint.train.export.exporter import Options, export, push
    from counterpoint.train.model.load import device_of

    options = Options(
        limit=args.limit,
        converter=args.converter,
        rounding=args.rounding,
        seed=args.seed,
        prompts=args.prompts,
        device=device_of(args.device),
        say=lambda text: print(text, flush=True),
    )
    done = export(find_checkpoint(args.checkpoint), args.to, Path(args.out), options)
    print(done.gate.line())
    for name, values in done.gate.tasks.items():
        print(f"{name:<8} live {values['live']:.3f}, exported {values['exported']:.3f}: {values['sentence']}")
    for note in done.notes:
        print(f"note: {note}")
    print(f"{args.to:<8} {done.folder}")
    if done.launch:
        print(f"serve    {done.launch}")
        print(f"verify   counterpoint verify http://localhost:8000 --checkpoint {done.folder}")
    if args.push:
        print(f"pushed   {push(done.folder, args.push)}")
    return 0
