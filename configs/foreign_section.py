"""Settings of environments that are other projects' packages, in virtual environments of their own."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from counterpoint.configs.base import Count, Positive, Settings, Share, Text

ForeignType = Literal["verifiers", "tau2", "inspect", "textarena", "openenv", "script"]
"""The kinds of packages that there is a bridge for, and a bridge of the user's own."""


class PackageSettings(Settings):
    """The package and how it is run, of training and of evaluations."""

    id: Text
    """What of the package is played: an environment of verifiers, a domain of tau2, a task of inspect_ai
    (`package/task` or `file.py@task`), a game of TextArena, the address of an OpenEnv server; of `script` the file of
    your bridge (docs/foreign-environments.md)."""

    python: Text
    """The Python that has the package: `bin/python` of its virtual environment."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """What the package's environment is loaded with."""

    seconds: Positive = 120.0
    """Longest time in seconds that the package may take from an answer of the model to the next request or to the
    reward; to load it may take as long again for each of its workers."""

    requests: Count = 64
    """Maximum requests to the model in one rollout; one more makes it invalid."""

    workers: Count = 1
    """Processes that load the package; rollouts are dealt out to them and run beside each other in each."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Weights of the package's metrics by name, 0 where none is named; they are added to its reward."""

    max_invalid: Share = 0.1
    """Share of a step's rollouts that may be invalid; more stop the run."""


class ForeignSettings(PackageSettings):
    """Rollouts that another project's package drives, asking the model as it would ask a server."""

    type: ForeignType
    """The package, or `script` for a bridge of your own."""
