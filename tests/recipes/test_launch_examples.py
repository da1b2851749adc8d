"""The shipped SLURM and SkyPilot examples, run with stand-ins for the cluster's own commands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from counterpoint.configs.load import load_run
from counterpoint.configs.schema import GrpoRun
from counterpoint.recipes.commands.launch import launch_command
from counterpoint.recipes.commands.train_servers import needs_servers, server_command

FOLDER = Path(__file__).parents[2] / "docs" / "launch"
STAND_INS = {
    "scontrol": '#!/bin/bash\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n',
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nfor n in 0 1; do SLURM_NODEID=$n "$@"; done\n',
    **dict.fromkeys(
        ("counterpoint", "vllm"),
        "#!/usr/bin/env python3\nimport json, os, sys\n"
        "said = {'program': os.path.basename(sys.argv[0]), 'arguments': sys.argv[1:], 'environment': dict(os.environ)}\n"
        "os.write(1, (json.dumps(said) + '\\n').encode())\n",
    ),
}


def started(script: str, tmp_path: Path, *arguments: str, **environment: str) -> list[dict[str, dict[str, str]]]:
    """What `counterpoint` was called with, once a node."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script, "example", *arguments],
        env={"PATH": path, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(call: dict, rank: str, address: str) -> None:
    """The command line is a right one, and the nodes find each other."""
    command, name, *settings, resume, which = call["arguments"]
    assert (command, resume, which) == ("train", "--resume", "auto")
    launch = load_run(name, settings).launch  # type: ignore[union-attr]
    assert (launch.nodes, launch.processes, launch.strategy) == (2, 8, "fsdp2")
    node = launch_command(launch, [], call["environment"])
    assert f"--node-rank={rank}" in node
    assert f"--master-addr={address}" in node


def test_slurm(tmp_path: Path) -> None:
    script = (FOLDER / "slurm.sh").read_text()
    calls = started(
        script, tmp_path, "sft/gpt_oss_20b_lora_multi_gpu", "train.epochs=2", SLURM_JOB_NODELIST="node[1-2]",
        SLURM_JOB_ID="712345", SLURM_JOB_NUM_NODES="2", SLURM_GPUS_ON_NODE="8",
    )  # fmt: skip
    assert len(calls) == 2
    for rank, call in enumerate(calls):
        check(call, str(rank), "node1")
        assert "train.epochs=2" in call["arguments"]
        assert 20000 <= int(call["environment"]["MASTER_PORT"]) < 40000


def test_skypilot(tmp_path: Path) -> None:
    task = yaml.safe_load((FOLDER / "skypilot.yaml").read_text())
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H100:8")
    for rank in ("0", "1"):
        (call,) = started(
            task["run"], tmp_path, **task["envs"], SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", SKYPILOT_NODE_RANK=rank,
            SKYPILOT_NUM_NODES="2", SKYPILOT_NUM_GPUS_PER_NODE="8",
        )  # fmt: skip
        check(call, rank, "10.0.0.1")
        assert f"data.train={task['envs']['DATA']}" in call["arguments"]


def check_rewards(calls: list[dict[str, Any]], urls: list[str]) -> None:
    """One trainer with a right command line, and the servers that it names."""
    trainer = next(call for call in calls if call["program"] == "counterpoint")
    servers = [call for call in calls if call["program"] == "vllm"]
    command, name, *settings, resume, which = trainer["arguments"]
    assert (command, resume, which) == ("train", "--resume", "auto")
    run = load_run(name, settings)
    assert isinstance(run, GrpoRun)
    assert (run.rollout.engine, list(run.rollout.server.url), run.rollout.server.adapters) == ("server", urls, "http")
    assert (run.launch.processes, run.launch.strategy, run.launch.serve.servers) == (8, "fsdp2", 0)
    assert needs_servers(run, {}) is False
    ports = {call["arguments"][call["arguments"].index("--port") + 1] for call in servers}
    assert ports == {url.rpartition(":")[2].removesuffix("/v1") for url in urls}
    for call in servers:
        environment = call["environment"]
        assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
        assert environment["COUNTERPOINT_ADAPTERS_URL"].endswith(f":{run.rollout.server.adapters_port}")
        wanted = server_command(run, "vllm", int(call["arguments"][call["arguments"].index("--port") + 1]))
        given = call["arguments"][call["arguments"].index("--enable-lora") :]
        assert given == wanted[wanted.index("--enable-lora") : wanted.index("--tensor-parallel-size")]


def test_slurm_with_servers(tmp_path: Path) -> None:
    calls = started(
        (FOLDER / "slurm_rl.sh").read_text(), tmp_path, "grpo/gpt_oss_20b_servers", SLURM_JOB_NODELIST="node[1-2]",
        SLURM_GPUS_ON_NODE="8",
    )  # fmt: skip
    check_rewards(calls, [f"http://node2:{8100 + gpu}/v1" for gpu in range(8)])


def test_skypilot_with_servers(tmp_path: Path) -> None:
    task = yaml.safe_load((FOLDER / "skypilot_rl.yaml").read_text())
    calls = []
    for rank in ("0", "1"):
        calls += started(
            task["run"], tmp_path, **task["envs"], COUNTERPOINT_ADAPTERS_TOKEN="t", SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
            SKYPILOT_NODE_RANK=rank, SKYPILOT_NUM_GPUS_PER_NODE="8", VLLM=str(tmp_path / "vllm"),
        )  # fmt: skip
    check_rewards(calls, [f"http://10.0.0.2:{8100 + gpu}/v1" for gpu in range(8)])


def test_kubernetes_with_servers() -> None:
    found = {
        (each["kind"], each["metadata"]["name"]): each
        for each in yaml.safe_load_all((FOLDER / "kubernetes_rl.yaml").read_text())
    }
    job = found["Job", "counterpoint-trainer"]["spec"]["template"]["spec"]
    program, command, name, *settings, resume, which = job["containers"][0]["args"]
    assert (program, command, resume, which) == ("counterpoint", "train", "--resume", "auto")
    run = load_run(name, settings)
    assert isinstance(run, GrpoRun)
    assert (run.rollout.server.url_file, run.rollout.server.adapters) == ("/servers/urls", "http")
    assert job["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == run.launch.processes
    assert "/servers/urls" in job["initContainers"][0]["args"][0]
    (server,) = found["StatefulSet", "counterpoint-servers"]["spec"]["template"]["spec"]["containers"]
    given = server["args"][server["args"].index("--enable-lora") :]
    wanted = server_command(run, "vllm", 8000)
    assert given == wanted[wanted.index("--enable-lora") : wanted.index("--tensor-parallel-size")]
