from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from counterpoint.configs.data_section import ChannelWeights, RenderSettings
from counterpoint.data.conversation import CONSTRAIN_JSON, Conversation, Message, Notice, Preference
from counterpoint.data.harmony.render import Renderer
from counterpoint.data.harmony.vocabulary import load_vocabulary
from counterpoint.data.show.explain import explain
from counterpoint.data.show.terminal import MAX_TURNS, TerminalView, View, console_for

TALK = Conversation(
    (
        Message("user", "one"),
        Message("assistant", "think", "analysis"),
        Message("assistant", "4", "final"),
        Message("user", "two\nlines"),
        Message("assistant", "{}", "commentary", "functions.f", content_type=CONSTRAIN_JSON, weight=0.5),
        Message("tool", "9", "commentary", name="functions.f"),
        Message("assistant", "5 <|end|>", "final"),
    ),
    source="talk.jsonl:1",
    format="openai",
    notices=(Notice("nul", "a", "first"), Notice("nul", "b", "second")),
)


def shown(*conversations: Conversation, plain: bool = True, width: int = 80, explained: Any = None, **view: Any) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=not plain, color_system=None if plain else "truecolor", width=width)
    vocabulary = load_vocabulary()
    terminal = TerminalView(console, vocabulary, View(plain=plain, **view))
    renderer = Renderer(vocabulary, RenderSettings(**{"date": "", "serving": "sampled", **(explained or {})}))
    for conversation in conversations:
        turns = range(view["turn"], view["turn"] + 1) if "turn" in view else None
        terminal.row(explain(conversation, renderer, turns=turns))
    return file.getvalue()


PLAIN = """\

━━ talk.jsonl:1 · openai · 2 turns · effort medium (data.effort)
   ! nul ×2  a: first

── turn 1 of 2 · 69 tokens · 12 trained (analysis 5, final 7)
     system    │ <|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.
               │ Knowledge cutoff: 2024-06
               │
               │ Reasoning: medium
               │
               │ # Valid channels: analysis, commentary, final. Channel must be included for every message.<|end|>
               │ ↳ context: system message; effort from data.effort, date from data.date
   1 user      │ <|start|>user<|message|>one<|end|>
               │ ↳ context: user message
   2 analysis  ┃ <|start|>assistant⟦<|channel|>analysis<|message|>think<|end|>⟧
               ┃ ↳ prompt: the server writes <|start|>assistant
   3 final     ┃ ⟦<|start|>assistant<|channel|>final<|message|>4<|return|>⟧

── turn 2 of 2 · 108 tokens · 23 trained (commentary 13, final 10)
   … above     │ 3 messages as context, 62 tokens
     dropped   │ earlier analysis dropped, as at inference: message 2 (analysis)
   4 user      │ <|start|>user<|message|>two
               │ lines<|end|>
               │ ↳ context: user message
   5 call      ┃ <|start|>assistant⟦<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>⟧×0.5
               ┃ ↳ prompt: the server writes <|start|>assistant
               ┃ ↳ weight 0.5 in the row
   6 tool      │ <|start|>functions.f to=assistant<|channel|>commentary<|message|>9<|end|>
               │ ↳ tool result: environment, never trained
   7 final     ┃ <|start|>assistant⟦<|channel|>final<|message|>5 \\<|end|><|return|>⟧
               ┃ ↳ prompt: the server writes <|start|>assistant
"""


def test_plain() -> None:
    lines = [line.rstrip() for line in shown(TALK).splitlines()]
    assert "\n".join(lines) + "\n" == PLAIN


SERVED = """\
── turn 2 of 2 · action 1 of 2 · 84 tokens · 13 trained (commentary 13)
   … above     │ 3 messages as context, 62 tokens
     dropped   │ earlier analysis dropped, as at inference: message 2 (analysis)
   4 user      │ <|start|>user<|message|>two
               │ lines<|end|>
               │ ↳ context: user message
   5 call      ┃ <|start|>assistant⟦<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>⟧×0.5
               ┃ ↳ prompt: the server writes <|start|>assistant
               ┃ ↳ weight 0.5 in the row

── turn 2 of 2 · action 2 of 2 · 106 tokens · 10 trained (final 10)
   … above     │ 4 messages as context, 69 tokens
     dropped   │ earlier analysis dropped, as at inference: message 2 (analysis)
   5 call      │ <|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>
               │ ↳ context: earlier action of this turn, as vllm writes it; trained in an example of its own
   6 tool      │ <|start|>functions.f<|channel|>commentary to=assistant<|message|>9<|end|>
               │ ↳ tool result: environment, never trained
   7 final     ┃ <|start|>assistant⟦<|channel|>final<|message|>5 \\<|end|><|return|>⟧
               ┃ ↳ prompt: the server writes <|start|>assistant
"""


def test_a_call_is_shown_as_it_is_trained_and_as_the_server_writes_it_again() -> None:
    lines = [line.rstrip() for line in shown(TALK, explained={"serving": "vllm"}).splitlines()]
    assert ("\n".join(lines) + "\n").endswith(SERVED)


def test_colours_tell_channels_and_training_apart() -> None:
    text = shown(TALK, plain=False)
    assert "⟦" not in text
    assert "\x1b[1;3;38;2;47;125;225mthink\x1b[0m" in text
    assert "\x1b[1;38;2;194;102;10m{}\x1b[0m" in text
    assert "\x1b[1;38;2;10;143;112m4\x1b[0m" in text
    assert "\x1b[2m<|start|>\x1b[0m" in text
    assert "\x1b[38;2;10;143;112m<|return|>\x1b[0m" in text
    assert "\x1b[2m×0.5\x1b[0m" in text
    for name in ("analysis", "call", "final"):
        assert f"{name}\x1b[0m" in text


def test_full_and_one_turn_repeat_the_context() -> None:
    assert "as context" not in shown(TALK, full=True)
    assert shown(TALK, full=True).count(">one<") == 2
    second = shown(TALK, turn=1)
    assert "turn 1 of 2" not in second
    assert second.count(">one<") == 1
    assert "│ earlier analysis dropped, as at inference: message 2 (analysis)" in second
    assert "no turn 7: the row has 2" in shown(TALK, turn=6)


def test_an_opening_is_shown_once() -> None:
    text = shown(TALK, TALK)
    assert text.count("You are ChatGPT") == 1
    assert "     system    │ as in the row before\n" in text
    assert shown(TALK, TALK, full=True).count("You are ChatGPT") == 4


def test_long_texts_are_folded() -> None:
    long = Conversation((Message("user", "x " * 1000), Message("assistant", "y " * 3000, "final")), source="a:1")
    text = shown(long)
    assert " … 885 tokens folded … " in text
    assert " … 2,001 tokens folded … " in text
    assert "folded" not in shown(long, full=True)
    assert shown(long, full=True).count(" y") == 2999


def test_lines_are_wrapped_at_the_width_of_a_terminal() -> None:
    long = Conversation((Message("user", "word " * 60), Message("assistant", "日本語" * 30, "final")), source="a:1")
    for line in shown(long, plain=False, width=60).splitlines()[3:]:
        assert cell_len(re.sub("\x1b\\[[0-9;]*m", "", line)) <= 60
    plain = [line for line in shown(long).splitlines() if ">word" in line]
    assert len(plain) == 1


def test_turns_beyond_the_shown_ones_are_counted() -> None:
    turn = (Message("user", "q"), Message("assistant", "a", "final"))
    vocabulary = load_vocabulary()
    file = io.StringIO()
    view = TerminalView(Console(file=file), vocabulary, View(plain=True))
    view.row(explain(Conversation(turn * 40), Renderer(vocabulary), turns=range(MAX_TURNS)))
    assert file.getvalue().endswith("   … 28 more turns (--turn K shows one, --full all)\n")


def test_one_sequence() -> None:
    text = shown(TALK, explained={"train_on": "assistant"})
    assert "── all 2 turns in one sequence · " in text
    assert "more turns" not in text


def test_nothing_reaches_the_terminal_as_a_control_sequence() -> None:
    evil = "\x1b]0;owned\x07\x1b[31m\u202e\x9b\r\x08"
    conversation = Conversation(
        (
            Message("user", evil, name="n\x1b[1m"),
            Message("assistant", evil, "commentary", f"functions.{evil}"),
            Message("tool", evil, "commentary", name=f"functions.{evil}"),
            Message("assistant", evil, "final"),
            Message("user", "[red]markup[/red] :smile:"),
            Message("assistant", "a", "final"),
        ),
        instructions=evil,
        source=f"{evil}:1",
        format=evil,
        notices=(Notice("nul", evil, evil),),
    )
    for plain in (True, False):
        text = shown(conversation, plain=plain)
        assert not [c for c in text if c in "\x07\x08\r\x9b\u202e"]
        assert "⟨U+202E⟩" in text
        assert "[red]markup[/red] :smile:" in text
        escapes = text.count("\x1b")
        assert escapes == 0 if plain else escapes == text.count("\x1b[")
        assert "\x1b[31m" not in text


def test_bad_rows_are_one_line() -> None:
    file = io.StringIO()
    TerminalView(Console(file=file), load_vocabulary(), View(plain=True)).bad_row("a:1: x\n\x1b: y: z")
    assert file.getvalue() == "\n✗ a:1: x ⟨U+001B⟩: y: z\n"


@pytest.mark.parametrize(
    ("environment", "plain", "coloured"),
    [
        ({"FORCE_COLOR": "1", "TERM": "xterm"}, False, True),
        ({"FORCE_COLOR": "1", "TERM": "xterm"}, True, False),
        ({"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}, False, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False, False),
        ({"TERM": "xterm"}, False, False),
    ],
)
def test_where_there_are_colours(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], plain: bool, coloured: bool
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (console_for(plain).color_system is not None) is coloured


def test_weights_change_inside_a_message() -> None:
    talk = Conversation((Message("user", "q"), Message("assistant", "a", "final")))
    weights = ChannelWeights(final=2, terminators=0.25)
    assert "⟦<|channel|>final<|message|>a⟧×2⟦<|return|>⟧×0.25" in shown(talk, explained={"weights": weights})


def test_both_sides_of_a_pair() -> None:
    prompt = Conversation((Message("user", "q"),), source="p.jsonl:1", format="trl_preference")
    pair = Preference(prompt, (Message("assistant", "good", "final"),), (Message("assistant", "bad", "final"),))
    vocabulary, file = load_vocabulary(), io.StringIO()
    TerminalView(Console(file=file), vocabulary, View(plain=True)).row(explain(pair, Renderer(vocabulary)))
    lines = file.getvalue().splitlines()
    assert lines[1] == "━━ p.jsonl:1 · trl_preference · preference · effort medium (data.effort)"
    assert [line for line in lines if line.startswith("──")] == [
        "── chosen · 73 tokens · 5 trained (final 5)",
        "── rejected · 73 tokens · 5 trained (final 5)",
    ]
