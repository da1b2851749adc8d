import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from counterpoint.configs import builtin
from counterpoint.recipes import cli
from counterpoint.recipes.cli import main

HEAD = "recipe: sft\ndata:\n  train: a.jsonl\n"


def counterpoint(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("counterpoint")), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})


def refused(*arguments: str, cwd: Path) -> str:
    """The one line that a refused command writes."""
    result = counterpoint(*arguments, cwd=cwd)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr.removesuffix("\n")


def test_wrong_settings_exit_with_2_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(HEAD + "lora:\n  rnak: 8\n")
    expected = "run.yaml:5: unknown key `lora.rnak`; did you mean `lora.rank`?"
    assert refused("train", "run.yaml", cwd=tmp_path) == expected
    assert refused("configs", "validate", "run.yaml", cwd=tmp_path) == expected
    line = refused("train", "quickstart", "train.schedule=cosin", "--overwrite", "lora.rank=4", cwd=tmp_path)
    assert line.startswith("command line: `train.schedule` is `cosin`: it must be one of cosine, linear, constant")
    assert refused("train", "quickstart", "--resume", "lora.rnak=4", cwd=tmp_path).startswith(
        "command line: unknown key"
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian", "x"], "counterpoint: no command `trian`; did you mean `train`?"),
        (["zzzz"], "counterpoint: no command `zzzz`; known are init, train, "),
        (["train"], "counterpoint train: the following arguments are required: CONFIG"),
        (["train", "quickstart", "--fsat"], "counterpoint train: unrecognized arguments: --fsat"),
        (["train", "quickstrat"], "quickstrat: no such run file; did you mean the built-in `quickstart`?"),
        (
            ["train", "eval/channels"],
            "eval/channels: `recipe: evaluate` trains nothing: use one of sft, dpo, grpo, distill",
        ),
        (["configs"], "counterpoint configs: the following arguments are required: ls | cp | validate | schema"),
        (["configs", "validate", "a=b"], "configs validate: name a run file before the settings"),
        (["configs", "schema"], "configs schema: name a recipe, one of sft, dpo, grpo, distill, evaluate"),
        (
            ["configs", "schema", "sftt"],
            "configs schema: no recipe `sftt`: it must be one of sft, dpo, grpo, distill, evaluate",
        ),
        (["configs", "cp", "nothing", "x.yaml"], "nothing: no such run file"),
        (["configs", "cp", "quickstart", "no/x.yaml"], "no/x.yaml: no folder no: make it first"),
    ],
)
def test_wrong_commands_exit_with_2_on_one_line(tmp_path: Path, arguments: list[str], expected: str) -> None:
    assert refused(*arguments, cwd=tmp_path).startswith(expected)


def test_ls_says_what_each_run_file_is_for(tmp_path: Path) -> None:
    result = counterpoint("configs", "ls", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    listed = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert list(listed) == builtin.names()
    assert "tiny gpt-oss" in listed["quickstart"]


def test_cp_then_validate(tmp_path: Path) -> None:
    assert counterpoint("configs", "cp", "sft/gpt_oss_20b_lora", ".", cwd=tmp_path).returncode == 0
    assert "it is there already" in refused("configs", "cp", "sft/gpt_oss_20b_lora", ".", cwd=tmp_path)
    result = counterpoint(
        "configs", "validate", "gpt_oss_20b_lora.yaml", "quickstart", "lora.rank=3", "--print", cwd=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("  rank: 3\n") == 2


def test_validate_tells_of_every_bad_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD + "seed: x\n")
    (tmp_path / "b.yaml").write_text(HEAD)
    (tmp_path / "c.yaml").write_text(HEAD + "lora: 3\n")
    result = counterpoint("configs", "validate", "a.yaml", "b.yaml", "c.yaml", cwd=tmp_path)
    assert result.returncode == 2
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["a.yaml:4", "c.yaml:4"]
    assert result.stdout == "b.yaml: recipe sft, in order\n"


def test_schema_is_json(tmp_path: Path) -> None:
    schema = json.loads(counterpoint("configs", "schema", "sft", cwd=tmp_path).stdout)
    assert schema["properties"]["lora"]["description"]


def test_version_and_help(tmp_path: Path) -> None:
    assert counterpoint("--version", cwd=tmp_path).stdout == f"counterpoint {version('counterpoint')}\n"
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        result = counterpoint(*arguments, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (0, "")
        assert all(f"  {command} " in result.stdout for command in cli.COMMANDS)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    command = [str(Path(sys.executable).with_name("counterpoint")), "configs", "schema", "sft"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
    process.stderr.close()


def test_the_users_own_modules_are_not_imported(tmp_path: Path) -> None:
    for name in ("train.py", "configs.py", "yaml.py", "data/__init__.py", "counterpoint.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('imported the wrong module')\n")
    assert counterpoint("configs", "validate", "quickstart", cwd=tmp_path).returncode == 0


class _Stub:
    __doc__ = "A stand-in command."

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def add_arguments(self, parser: object) -> None: ...

    def run(self, args: object) -> int:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "printed"),
    [
        (cli.CounterpointError("a.jsonl:3:\n  wrong"), 1, "a.jsonl:3: wrong\n"),
        (cli.CounterpointError("https://me:secret@host: refused"), 1, "https://[hidden]@host: refused\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
    ],
)
def test_errors_become_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, printed: str
) -> None:
    monkeypatch.setattr(cli, "import_module", lambda name: _Stub(error))
    assert main(["train"]) == code
    assert capsys.readouterr() == ("", printed)


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "import_module", lambda name: _Stub(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["train"])
