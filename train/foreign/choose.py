"""The environments that settings name: a class of the user's, or another project's package."""

from __future__ import annotations

from counterpoint.configs.environment_section import InstanceSettings, UserSettings
from counterpoint.configs.eval_section import ForeignTask
from counterpoint.configs.foreign_section import ForeignSettings
from counterpoint.train.episodes.environments import Environments
from counterpoint.train.foreign.environments import ForeignEnvironments

Chosen = Environments | ForeignEnvironments


def open_environments(
    settings: InstanceSettings | ForeignSettings | ForeignTask, user: UserSettings | None = None
) -> Chosen:
    """Loaded in their processes. ConfigError where they cannot be. Close them."""
    if isinstance(settings, InstanceSettings):
        return Environments(settings, user)
    return ForeignEnvironments(settings.type, settings, user)
