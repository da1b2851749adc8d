import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tree import LAYERS, MODULES, ROOT, SOURCES, imports, top

from counterpoint.recipes.cli import COMMANDS

SUITE = "conformance"
"""A folder that needs nothing of the package and is shipped as files: its scripts are run, never imported."""
SETUP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
HEAVY = (
    "torch", "transformers", "trl", "peft", "numpy", "pydantic", "yaml", "tiktoken", "datasets", "rich", "wandb", "jinja2",
)  # fmt: skip


def test_the_newest_changes_are_those_of_the_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == project["version"]


def test_the_list_of_packages_is_the_tree() -> None:
    folders = {path.parent for path in SOURCES}
    ours = {f"counterpoint.{'.'.join(folder.parts)}" for folder in folders}
    assert {"counterpoint", f"counterpoint.{SUITE}", *ours} == set(SETUP["packages"])
    layers = {f"counterpoint.{layer}": layer for layer in (*LAYERS, SUITE)}
    assert SETUP["package-dir"] == {"counterpoint": "counterpoint", **layers}


def test_every_folder_with_python_in_it_is_a_package() -> None:
    for folder in {path.parent for path in SOURCES}:
        for parent in (folder, *folder.parents[:-1]):
            assert (ROOT / parent / "__init__.py").is_file(), parent


def test_no_module_hides_behind_a_folder_of_its_name() -> None:
    for path in SOURCES:
        assert not (ROOT / path.with_suffix("")).is_dir(), path


def test_checkers_see_the_same_tree() -> None:
    for layer in LAYERS:
        assert (ROOT / ".typecheck" / "counterpoint" / layer).resolve() == ROOT / layer
    for name in ("__init__.py", "py.typed"):
        assert (ROOT / ".typecheck" / "counterpoint" / name).resolve() == ROOT / "counterpoint" / name


def test_the_front_door_holds_nothing_but_names() -> None:
    found = {path.name for path in (ROOT / "counterpoint").iterdir() if path.name != "__pycache__"}
    assert found == {"__init__.py", "py.typed"}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_stay_short(path: Path) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert text.count("\n") <= 400, f"{path} holds two things"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{path}: {node.name} holds two things"


def reachable(module: str) -> dict[str, str]:
    """Every module that importing `module` imports, with the one that asks for it."""
    found: dict[str, str] = {}
    waiting = [(module, "")]
    while waiting:
        name, asker = waiting.pop()
        if name in found:
            continue
        found[name] = asker
        if name in MODULES:
            waiting.extend((inner, name) for inner in imports(MODULES[name], only_at_import=True))
            waiting.extend((parent, name) for parent in parents(name))
    return found


def parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@pytest.mark.parametrize("module", ["cli", *sorted({f"commands.{module}" for module, _ in COMMANDS.values()})])
def test_the_command_line_reaches_nothing_heavy_at_import(module: str) -> None:
    found = reachable(f"counterpoint.recipes.{module}")
    for name, asker in found.items():
        assert top(name) not in HEAVY, f"{asker} imports {name}"


@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(command: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom counterpoint.recipes.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"heavy = sorted(set({HEAVY}) & set(sys.modules))\nassert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "counterpoint" in result.stdout


def test_every_command_has_its_module_and_a_help_line() -> None:
    for module, text in COMMANDS.values():
        assert f"counterpoint.recipes.commands.{module}" in MODULES
        assert text[0].islower()
        assert not text.endswith(".")


def test_every_data_file_in_the_tree_is_packaged() -> None:
    patterns = [
        (package.removeprefix("counterpoint.").replace(".", "/"), pattern)
        for package, list_ in SETUP["package-data"].items()
        if package != "counterpoint"
        for pattern in list_
    ]
    packaged = {path for folder, pattern in patterns for path in (ROOT / folder).glob(pattern) if path.is_file()}
    files = {
        path
        for layer in LAYERS
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts
    }
    suite = {path for path in (ROOT / SUITE).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    scripts = set((ROOT / SUITE).glob("*.py"))
    results = set((ROOT / SUITE / "results").rglob("*"))
    assert files | (suite - scripts - results) == packaged
