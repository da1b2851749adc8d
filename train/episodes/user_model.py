"""The model that plays a user, or judges: an OpenAI-compatible server, asked once for each different request."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from counterpoint.configs.environment_section import UserSettings
from counterpoint.train.sampling.chat_server import ChatServer

KEY_VARIABLE = "COUNTERPOINT_USER_KEY"


class UserModel:
    """Thread-safe. Close it."""

    def __init__(self, settings: UserSettings, pause: float = 1.0) -> None:
        self._server = ChatServer(
            settings.url,
            key=KEY_VARIABLE,
            setting="rollout.user.model",
            model=settings.model,
            cache=settings.cache,
            timeout=settings.timeout,
            retries=settings.retries,
            pause=pause,
        )

    @property
    def requests(self) -> int:
        """How many were sent, those that the cache answered left out."""
        return self._server.requests

    def ask(self, messages: Sequence[Mapping[str, str]], model: str | None, seed: int, max_tokens: int) -> str:
        """The answer's text. RunError where the server does not answer, or with something else."""
        body = {"messages": list(messages), "seed": seed, "max_tokens": max_tokens}
        return self._server.ask(body, str, model).value

    def close(self) -> None:
        self._server.close()


def user_key() -> str:
    """What the server is shown, or nothing."""
    return os.environ.get(KEY_VARIABLE, "")
