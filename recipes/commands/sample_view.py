"""A completion on the terminal while it is drawn: by channel, or token by token."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from counterpoint.data.harmony.completion import Completion
from counterpoint.data.harmony.vocabulary import CALL, END, MESSAGE, N_TEXT, RETURN, START, Vocabulary
from counterpoint.data.pages.colours import TERMINAL
from counterpoint.data.pages.visible import visible, visible_line
from counterpoint.data.show.terminal import console_for

_ENDS = frozenset({END, CALL, RETURN, START})
_CHANNELS = ("analysis", "commentary", "final")


class Silent:
    """Prints nothing."""

    def add(self, id_: int) -> None: ...

    def end(self) -> None: ...

    def verdict(self, completion: Completion, seconds: float) -> None: ...


class RawPrinter(Silent):
    """Every token as it comes; control tokens are highlighted, hidden characters are spelled."""

    def __init__(self, vocabulary: Vocabulary, plain: bool = False) -> None:
        self.vocabulary = vocabulary
        self.console = console_for(plain)
        self._pending: list[int] = []
        self._wrote = False

    def add(self, id_: int) -> None:
        if id_ >= N_TEXT:
            self._flush()
            self._write(self.vocabulary.decode([id_]), "bold")
            return
        self._pending.append(id_)
        raw = self.vocabulary.decode_bytes(self._pending)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            # A character that is spread over tokens waits for its rest.
            if error.reason == "unexpected end of data" and len(self._pending) < 8:
                return
            text = raw.decode("utf-8", "backslashreplace")
        self._pending = []
        self.text(text)

    def end(self) -> None:
        self._flush()
        self.console.print()

    def text(self, text: str) -> None:
        self._write(visible(text), "")

    def verdict(self, completion: Completion, seconds: float) -> None:
        """What the check says, and what it took."""
        tokens = completion.n_tokens_by_channel
        counts = ", ".join(f"{name} {count}" for name, count in tokens.items() if count)
        speed = f"{len(completion.ids) / seconds:,.0f} tok/s" if seconds > 0 else ""
        size = f"{len(completion.ids)} tokens ({counts})" if counts else f"{len(completion.ids)} tokens"
        if completion.ok:
            self._line(Text("✓ right on every channel", style="bold"), f"{size}, {speed}")
            return
        codes = "violations" if len(completion.violations) > 1 else "violation"
        self._line(Text(f"✗ {len(completion.violations)} {codes}", style="bold red"), f"{size}, {speed}")
        for violation in completion.violations:
            self._line(Text(f"  {violation.code}"), visible_line(f"at {violation.position}: {violation.detail}", 160))

    def _line(self, head: Text, rest: str) -> None:
        self.console.print(head.append("  ").append(rest, style="not bold dim"), soft_wrap=True, highlight=False)

    def _write(self, text: str, style: str) -> None:
        if text:
            self._wrote = True
            self.console.print(Text(text, style=style), end="", soft_wrap=True, highlight=False)
            self.console.file.flush()

    def _flush(self) -> None:
        if self._pending:
            raw = self.vocabulary.decode_bytes(self._pending)
            self._pending = []
            self.text(raw.decode("utf-8", "backslashreplace"))


class ChannelPrinter(RawPrinter):
    """Each message under the name of its channel, in its colour."""

    def __init__(self, vocabulary: Vocabulary, plain: bool = False) -> None:
        super().__init__(vocabulary, plain)
        self._header: list[int] | None = []
        self._style = ""

    def add(self, id_: int) -> None:
        if self._header is not None:
            if id_ == MESSAGE:
                self._begin(self._header)
                self._header = None
            elif id_ in _ENDS and id_ != START:
                self._begin(self._header)
                self._header = []
            else:
                self._header.append(id_)
        elif id_ in _ENDS:
            self._flush()
            self._header = [id_] if id_ == START else []
        else:
            super().add(id_)

    def end(self) -> None:
        self._flush()
        if self._header:
            self._begin(self._header)
        elif self._wrote:
            self.console.print()

    def text(self, text: str) -> None:
        self._write(visible(text), self._style)

    def _begin(self, header: Sequence[int]) -> None:
        """The line above a message: its channel, and whom it calls."""
        text = self.vocabulary.decode(list(header))
        words = text.replace("<|channel|>", " ").replace("<|constrain|>", " ").split()
        channel = next((word for word in words if word in _CHANNELS), None)
        recipient = next((word.removeprefix("to=") for word in words if word.startswith("to=")), None)
        self._style = TERMINAL.get(channel or "", "") + (" italic" if channel == "analysis" else "")
        name = channel or f"no channel ({visible_line(text, 60)})"
        label = f"{name} → {visible_line(recipient, 60)}" if recipient else name
        if self._wrote:
            self.console.print()
        self._wrote = False
        self.console.print(Text(f"┃ {label}", style=f"bold {TERMINAL.get(channel or '', '')}".strip()), highlight=False)
