"""Compare two evaluations item by item: B against A.

The difference with its clustered error, whether so few items can tell, and which items flipped.

examples:
  counterpoint compare runs/first runs/second
  counterpoint compare runs/first/evaluation/base runs/first/evaluation/tuned
  counterpoint compare a/samples.jsonl b/samples.jsonl --json
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from counterpoint.train.evals.compare import Comparison, Difference, Flip

_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "a", metavar="A", help="run folder or evaluation (its tuned side), a side's folder, samples.jsonl"
    )
    parser.add_argument("b", metavar="B", help="the other one; positive differences are in its favour")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--all", action="store_true", help=f"every item that flipped, not only {_SHOWN} each way")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from counterpoint.train.evals.compare import compare
    from counterpoint.train.evals.journal import read_samples

    found = compare(read_samples(Path(args.a)), read_samples(Path(args.b)))
    if args.json:
        print(json.dumps({"a": args.a, "b": args.b, **found.as_dict()}, indent=1, ensure_ascii=False))
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    print("\n".join(_text(found, args.a, args.b, None if args.all else _SHOWN)))
    return 0


def _text(found: Comparison, a: str, b: str, shown: int | None) -> list[str]:
    from counterpoint.data.pages.visible import visible_line
    from counterpoint.train.evals.compare import METRICS

    lines = [
        f"A  {visible_line(a)}",
        f"B  {visible_line(b)}",
        f"{found.items:,} items on both sides (task, id, effort)",
    ]
    left_out = {
        "only in A": found.only_a,
        "only in B": found.only_b,
        "with another prompt in B, left out": found.changed,
    }
    lines += [f"{count:,} {what}" for what, count in left_out.items() if count]
    for metric, flips in found.flips.items():
        rows = [difference for difference in found.differences if difference.metric == metric]
        lines += ["", f"{METRICS[metric]}: {rows[0].sentence}", *_table(rows), *_flips(flips, shown)]
    if "score" not in found.flips:
        lines += ["", "No item has a truth, so answers are not compared."]
    return lines


def _table(rows: list[Difference]) -> list[str]:
    from counterpoint.data.pages.visible import visible_line

    names = [visible_line(row.task or (f"effort {row.effort}" if row.effort else "all"), 30) for row in rows]
    width = max(9, *map(len, names))
    lines = [f"  {'':{width}}  items     A      B     B-A   95 % interval   least to be seen"]
    for name, row in zip(names, rows, strict=True):
        found = row.difference
        interval = "-" if found.low != found.low else f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
        mark = {"better": "  better", "worse": "  worse", "same": "", "unclear": "  too few to tell"}[row.told]
        lines.append(
            f"  {name:{width}}  {row.items:5}  {100 * row.a:5.1f}  {100 * row.b:5.1f}  {100 * found.value:+6.1f}"
            f"   {interval:14}  {100 * row.detectable:5.1f}{mark}"
        )
    return lines


def _flips(flips: tuple[Flip, ...], shown: int | None) -> list[str]:
    from counterpoint.data.pages.visible import visible_line

    lines: list[str] = []
    for what, chosen in (
        ("right in A, wrong in B", [flip for flip in flips if flip.a > flip.b]),
        ("wrong in A, right in B", [flip for flip in flips if flip.a < flip.b]),
    ):
        if not chosen:
            continue
        lines.append(f"  {what}: {len(chosen):,}")
        for flip in chosen[:shown]:
            where = visible_line(
                f"{flip.task} / {flip.id} ({flip.effort})" if flip.task else f"{flip.id} ({flip.effort})"
            )
            shares = "" if {flip.a, flip.b} == {0.0, 1.0} else f"  {flip.a:.2f} -> {flip.b:.2f}"
            lines.append(f"    {where}{shares}")
        if shown is not None and len(chosen) > shown:
            lines.append(f"    … {len(chosen) - shown:,} more (--all)")
    return lines
