"""The commands of README.md and of every page of docs/: the command line takes each, and the tutorials run as written."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path

import pytest

from counterpoint.configs.load import load_run
from counterpoint.recipes import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/tutorials/*.md"))]
TUTORIALS = (
    "first-report", "tool-calls", "second-stage", "evaluate-and-serve", "sft-20b", "rewards-and-environment",
    "repair-channels",
)  # fmt: skip
"""In the order in which they build on each other."""
SHORT = ["train.steps=2", "train.batch_rows=2", "eval.max_new_tokens=4", "eval.every=2"]
COMMAND = re.compile(r"^    (?:\$ )?((?:printf [^|]+\| )?counterpoint .*?)(?:  +#.*)?$", re.MULTILINE)


def commands_of(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [re.sub(r"  +", " ", found) for found in COMMAND.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_command_line_takes_what_a_page_writes(page: Path) -> None:
    for command in commands_of(page):
        words = shlex.split(command.partition("counterpoint ")[2])
        name, arguments = words[0], words[1:]
        assert name in cli.COMMANDS, f"{page.name}: {command}"
        module = import_module(f"counterpoint.recipes.commands.{cli.COMMANDS[name][0]}")
        parser = cli._Parser(prog=f"counterpoint {name}", description="")
        module.add_arguments(parser)
        try:
            args = cli._parse(parser, arguments)
        except SystemExit:
            pytest.fail(f"{page.name}: {command}")
        _check_run_file(args, f"{page.name}: {command}")


def _check_run_file(args: argparse.Namespace, where: str) -> None:
    """A built-in run file that a command names is there, and takes the settings behind it."""
    config = getattr(args, "config", None)
    if config is not None and re.fullmatch(r"(sft|dpo|grpo|distill|eval)/\w+|quickstart", config):
        settings = [text for text in getattr(args, "settings", ()) if "=" in text]
        assert load_run(config, settings), where


@pytest.mark.slow
def test_the_tutorials_run_as_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Files as they are shown, commands in their order; training is cut short, so what it prints is not compared."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("my_task", None)
    request.addfinalizer(lambda: sys.modules.pop("my_task", None))  # another page has a file of this name
    for name in TUTORIALS:
        text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
        for step in re.findall(
            r"```(?:python|yaml)\n(# \w+\.(?:py|yaml)\n.*?)```|((?:^    [^\n]*\n)+)", text, re.MULTILINE | re.DOTALL
        ):
            code, block = step
            if code:
                Path(code.partition("\n")[0].removeprefix("# ")).write_text(code)
            for command, told in re.findall(r"^    \$ (.*)\n((?:    (?!\$ ).*\n)*)", block, re.MULTILINE):
                _run(command, [line[4:] for line in told.splitlines()], capsys, monkeypatch)


def _run(command: str, told: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = re.sub(r"runs/(\w+)-\.\.\.", lambda found: str(max(Path("runs").glob(f"{found[1]}-*"))), command)
    if command.startswith("python "):
        capsys.readouterr()
        runpy.run_path(command.split()[1])
        assert capsys.readouterr().out.splitlines() == [line for line in told if line.strip()]
        return
    if command.startswith("printf "):
        import io

        typed, _, command = command.partition(" | ")
        monkeypatch.setattr("sys.stdin", io.StringIO(shlex.split(typed)[1].replace("\\n", "\n")))
    words = shlex.split(command.partition("#")[0])
    if words[0] != "counterpoint" or words[1] == "verify":
        return
    short = SHORT if words[1] == "train" else ["eval.max_new_tokens=4"] if words[1] == "evaluate" else []
    if "my_task.yaml" in words:
        short = [*SHORT, "train.batch_rows=8", "rollout.action_tokens=8", "eval.tasks=[]"]
    if words[1] == "export":
        short = ["--limit", "1000"]
    if words[1] == "chat":
        short = ["--max-new-tokens", "4"]
    capsys.readouterr()
    code = cli.main([*words[1:], *short])
    out, err = capsys.readouterr()
    # A start that was trained for two steps earns no reward: all of the run but the learning is seen.
    unlearned = "my_task.yaml" in words and "the rewards of no group differed" in err
    bad_rows = words[1] == "validate" and any(line.startswith("bad: ") for line in told)
    assert code == (1 if bad_rows else 0) or unlearned, command
    if words[1] in ("validate", "init", "show", "plan"):
        missing = [line for line in told if line.strip() and line != "..." and line.rstrip() not in out]
        assert not [line for line in missing if " s)" not in line], command


def test_commands_are_found() -> None:
    assert sum(len(commands_of(page)) for page in PAGES) > 60
    assert all(commands_of(ROOT / "docs" / "tutorials" / f"{name}.md") for name in TUTORIALS)
