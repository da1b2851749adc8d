"""The chat template of an export, for servers that obey it: it writes what the form of training writes."""

from __future__ import annotations

from counterpoint.configs.data_section import OpeningSettings


def chat_template(settings: OpeningSettings) -> str | None:
    """None where the base's own template is the right one."""
    del settings
    return None
