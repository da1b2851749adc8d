"""Sets the clock that chat templates read (`strftime_now`) to the date of the case, so that prompts can be compared."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def set_date(module: Any, date: str) -> None:
    """module: one that reads the time by the name `datetime`, class or module."""

    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromisoformat(date).replace(tzinfo=tz)

    if isinstance(module.datetime, type):
        module.datetime = Fixed
    else:
        module.datetime.datetime = Fixed
