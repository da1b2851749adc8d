"""openai-harmony: loaded once, without a network or a trace in the environment; its failures are an answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from completions import FINAL, THINK, encode

from counterpoint.data.harmony.official import harmony_accepts, official_encoding


def test_it_is_loaded_once_and_the_environment_is_as_before() -> None:
    code = (
        "import os; from counterpoint.data.harmony.official import official_encoding as load\n"
        "before = dict(os.environ); first = load(); assert load() is first; assert dict(os.environ) == before"
    )
    clean = {name: value for name, value in os.environ.items() if name != "TIKTOKEN_ENCODINGS_BASE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=clean)


def test_it_loads_where_the_cache_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    code = (
        "from counterpoint.data.harmony.official import harmony_accepts\n"
        "assert harmony_accepts([200005, 17196, 200008, 19, 200002])"
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(file), "XDG_CACHE_HOME": str(file / "cache")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.parametrize(
    ("ids", "accepts"),
    [
        (encode(THINK + FINAL), True),
        (encode("<|start|>assistant" + THINK + FINAL), True),
        (encode("<|channel|>nonsense<|message|>x"), True),
        (encode("hello"), False),
        ([], False),
        ([-1], False),
        ([2**40], False),
        (["x"], False),
        ([None], False),
        ([1.5], False),
        ([19] * 5_000, False),
    ],
)
def test_what_it_accepts(ids: list[Any], accepts: bool) -> None:
    assert harmony_accepts(ids) is accepts


def test_a_panic_is_a_no_and_an_interrupt_goes_through(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def raising(error: BaseException) -> None:
        def parse(*_: object) -> None:
            raise error

        monkeypatch.setattr(official_encoding(), "parse_messages_from_completion_tokens", parse)

    raising(Panic())
    assert harmony_accepts([19]) is False
    raising(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        harmony_accepts([19])
