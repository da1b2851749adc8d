"""What differs between the versions of torch, transformers and peft that the lean path runs on: no other file asks for
a version, or for what only some have.

`make test-oldest` and `make test-newest` run the tests on either end.
"""

from __future__ import annotations

import dataclasses
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version
from transformers import TrainingArguments

TESTED_VERSIONS = {"torch": ("2.11", "2.14"), "transformers": ("5.17", "5.25"), "peft": ("0.21.2", "0.22")}
"""Package: first version tested, first version not tested. The lean path rests on registries of these three."""
COSTS = (
    ("torch", "<2.13", "its operators fit by their declarations, and no test of ours was run on it"),
    ("transformers", "<5.19", "experts cannot be sharded over processes by transformers itself"),
)
"""(package, versions, what they cost)."""


def installed_versions() -> list[tuple[str, str, bool]]:
    """(package, installed version or "not installed", whether it is in the tested range) for the lean path."""
    found = []
    for package, (first, last) in TESTED_VERSIONS.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            found.append((package, "not installed", False))
            continue
        found.append((package, installed, Version(first) <= _release(installed) < Version(last)))
    return found


def costs() -> list[tuple[str, str, str]]:
    """(package, installed version, what it costs), where that version has a price."""
    installed = {package: found for package, found, fits in installed_versions() if fits}
    return [
        (package, installed[package], cost)
        for package, versions, cost in COSTS
        if package in installed and _release(installed[package]) in SpecifierSet(versions)
    ]


def is_expert_parallel(experts: Any) -> bool:
    """Whether transformers has sharded a layer's experts over processes; before 5.19 it cannot, and does not say so."""
    return bool(getattr(experts, "_is_expert_parallel", False))


def checkpointing_arguments(on: bool) -> dict[str, Any]:
    """Of `TrainingArguments`, under both names: TRL reads the old ones, and transformers 5.19 knows no others."""
    options = {"use_reentrant": False} if on else None
    values: dict[str, Any] = {}
    for name in ("activation_checkpointing", "gradient_checkpointing"):
        values |= {name: on, f"{name}_kwargs": options}
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {name: value for name, value in values.items() if name in known}


def _release(text: str) -> Version:
    return Version(Version(text).base_version)
