"""Every error that Counterpoint raises for a user's mistake.

    CounterpointError            one message for a person: what is wrong, where, what to do
    ├── ConfigError              a run file or a command-line setting (exit code 2)
    ├── DataError                an entire data file: missing, empty, too many bad rows (exit code 1)
    │   ├── NoDataError          it is not there
    │   └── RowError             one row; names the field, what is wrong, and the fix
    ├── ModelError               a checkpoint, an adapter, or a vocabulary
    └── RunError                 a run: folder locked, data changed, loss not finite

The command line prints the message on one line without a traceback; anything else is a bug and shows one.
"""

from __future__ import annotations


class CounterpointError(ValueError):
    """A user's mistake, reported in one line."""

    exit_code = 1


class ConfigError(CounterpointError):
    """A run file or a setting is wrong."""

    exit_code = 2


class DataError(CounterpointError):
    """A data file cannot be used."""


class NoDataError(DataError):
    """A data file or dataset is not there, or cannot be reached."""


class RowError(DataError):
    """One row cannot be used: `field` (path inside the row), `what` is wrong, and the `fix`.

    `kind` is a short stable word that rows with the same fault share (for counts).
    """

    def __init__(self, kind: str, field: str, what: str, fix: str) -> None:
        super().__init__(f"{field}: {what}: {fix}")
        self.kind = kind
        self.field = field
        self.what = what
        self.fix = fix


class ModelError(CounterpointError):
    """A checkpoint, an adapter, or a vocabulary cannot be used."""


class RunError(CounterpointError):
    """A run cannot start or continue."""
