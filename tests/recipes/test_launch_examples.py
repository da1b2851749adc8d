"""The shipped SLURM and SkyPilot examples, run with stand-ins for the cluster's own commands."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import yaml

from counterpoint.configs.load import load_run
from counterpoint.recipes.commands.launch import launch_command

FOLDER = Path(__file__).parents[2] / "docs" / "launch"
STAND_INS = {
    "scontrol": '#!/bin/bash\n[ "$*" = "show hostnames node[1-2]" ] && printf "node1\\nnode2\\n"\n',
    "srun": '#!/bin/bash\nshift\nfor n in 0 1; do SLURM_NODEID=$n "$@"; done\n',
    "counterpoint": "#!/usr/bin/env python3\nimport json, os, sys\n"
    "print(json.dumps({'arguments': sys.argv[1:], 'environment': dict(os.environ)}))\n",
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
