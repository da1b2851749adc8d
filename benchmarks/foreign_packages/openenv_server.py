"""OpenEnv servers of the package's own classes: `python openenv_server.py KIND PORT`, KIND one of mcp, action."""

import sys
from typing import Any

import uvicorn
from fastmcp import FastMCP
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.mcp_environment import MCPEnvironment
from openenv.core.env_server.mcp_types import CallToolAction, CallToolObservation
from openenv.core.env_server.types import Action, Observation, State


class Guess(Action):
    """Guesses the number."""

    number: int


class Told(Observation):
    text: str = ""


class Guessing(Environment):
    """A number from 1 to 9, three guesses."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self.secret, self.guesses = 0, 0

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Told:
        self.secret, self.guesses = (seed or 0) % 9 + 1, 0
        return Told(text="Guess a number from 1 to 9 with `step`. You have three guesses.")

    def step(self, action: Guess, timeout_s: float | None = None, **more: Any) -> Told:
        self.guesses += 1
        right = action.number == self.secret
        text = "Right." if right else "Higher." if action.number < self.secret else "Lower."
        return Told(text=text, reward=float(right), done=right or self.guesses >= 3)

    @property
    def state(self) -> State:
        return State(step_count=self.guesses)


class Adding(MCPEnvironment):
    """Tools over MCP."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        server = FastMCP("adding")
        self.calls = 0

        @server.tool()
        def add(a: int, b: int) -> int:
            """Adds two numbers."""
            self.calls += 1
            return a + b

        super().__init__(server)

    def reset(self, seed: int | None = None, episode_id: str | None = None, **more: Any) -> Told:
        return Told(text=f"What is {(seed or 0) % 50} + 2? Use `add`.")

    def _step_impl(self, action: Action, timeout_s: float | None = None, **more: Any) -> Told:
        return Told(text="unknown action")

    @property
    def state(self) -> State:
        return State(step_count=self.calls)


if __name__ == "__main__":
    kind, port = sys.argv[1], int(sys.argv[2])
    made = {"mcp": (Adding, CallToolAction, CallToolObservation), "action": (Guessing, Guess, Told)}[kind]
    app = create_fastapi_app(*made, max_concurrent_envs=16, reset_observation_cls=Told)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
