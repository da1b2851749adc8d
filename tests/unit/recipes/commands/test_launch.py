import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.schema import LaunchSettings
from counterpoint.recipes.commands import train
from counterpoint.recipes.commands.allocator import grow_segments
from counterpoint.recipes.commands.doctor import allocator
from counterpoint.recipes.commands.launch import check_launched, is_launched, launch_command, launch_environment

NODE = {"NODE_RANK": "1", "MASTER_ADDR": "first", "MASTER_PORT": "1234"}


def test_one_node() -> None:
    command = launch_command(LaunchSettings(processes=8), ["train", "a.yaml", "lora.rank=8"], {})
    assert command[:3] == [sys.executable, "-m", "torch.distributed.run"]
    assert command[3:] == [
        *("--nproc-per-node=8", "--standalone"),
        *("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT,SIGUSR1,SIGHUP", "--shutdown-timeout=300"),
        *("--module", "counterpoint.recipes.cli", "train", "a.yaml", "lora.rank=8"),
    ]


def test_several_nodes_find_each_other_by_the_environment() -> None:
    launch = LaunchSettings(processes=8, nodes=2)
    expected = ["--nnodes=2", "--node-rank=1", "--master-addr=first", "--master-port=1234"]
    assert launch_command(launch, ["train"], NODE)[4:8] == expected
    slurm = {"SLURM_NODEID": "0", "MASTER_ADDR": "first"}
    assert launch_command(launch, ["train"], slurm)[5:8] == [
        "--node-rank=0",
        "--master-addr=first",
        "--master-port=29500",
    ]


@pytest.mark.parametrize("missing", ["NODE_RANK", "MASTER_ADDR"])
def test_a_node_that_cannot_find_the_others_says_what_to_set(missing: str) -> None:
    environment = {key: value for key, value in NODE.items() if key != missing}
    with pytest.raises(ConfigError, match=r"launch\.nodes is 2: set MASTER_ADDR"):
        launch_command(LaunchSettings(nodes=2), [], environment)


def test_sharding_reaches_accelerate_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import FullyShardedDataParallelPlugin

    environment = launch_environment(LaunchSettings(processes=2, strategy="fsdp2"), "cuda", {"PATH": "/bin"})
    assert environment.pop("PATH") == "/bin"
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert plugin.transformer_cls_names_to_wrap == ["GptOssDecoderLayer"]
    assert "SHARDED" in str(plugin.state_dict_type)


def test_sharding_is_refused_on_a_cpu_where_it_would_silently_not_happen() -> None:
    with pytest.raises(ConfigError, match="use ddp"):
        launch_environment(LaunchSettings(processes=2, strategy="fsdp2"), "cpu", {})
    assert launch_environment(LaunchSettings(processes=2), "cpu", {"A": "1"}) == {"A": "1"}


def test_a_process_knows_that_it_was_launched() -> None:
    assert is_launched({"LOCAL_RANK": "0"})
    assert not is_launched({"RANK": "0"})


def test_each_process_runs_the_command_as_one_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(
        "import os, sys\n"
        "with open('rank' + os.environ['RANK'], 'w') as file:\n"
        "    file.write(os.environ['WORLD_SIZE'] + ' '.join(sys.argv[1:]))\n"
    )
    command = launch_command(LaunchSettings(processes=2), ["train", "a.yaml"])
    command[command.index("counterpoint.recipes.cli")] = "ranks"
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert [(tmp_path / f"rank{n}").read_text() for n in range(2)] == ["2train a.yaml"] * 2


def test_train_becomes_the_launcher_only_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse
    import os

    calls: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((path, command)))
    monkeypatch.setattr(train, "import_module", lambda name: SimpleNamespace(run=lambda settings, **given: 0))
    monkeypatch.delenv("LOCAL_RANK", raising=False)

    def run(*settings: str, resume: str | None = None, overwrite: bool = False) -> None:
        args = argparse.Namespace(config="quickstart", settings=list(settings), resume=resume, overwrite=overwrite)
        assert train.run(args) == 0

    run("lora.rank=8")
    assert calls == []
    run("launch.processes=2", resume="lora.rank=8", overwrite=True)
    assert calls[0][0] == sys.executable
    command = calls[0][1]
    assert command[command.index("counterpoint.recipes.cli") + 1 :] == [
        *("train", "quickstart", "launch.processes=2", "lora.rank=8"),
        *("--resume", "newest", "--overwrite"),
    ]
    monkeypatch.setenv("LOCAL_RANK", "0")
    run("launch.processes=2")
    assert len(calls) == 1


def test_the_allocator_grows_its_segments_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import argparse

    environment: dict[str, str] = {}
    grow_segments(environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        environment = {name: "max_split_size_mb:64"}
        grow_segments(environment)
        assert environment == {name: "max_split_size_mb:64"}
        assert allocator(environment).status == "note"
        assert "add expandable_segments:True to it" in allocator(environment).fix
    assert allocator({}).status == allocator({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}).status == "ok"
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    began: dict[str, str] = {}
    monkeypatch.setattr("os.execve", lambda path, command, environment: began.update(environment))
    monkeypatch.setattr(train, "import_module", lambda name: SimpleNamespace(run=lambda settings, **given: 0))
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    settings = ["launch.processes=2"]
    assert train.run(argparse.Namespace(config="quickstart", settings=settings, resume=None, overwrite=False)) == 0
    assert began["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


def test_a_launcher_that_shards_otherwise_than_the_run_file_is_refused() -> None:
    sharded = LaunchSettings(processes=2, strategy="fsdp2")
    with pytest.raises(ConfigError, match="did not switch it on"):
        check_launched(sharded, {"LOCAL_RANK": "0"})
    check_launched(sharded, {"ACCELERATE_USE_FSDP": "true"})
    check_launched(LaunchSettings(processes=2), {})
    with pytest.raises(ConfigError, match="shards the model"):
        check_launched(LaunchSettings(), {"LOCAL_RANK": "0", "ACCELERATE_USE_FSDP": "true"})
