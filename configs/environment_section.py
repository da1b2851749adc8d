"""Settings of environments: `rollout.environment` and `rollout.user` of grpo, the task `environment` of evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model

from counterpoint.configs.base import Count, CountOrZero, Positive, Settings, Share, Text
from counterpoint.configs.foreign_section import ForeignSettings


def _check_named(value: str) -> str:
    if ":" not in value:
        raise ValueError("write module:Class or file.py:Class")
    return value


def _check_name(value: str) -> str:
    if "/" in value:
        raise ValueError("a name without `/`, which separates the parts of metrics")
    return value


EnvironmentName = Annotated[Text, AfterValidator(_check_name)]


class UserSettings(Settings):
    """The model that answers `ctx.ask` of an environment: a user who is played, or a judge. A key is read from
    COUNTERPOINT_USER_KEY, never from a run file."""

    url: Text
    """Address of an OpenAI-compatible server, up to `/v1`."""

    model: Text | None = None
    """Name of the model, where the environment names none; null takes the first one listed."""

    cache: Text | None = None
    """SQLite file in which answers are kept by their request, so that the same request is asked once; null keeps
    none."""

    timeout: Positive = 60.0
    """Timeout of one request in seconds."""

    retries: CountOrZero = 3
    """Retries of a request that failed in transit or for the server's load."""


def check_asked_by_package(user: UserSettings | None) -> None:
    """ValueError for what acts only where this program asks."""
    if user is None:
        return
    for name in ("cache", "timeout", "retries"):
        if name in user.model_fields_set and getattr(user, name) != UserSettings.model_fields[name].default:
            raise ValueError(f"`user.{name}` has no effect: the package asks by itself, as its own settings say")
    if user.model is None:
        raise ValueError("`user.model` is missing: the package asks for it by name")


if TYPE_CHECKING:
    _ClassSettings = Settings
else:  # `class` is a word of Python's, which no class body can annotate
    _ClassSettings = create_model(
        "_ClassSettings",
        __base__=Settings,
        **{
            "class": (
                Annotated[Text, AfterValidator(_check_named)],
                Field(
                    description="A class derived from `counterpoint.Environment`, as `module:Class` or `file.py:Class`."
                ),
            )
        },
    )


class InstanceSettings(_ClassSettings):
    """The class and its instances, of training and of evaluations."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """What the class's `setup` is given."""

    isolation: Literal["process", "shared"] = "process"
    """`process` gives each instance a process of its own, forked from a worker that has loaded the class; `shared`
    hosts all instances of a worker as its threads, and loses them all where one hangs."""

    workers: Count = 1
    """Worker processes that load the class; instances are dealt out to them."""

    turns: Count = 8
    """Maximum user messages of a rollout; one more ends it."""

    weights: dict[str, float] = Field(default_factory=dict)
    """Weights of the rewards that the class gives by name, 1 where none is named; 0 only logs."""

    max_invalid: Share = 0.1
    """Share of a step's rollouts that may be invalid; more stop the run."""

    @property
    def class_name(self) -> str:
        return getattr(self, "class")


class EnvironmentSettings(InstanceSettings):
    """A task of your own with state: one instance of the class for each rollout (docs/environments.md)."""

    type: Literal["class"] = "class"
    """A class of your own; the other types are packages (docs/foreign-environments.md)."""


def _class_by_default(value: Any) -> Any:
    return {"type": "class", **value} if isinstance(value, Mapping) else value


AnyEnvironment = Annotated[
    EnvironmentSettings | ForeignSettings, Field(discriminator="type"), BeforeValidator(_class_by_default)
]
"""A class of the user's, or a package that `type` names."""
