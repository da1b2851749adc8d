"""Rendering, checking and preparing, side by side in one run.

    python benchmarks/data.py [--rounds N] [--quick] [--skip-hf]
    python benchmarks/data.py --big 2000        files of up to 2,000 MB through the commands: memory must stay flat

Rivals: openai-harmony's own render, which gives ids without any mask; and the Hugging Face way as TRL takes it, its
gpt-oss training template and a fast tokenizer, `apply_chat_template(..., return_assistant_tokens_mask=True)`.
Conversations are made from a seed (`workload.py`). Every side starts from its own objects, ready in memory, and handles
the same conversations. Times are CPU time of one process, the best of several rounds in which the sides take turns; the
garbage collector leaves what stood there before (the other sides' objects) alone. We encode by tiktoken alone, and once
more by splintr (`counterpoint[fast]`) where it is installed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import workload
from openai_harmony import Conversation as OfficialConversation
from openai_harmony import RenderConversationConfig, Role
from workload import official_messages

from counterpoint.configs.data_section import RenderSettings
from counterpoint.data.conversation import Conversation
from counterpoint.data.formats.convert import convert
from counterpoint.data.harmony.checker import check
from counterpoint.data.harmony.fast_encoder import SWITCH
from counterpoint.data.harmony.official import official_encoding
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.split import SPLIT
from counterpoint.data.harmony.vocabulary import (
    CALL,
    N_TEXT,
    RETURN,
    SPECIAL_IDS,
    Vocabulary,
    _ranks_bytes,
    load_vocabulary,
    vocabulary_folder,
)
from counterpoint.data.harmony.window import history, split_turns

Side = Callable[[], int]
COUNTS: dict[workload.Kind, int] = {"mixed": 300, "short": 300, "turns": 60}
GOALS = {"mixed": 3, "short": 6, "template": 6, "turns": 10, "check": 15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a tenth of the conversations, no prepare")
    parser.add_argument("--skip-hf", action="store_true", help="leave out the Hugging Face template")
    parser.add_argument("--big", type=int, metavar="MB", help="only validate and prepare files of up to so many MB")
    parser.add_argument("--workers", type=int, default=1, help="processes of prepare with --big")
    args = parser.parse_args()
    versions = ", ".join(f"{n} {metadata.version(n)}" for n in ("tiktoken", "openai-harmony", "transformers", "trl"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}\n")
    if args.big:
        big(args.big, args.workers)
        return
    render(args.rounds, 10 if args.quick else 1, hf=not args.skip_hf)
    checker(args.rounds)
    if not args.quick:
        prepare_end_to_end()


def render(rounds: int, part: int, hf: bool) -> None:
    """Whole conversations with mask against both rivals; one example per turn against openai-harmony."""
    plain, fast = Vocabulary(_ranks_bytes(), "tiktoken", fast=False), load_vocabulary()
    per_turn, whole = Renderer(plain), Renderer(plain, RenderSettings(train_on="assistant"))
    faster = Renderer(fast) if fast.encoder != "tiktoken" else None
    template = hf_sides() if hf else None
    print(f"{'':<34}{'tokens':>10}{'ours':>9}{'rival':>9}  M tokens/s{'ratio':>8}{'goal':>6}")
    for kind, count in COUNTS.items():
        rows = list(workload.rows(kind, count // part))
        ours = [c for c in map(convert, rows) if isinstance(c, Conversation)]
        theirs = [_official(c, range(len(c.messages))) for c in ours]
        turns = [
            _official(c, [*history(c.messages, t.start), *range(t.start, t.trained_stop)])
            for c in ours
            for t in split_turns(c.messages)
        ]
        sides: dict[str, Side] = {
            "whole": lambda ours=ours: sum(len(e.ids) for c in ours for e in whole.examples(c)),
            "official whole": lambda theirs=theirs: sum(map(len, map(_render, theirs))),
            "turns": lambda ours=ours: sum(len(e.ids) for c in ours for e in per_turn.examples(c)),
            "official turns": lambda turns=turns: sum(map(len, map(_render, turns))),
        }
        if template is not None:
            sides["template"] = template(rows)
        if faster is not None:
            sides["faster"] = lambda ours=ours: sum(len(e.ids) for c in ours for e in faster.examples(c))
        found = measured(sides, rounds)
        goal = GOALS.get(kind) if kind != "turns" else GOALS["mixed"]
        _row(f"{kind}: openai-harmony, no mask", found["whole"], found["official whole"], goal)
        if template is not None:
            _row(f"{kind}: HF template with mask", found["whole"], found["template"], GOALS["template"])
        _row(f"{kind}: one example per turn", found["turns"], found["official turns"], GOALS["turns"])
        if faster is not None:
            _row(f"{kind}: the same, {fast.encoder}", found["faster"], found["official turns"], None)


def checker(rounds: int) -> None:
    """What a model samples in mixed conversations: every action once, judged by the tools that its row declares."""
    official, renderer = official_encoding(), Renderer(load_vocabulary())
    made = []
    for conversation in map(convert, workload.rows("mixed", 150)):
        assert isinstance(conversation, Conversation)
        for example in renderer.examples(conversation):
            made += [(ids, conversation.tools) for ids in actions(example.ids.tolist(), example.weights.tolist())]
    tokens = sum(len(ids) for ids, _ in made)

    def ours() -> int:
        for ids, tools in made:
            assert check(ids, tools=tools, effort="low").ok
        return tokens

    def theirs() -> int:
        for ids, _ in made:
            official.parse_messages_from_completion_tokens(ids, Role.ASSISTANT)
        return tokens

    found = measured({"ours": ours, "theirs": theirs}, rounds)
    _row(f"check, {len(made)} completions: the parser", found["ours"], found["theirs"], GOALS["check"])


def actions(ids: list[int], weights: list[float]) -> Iterator[list[int]]:
    """The trained runs of an example, each up to its `<|call|>` or `<|return|>`."""
    run: list[int] = []
    for id_, weight in zip(ids, weights, strict=True):
        if weight:
            run.append(id_)
            if id_ in (CALL, RETURN):
                yield run
                run = []


def prepare_end_to_end() -> None:
    """The command on a file of 40 MB: wall clock, CPU of all processes, size written."""
    head = f"{'seconds':>10}{'CPU s':>9}{'MB/s':>9}{'M tokens/s':>12}{'written MB':>12}"
    print(f"\n{'prepare, 40 MB of mixed rows':<34}{head}")
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "rows.jsonl", 40)
        for workers, out, encoder in ((1, "a", "tiktoken"), (1, "b", "auto"), (2, "c", "auto"), (1, "d.jsonl", "auto")):
            os.environ[SWITCH] = encoder
            run = prepared(source, Path(folder) / out, workers)
            label = f"{'JSON lines' if out.endswith('jsonl') else 'Arrow'}, {workers} process{'es' * (workers > 1)}"
            label += ", tiktoken" if encoder == "tiktoken" else ""
            size = source.stat().st_size / 1e6
            print(
                f"{label:<34}{run['seconds']:>10.1f}{run['cpu']:>9.1f}{size / run['seconds']:>9.1f}"
                f"{run['tokens'] / run['seconds'] / 1e6:>12.2f}{run['written'] / 1e6:>12.0f}"
            )


def big(megabytes: int, workers: int) -> None:
    """Files of growing size through the commands; the peak of all processes of one together."""
    print(f"{'memory':<34}{'seconds':>10}{'MB/s':>9}{'peak MB':>9}{'written MB':>12}")
    for size in (megabytes // 40, megabytes // 4, megabytes):
        with tempfile.TemporaryDirectory() as folder:
            source, out = write_rows(Path(folder) / "rows.jsonl", size), Path(folder) / "out"
            for name, options in (("validate", []), ("prepare", ["--out", str(out), "--workers", str(workers)])):
                run = watched([name, str(source), *options])
                written = sum(file.stat().st_size for file in out.iterdir()) if out.is_dir() else 0
                rate = source.stat().st_size / run["seconds"] / 1e6
                label = f"{name}, {size:,} MB"
                print(f"{label:<34}{run['seconds']:>10.1f}{rate:>9.1f}{run['peak'] / 1e6:>9.0f}{written / 1e6:>12.0f}")
                sys.stdout.flush()


def write_rows(path: Path, megabytes: int) -> Path:
    """At least so many MB of mixed rows; after the first 20 MB they come again under a new number."""
    lines: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        made = workload.rows("mixed", 1 << 40)
        while file.tell() < megabytes * 1_000_000:
            if file.tell() < 20_000_000:
                lines.append(json.dumps(next(made), ensure_ascii=False)[1:])
            for line in lines[-1:] if file.tell() < 20_000_000 else lines:
                file.write(f'{{"id": {file.tell()}, {line}\n')
    return path


def prepared(source: Path, out: Path, workers: int) -> dict[str, float]:
    """`counterpoint prepare`: its time and memory, the tokens of its examples, and the bytes it wrote."""
    run = watched(["prepare", str(source), "--out", str(out), "--workers", str(workers)])
    report = json.loads((out / "report.json" if out.is_dir() else out.with_suffix(".report.json")).read_bytes())
    files = out.iterdir() if out.is_dir() else [out]
    return {**run, "tokens": report["report"]["tokens"], "written": sum(file.stat().st_size for file in files)}


def watched(arguments: list[str]) -> dict[str, float]:
    """Runs `counterpoint ARGUMENTS`; peak: bytes of the largest sum over its processes."""
    start, before = time.monotonic(), os.times()
    command = [sys.executable, "-m", "counterpoint.recipes.cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    code = process.wait()
    watcher.join()
    assert code == 0, code
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"seconds": time.monotonic() - start, "cpu": cpu, "peak": peak[0]}


def _watch(process: subprocess.Popen[bytes], peak: list[int]) -> None:
    while process.poll() is None:
        peak[0] = max(peak[0], sum(map(_memory, [process.pid, *_children(process.pid)])))
        time.sleep(0.2)


def _children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _memory(pid: int) -> int:
    """Private and shared resident bytes, memory-mapped files aside."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return 1024 * int(fields["RssAnon"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0


def hf_sides() -> Callable[[list[dict[str, Any]]], Side]:
    """The gpt-oss training template that TRL brings, over our vocabulary as a fast tokenizer."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = {id_: name for name, id_ in SPECIAL_IDS.items()}
    specials = [names.get(i, f"<|reserved_{i}|>") for i in range(N_TEXT, max(names) + 1)]
    ranks_file = str(vocabulary_folder() / "o200k_base.tiktoken")
    backend = TikTokenConverter(ranks_file, SPLIT, extra_special_tokens=specials).converted()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|return|>", pad_token="<|endoftext|>")
    template = resources.files("trl").joinpath("chat_templates/gptoss_training.jinja").read_text(encoding="utf-8")
    text = "The 3 quick brown foxes: größer, 日本語 🙂\n\n  x"
    assert tokenizer.encode(text, add_special_tokens=False) == load_vocabulary().encode(text)

    def apply(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> int:
        done = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert isinstance(done["input_ids"][0], int)
        assert 1 in done["assistant_masks"]
        return len(done["input_ids"])

    def side(rows: list[dict[str, Any]]) -> Side:
        ready = [(_with_objects(row["messages"]), row.get("tools")) for row in rows]
        return lambda: sum(apply(messages, tools) for messages, tools in ready)

    return side


def _with_objects(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The template wants a call's arguments as an object."""
    out = json.loads(json.dumps(list(messages)))
    for message in out:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return out


def _official(conversation: Conversation, indices: Iterable[int]) -> OfficialConversation:
    return OfficialConversation.from_messages(official_messages(conversation, list(indices)))


def _render(conversation: OfficialConversation) -> list[int]:
    config = RenderConversationConfig(auto_drop_analysis=False)
    return official_encoding().render_conversation_for_training(conversation, config)


def measured(sides: dict[str, Side], rounds: int) -> dict[str, tuple[int, float]]:
    """Tokens and the least CPU seconds of each side."""
    found: dict[str, tuple[int, float]] = {}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, side in sides.items():
            gc.collect()
            started = time.process_time()
            tokens = side()
            seconds = time.process_time() - started
            found[name] = (tokens, min(seconds, found[name][1] if name in found else seconds))
    gc.unfreeze()
    return found


def _row(label: str, ours: tuple[int, float], theirs: tuple[int, float], goal: float | None) -> None:
    """Ratio of tokens a second: the Hugging Face template drops a part of the conversation."""
    mine, rival = (tokens / seconds / 1e6 for tokens, seconds in (ours, theirs))
    wanted = f"{goal:>5}x" if goal else ""
    print(f"{label:<34}{ours[0]:>10,}{mine:>9.2f}{rival:>9.2f}{'':>12}{mine / rival:>7.1f}x{wanted}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
