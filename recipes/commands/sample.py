"""Answer one prompt in the terminal: channels coloured as they are drawn, and at the end what the strict check says.

examples:
  counterpoint sample runs/quickstart-20261122-160501 "What is 40 + 52?"
  counterpoint sample openai/gpt-oss-20b "Weather in Oslo?" --tool weather.json --effort high
  echo "Hello" | counterpoint sample tiny -
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from counterpoint.recipes.commands.argument_types import count

if TYPE_CHECKING:
    from counterpoint.data.conversation import Conversation
    from counterpoint.data.harmony.completion import Completion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="run folder, checkpoint, adapter, model folder or name"
    )
    parser.add_argument("prompt", nargs="?", default="-", metavar="PROMPT", help="the user's message; - reads stdin")
    parser.add_argument("--effort", choices=("low", "medium", "high"), default="medium", help="reasoning effort")
    parser.add_argument("--system", metavar="TEXT", help="instructions, as the developer message")
    parser.add_argument(
        "--tool",
        action="append",
        default=[],
        metavar="FILE",
        help="JSON file with a tool or a list of them, or python, browser; may be repeated",
    )
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter that names none")
    parser.add_argument("--no-adapter", action="store_true", help="the model under the adapter")
    parser.add_argument("--max-new-tokens", type=count, default=1024, metavar="N", help="longest answer (1024)")
    parser.add_argument("--temperature", type=temperature, default=1.0, metavar="T", help="0 is greedy (1.0)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same answer (0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--raw", action="store_true", help="the tokens as they are, control tokens spelled out")
    parser.add_argument("--json", action="store_true", help="one JSON object instead, with ids, channels, violations")
    parser.add_argument("--plain", action="store_true", help="no colours")


def run(args: argparse.Namespace) -> int:
    from counterpoint.recipes.commands.places import check_checkpoint

    check_checkpoint(args.checkpoint)
    conversation = _conversation(args)

    from dataclasses import replace

    from counterpoint.configs.model_section import ModelSettings
    from counterpoint.data.harmony.completion import parse_completion
    from counterpoint.data.harmony.render import Renderer
    from counterpoint.recipes.commands.sample_view import ChannelPrinter, RawPrinter, Silent
    from counterpoint.train.checkpoints.find import find_checkpoint, open_checkpoint
    from counterpoint.train.model.load import device_of
    from counterpoint.train.sampling.stream import stream

    found = find_checkpoint(args.checkpoint, ModelSettings(name=args.base) if args.base else None)
    if args.no_adapter:
        found = replace(found, adapter=None)
    loaded = open_checkpoint(found, device_of(args.device))
    settings = found.run.data if found.run is not None else None
    prompt = Renderer(loaded.vocabulary, settings).prompt(conversation, args.effort)
    printer = Silent() if args.json else (RawPrinter if args.raw else ChannelPrinter)(loaded.vocabulary, args.plain)
    started = time.perf_counter()
    ids: list[int] = []
    for id_ in stream(loaded, prompt, args.max_new_tokens, args.temperature, args.seed):
        ids.append(id_)
        printer.add(id_)
    seconds = time.perf_counter() - started
    printer.end()
    completion = parse_completion(
        ids,
        loaded.vocabulary,
        tools=conversation.tools,
        builtin_tools=conversation.builtin_tools,
        effort=args.effort,
        finish_reason="length" if len(ids) == args.max_new_tokens and not _stopped(ids) else "stop",
    )
    if args.json:
        print(json.dumps(_as_dict(completion, args, seconds, loaded.vocabulary.decode(ids)), ensure_ascii=False))
    else:
        printer.verdict(completion, seconds)
    return 0


def _stopped(ids: list[int]) -> bool:
    from counterpoint.data.harmony.vocabulary import STOP_IDS

    return bool(ids) and ids[-1] in STOP_IDS


def _conversation(args: argparse.Namespace) -> Conversation:
    from counterpoint.configs.errors import ConfigError
    from counterpoint.data.conversation import Conversation, Message
    from counterpoint.data.formats.tool_files import read_tool_names

    text = args.prompt
    if text == "-":
        if sys.stdin.isatty():
            print("the prompt, then Ctrl-D:", file=sys.stderr)
        text = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    if not text:
        raise ConfigError('sample: no prompt: write it behind the checkpoint, in quotes, or pipe it in with "-"')
    functions, builtins = read_tool_names(args.tool)
    return Conversation((Message("user", text),), instructions=args.system, tools=functions, builtin_tools=builtins)


def _as_dict(completion: Completion, args: argparse.Namespace, seconds: float, text: str) -> dict[str, object]:
    return {
        "checkpoint": args.checkpoint,
        "effort": args.effort,
        "seed": args.seed,
        "ids": list(completion.ids),
        "text": text,
        "analysis": completion.analysis,
        "preambles": list(completion.preambles),
        "calls": [{"name": call.recipient, "arguments": call.arguments_text} for call in completion.calls],
        "final": completion.final,
        "stop": completion.stop,
        "tokens": completion.n_tokens_by_channel,
        "violations": [{"code": v.code, "position": v.position, "detail": v.detail} for v in completion.violations],
        "seconds": round(seconds, 3),
    }


def temperature(text: str) -> float:
    """An argument: 0 or a positive number."""
    value = float(text)
    if not 0 <= value < 1000:
        raise argparse.ArgumentTypeError("write 0 or a positive number")
    return value
