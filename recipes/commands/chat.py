"""Talk to a checkpoint in the terminal: channels as they come, tools that are run, the conversation kept.

examples:
  counterpoint chat runs/quickstart-20261122-160501
  counterpoint chat runs/tiny_calculator-20261122-160501        # with the tools of the run
  counterpoint chat tiny --function tools.py:weather --effort high
  printf 'What is 40 + 52?\\nAnd 3 more?\\n' | counterpoint chat tiny

A line is a message. /effort low, /new (a new conversation) and /quit are commands; the end of the input ends it too.
Of the run's tools, the built-in python and browser and functions of this package are run; your own code only where
--function names it. The result of a call to a tool that is only declared (--tool) is asked for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, get_args

from counterpoint.recipes.commands.argument_types import count
from counterpoint.recipes.commands.sample import temperature

if TYPE_CHECKING:
    from counterpoint.configs.tool_section import ToolSettings
    from counterpoint.data.conversation import Conversation
    from counterpoint.train.checkpoints.find import Found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run folder, checkpoint, adapter, model folder or name"
    )
    parser.add_argument("--effort", choices=("low", "medium", "high"), default="medium", help="reasoning effort")
    parser.add_argument("--system", metavar="TEXT", help="instructions, as the developer message")
    parser.add_argument("--function", action="append", default=[], metavar="FILE.py:NAME", help="a tool that is run")
    parser.add_argument("--python", action="store_true", help="the built-in python, in its sandbox")
    parser.add_argument(
        "--tool", action="append", default=[], metavar="FILE", help="JSON file of declared tools; you give the results"
    )
    parser.add_argument("--no-tools", action="store_true", help="none of the run's tools")
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter that names none")
    parser.add_argument("--no-adapter", action="store_true", help="the model under the adapter")
    parser.add_argument("--max-new-tokens", type=count, default=1024, metavar="N", help="longest action (1024)")
    parser.add_argument("--calls", type=count, default=8, metavar="N", help="calls of one answer (8)")
    parser.add_argument("--temperature", type=temperature, default=1.0, metavar="T", help="0 is greedy (1.0)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same answers (0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--plain", action="store_true", help="no colours")


def run(args: argparse.Namespace) -> int:
    from counterpoint.recipes.commands.places import check_checkpoint

    check_checkpoint(args.checkpoint)

    from dataclasses import replace

    from counterpoint.configs.model_section import ModelSettings
    from counterpoint.data.conversation import Conversation
    from counterpoint.data.formats.tool_files import read_tool_names
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.recipes.commands.chat_turn import Turns
    from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
    from counterpoint.train.episodes.toolkit import Toolkit
    from counterpoint.train.model.load import device_of

    declared, builtin = read_tool_names(args.tool)
    found = find_checkpoint(args.checkpoint, ModelSettings(name=args.base) if args.base else None)
    if args.no_adapter:
        found = replace(found, adapter=None)
    with Toolkit.of(_tools(args, found)) as toolkit:
        loaded = open_checkpoint(found, device_of(args.device))
        renderer = Renderer(loaded.vocabulary, found.run.data if found.run is not None else None)
        empty = toolkit.declared(Conversation((), instructions=args.system, tools=declared, builtin_tools=builtin))
        names = [*(tool.name for tool in empty.tools), *empty.builtin_tools]
        turns = Turns(loaded, renderer, toolkit, declared, args)
        if names:
            print(f"tools: {', '.join(names)}")
        _talk(turns, empty, args)
    return 0


def _tools(args: argparse.Namespace, found: Found) -> ToolSettings:
    """Of the run what is no foreign code, and what the command line names."""
    from counterpoint.configs.tool_section import ToolSettings
    from counterpoint.configs.user_code import is_foreign

    named = tuple(args.function)
    tools: Any = None if args.no_tools else getattr(found.run, "tools", None)
    if tools is None:
        return ToolSettings(functions=named, python=bool(args.python))
    of_run = [name for name in tools.functions if name not in named]
    for name in filter(is_foreign, of_run):
        print(f"not run: {name} of the run is code of your own: --function {name} runs it", file=sys.stderr)
    if tools.mcp:
        print(f"not run: MCP servers of the run ({', '.join(tools.mcp)})", file=sys.stderr)
    known = tuple(name for name in of_run if not is_foreign(name))
    return tools.model_copy(
        update={"functions": (*named, *known), "mcp": (), "python": bool(args.python) or tools.python}
    )


def _talk(turns: Any, empty: Conversation, args: argparse.Namespace) -> None:
    from dataclasses import replace

    from counterpoint.configs.base import Effort
    from counterpoint.data.conversation import Message

    conversation = empty
    for line in _lines():
        command, _, value = line.partition(" ")
        if command == "/quit":
            break
        if command == "/new":
            conversation = empty
        elif command == "/effort" and value.strip() in get_args(Effort):
            args.effort = value.strip()
        elif line.startswith("/"):
            print("commands: /effort low|medium|high, /new, /quit", file=sys.stderr)
        elif line:
            asked = replace(conversation, messages=(*conversation.messages, Message("user", line)))
            conversation = turns.answered(asked, args.effort)


def _lines() -> Iterator[str]:
    """What is typed or piped in, a line at a time; a prompt is shown on a terminal alone."""
    prompt = "\n> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            yield input(prompt).strip()
        except EOFError:
            return
