"""Print conversations with channels and trained tokens coloured, and why every other token is context.

counterpoint show train.jsonl
counterpoint show train.jsonl --row 17 --full
counterpoint show train.jsonl data.train_on=final data.weights.analysis=0
counterpoint show --config my.yaml --html page.html

Rows are numbered as messages name them: `train.jsonl:17` is row 17."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from counterpoint.configs.errors import DataError, RowError
from counterpoint.recipes.commands.argument_types import count
from counterpoint.recipes.commands.data_arguments import add_data_arguments, data_settings

if TYPE_CHECKING:
    from counterpoint.configs.schema import DataSettings
    from counterpoint.data.counts.counter import Item
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.data.rows.row import BadRow
    from counterpoint.data.show.explain import Explained
    from counterpoint.data.show.first_look import FirstLook, RowRange

_ROWS, _EXAMPLES = 5, 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--row", type=_row, metavar="N", dest="rows", help="only row N")
    rows.add_argument("--rows", type=_rows, metavar="A:B", help="only rows A to B")
    parser.add_argument(
        "--limit", type=count, metavar="N", help=f"at most N rows ({_ROWS}; with --html {_EXAMPLES} examples)"
    )
    parser.add_argument("--turn", type=count, metavar="K", help="only assistant turn K, with its whole context")
    parser.add_argument("--effort", choices=("low", "medium", "high"), help="reasoning effort in place of the rows'")
    parser.add_argument("--full", action="store_true", help="fold nothing: whole texts, all turns with whole context")
    parser.add_argument("--plain", action="store_true", help="no colours: trained text in brackets (as in a pipe)")
    parser.add_argument("--html", type=_page, metavar="PAGE.html", help="write one self-contained page instead")


def run(args: argparse.Namespace) -> int:
    from counterpoint.data.formats.read import conversations_from, read_conversations
    from counterpoint.data.show.first_look import EVERY_ROW, chosen, first_look

    data = data_settings(args)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    wanted = args.rows or EVERY_ROW
    specs = data.train
    items: Iterator[Item] = read_conversations(specs, data)
    look = first_look(items, wanted)
    facts = _facts(data, look)
    names = [Path(spec.path).name for spec in specs]
    title = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    _tell(facts)

    from counterpoint.data.harmony.render import Renderer
    from counterpoint.data.harmony.vocabulary import load_vocabulary

    renderer = Renderer(load_vocabulary(), data)
    one_file = len(specs) == 1 and Path(specs[0].path).is_file()
    if one_file and not look.rows and not look.complete:
        items = conversations_from(specs[0], data, wanted.first) or items
    picked = chosen(look.rows, items, wanted, one_file)
    rows = _explained(picked, renderer, data, args)
    shown = _write_page(args, title, facts, rows, renderer) if args.html else _print_rows(args, rows, renderer, look)
    if not shown:
        where = ", ".join(source.path for source in data.train)
        raise DataError(f"{where}: no such row: rows are numbered as messages name them, `file:17` is row 17")
    return 0


def _facts(data: DataSettings, look: FirstLook) -> list[str]:
    """Which files, their format, and counts of what was read so far."""
    from counterpoint.data.pages.visible import visible_line

    return [visible_line(", ".join(source.path for source in data.train)), *map(visible_line, look.lines())]


def _tell(facts: list[str]) -> None:
    for fact in facts:
        print(fact)
    sys.stdout.flush()


def _explained(
    items: Iterator[Item], renderer: Renderer, data: DataSettings, args: argparse.Namespace
) -> Iterator[Explained | BadRow]:
    from counterpoint.data.conversation import Conversation
    from counterpoint.data.dataset.targets import Targets
    from counterpoint.data.harmony.cut import cut_to_fit
    from counterpoint.data.rows.row import BadRow
    from counterpoint.data.show.explain import explain
    from counterpoint.data.show.terminal import MAX_TURNS

    turns = None
    if args.turn is not None:
        turns = range(args.turn - 1, args.turn)
    elif not args.full:
        turns = range(args.limit or _EXAMPLES) if args.html else range(MAX_TURNS)
    targets = Targets(renderer)
    for item in items:
        if isinstance(item, BadRow):
            yield item
            continue
        try:
            if data.too_long == "cut" and isinstance(item, Conversation):
                too_long = renderer.tree(item, data.max_tokens)[1]
                item = (too_long and cut_to_fit(item, renderer, data.max_tokens)) or item
            told = explain(item, renderer, effort=args.effort, max_tokens=data.max_tokens, turns=turns)
            if isinstance(item, Conversation):
                broken = targets.notices(item, renderer.targets(item), told.effort)
                told = replace(told, notices=(*told.notices, *broken))
            yield told
        except RowError as error:
            yield BadRow(item.source, error.kind, error.field, error.what, error.fix)


def _print_rows(
    args: argparse.Namespace, rows: Iterator[Explained | BadRow], renderer: Renderer, look: FirstLook
) -> int:
    from counterpoint.data.rows.row import BadRow
    from counterpoint.data.show.terminal import TerminalView, View, console_for

    console = console_for(args.plain)
    plain = console.color_system is None
    view = TerminalView(
        console,
        renderer.vocabulary,
        View(plain=plain, full=args.full, turn=None if args.turn is None else args.turn - 1),
    )
    limit = args.limit or (None if args.rows else _ROWS)
    view.legend()
    shown = 0
    for row in islice(rows, limit):
        shown += 1
        if isinstance(row, BadRow):
            view.bad_row(row.message)
        else:
            view.row(row)
        sys.stdout.flush()
    if shown and limit and shown == limit and (not look.complete or look.counts.rows > shown):
        of = f"{look.counts.rows:,}" if look.complete else f"more than {look.counts.rows:,}"
        view.line()
        view.line(
            f"{shown:,} of {of} rows shown; --limit, --row and --rows choose, --html PAGE.html pages through them"
        )
    return shown


def _write_page(
    args: argparse.Namespace, title: str, facts: list[str], rows: Iterator[Explained | BadRow], renderer: Renderer
) -> int:
    from counterpoint.data.pages.visible import visible_line
    from counterpoint.data.show.page import PageBuilder

    page = PageBuilder(renderer.vocabulary, args.limit or _EXAMPLES)
    for row in rows:
        page.add(row)
        if page.full:
            break
    if not page.rows:
        return 0
    told = page.told()
    write_text(args.html, page.page(visible_line(title), [*facts, told]))
    print(f"wrote {args.html}: {told}")
    return len(page.rows)


def write_text(path: Path, text: str) -> None:
    """Writes beside the place and renames, so that a page is complete or absent."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}): check the folder") from None


def _row(text: str) -> RowRange:
    from counterpoint.data.show.first_look import RowRange

    return RowRange(count(text), count(text))


def _rows(text: str) -> RowRange:
    from counterpoint.data.show.first_look import RowRange

    first, colon, last = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"`{text}`: write A:B, for example 10:20")
    rows = RowRange(count(first or "1"), count(last) if last else None)
    if rows.last is not None and rows.last < rows.first:
        raise argparse.ArgumentTypeError(f"`{text}`: the second number is smaller than the first")
    return rows


def _page(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in (".html", ".htm"):
        raise argparse.ArgumentTypeError(f"`{text}`: name a page that ends in .html")
    return path
