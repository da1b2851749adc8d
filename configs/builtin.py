"""The run files included in the package, found from any folder."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Names of the built-in run files (`quickstart`, `sft/tiny_base`), the nearest to the root first."""
    files = (path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
    return sorted(files, key=lambda name: (name.count("/"), name))


def find(name: str) -> Path | None:
    """The file of a built-in name, with or without `.yaml` and a leading `configs/`; None where there is none."""
    plain = name.removeprefix("configs/").removesuffix(".yaml")
    return FOLDER / f"{plain}.yaml" if plain in names() else None


def description(path: Path) -> str:
    """The description of a run file: its first comment line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
        if line.strip():
            break
    return ""
