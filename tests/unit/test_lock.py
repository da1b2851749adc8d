"""The lock: what `make` installs has one version and a hash for every file, and is what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ("base.txt", "torch.txt", "torch-cpu.txt", "dev.txt", "docs.txt")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def packages(name: str) -> list[tuple[Requirement, list[str]]]:
    """The packages of a lock, each with its hashes."""
    text = (ROOT / "requirements" / name).read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return [
        (
            Requirement(" ".join(word for word in line if not word.startswith("--"))),
            [word for word in line if word.startswith("--")],
        )
        for line in lines
    ]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_pinned_and_hashed(name: str) -> None:
    found = packages(name)
    assert found
    for requirement, hashes in found:
        assert [each.operator for each in requirement.specifier] == ["=="], requirement
        assert requirement.url is None
        assert len(hashes) == len(set(hashes)) > 0, requirement
        assert all(HASH.fullmatch(each) for each in hashes), requirement
    assert "://" not in (ROOT / "requirements" / name).read_text()


def test_no_package_has_two_versions_on_one_platform() -> None:
    seen = [
        (canonicalize_name(each.name), str(each.marker))
        for name in LOCKS
        if name != "torch-cpu.txt"
        for each, _ in packages(name)
    ]
    assert len(seen) == len(set(seen))


def test_the_lock_has_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    (own,) = (Requirement(each) for each in extras["dev"] if each.startswith("counterpoint["))
    dev = [text for extra in ("dev", *own.extras) for text in extras[extra] if not text.startswith("counterpoint[")]
    base = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    site = (extras["docs"], ("base.txt", "dev.txt", "docs.txt"))
    for asked, names in ((base, ("torch.txt", "base.txt")), (dev, ("base.txt", "dev.txt")), site):
        locked = {canonicalize_name(each.name): each for name in names for each, _ in packages(name)}
        for text in asked:
            wanted = Requirement(text)
            (pin,) = locked[canonicalize_name(wanted.name)].specifier
            assert wanted.specifier.contains(pin.version), f"{wanted}: the lock has {pin.version}: run make lock"
