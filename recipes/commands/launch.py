"""Several processes: the command and the environment in which torch's launcher starts this program again in each.

The variables for FSDP2 are those that `accelerate launch --use_fsdp` sets; a run file may as well be started by it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from counterpoint.configs.errors import ConfigError
from counterpoint.configs.schema import LaunchSettings

SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGHUP")
SAVE_SECONDS = 300
"""What the launcher gives its processes to write a checkpoint, before it kills them; torch's own are 30."""
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GptOssDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
}


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher (ours, accelerate's, torchrun) started this process."""
    return "LOCAL_RANK" in environment


def check_launched(launch: LaunchSettings, environment: Mapping[str, str] = os.environ) -> None:
    """ConfigError where another launcher shards and the run file does not ask for it, or the other way round."""
    sharded = environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if sharded and launch.strategy != "fsdp2":
        raise ConfigError("the launcher of this process shards the model: set launch.strategy: fsdp2")
    if launch.strategy == "fsdp2" and not sharded:
        raise ConfigError(
            "launch.strategy: fsdp2, but the launcher that started this process did not switch it on: start it with "
            "`counterpoint train`, or with `accelerate launch --use_fsdp --fsdp_version 2`"
        )


def launch_command(
    launch: LaunchSettings,
    arguments: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    signals: Sequence[str] = SIGNALS,
) -> list[str]:
    """The command line that runs `counterpoint` with `arguments` in every process of this node.

    On several nodes the rank and the first node's address come from the environment (NODE_RANK or SLURM_NODEID,
    MASTER_ADDR, MASTER_PORT); ConfigError where they are missing.
    """
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={launch.processes}"]
    command += _rendezvous(launch.nodes, environment) if launch.nodes > 1 else ["--standalone"]
    command += [f"--signals-to-handle={','.join(signals)}", f"--shutdown-timeout={SAVE_SECONDS}"]
    return [*command, "--module", "counterpoint.recipes.cli", *arguments]


def signals_to_handle() -> Sequence[str]:
    """Those that end the run. A lost terminal sends SIGHUP to the launcher: started at one, it ignores that."""
    from counterpoint.train.run.signals import has_terminal

    if not has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        return SIGNALS
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # kept across the start of the launcher and of its processes
    return [name for name in SIGNALS if name != "SIGHUP"]


def launch_environment(
    launch: LaunchSettings, device: str, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Environment of the processes. ConfigError where `device` cannot shard."""
    if launch.strategy == "ddp":
        return dict(environment)
    if device == "cpu":
        raise ConfigError("launch.strategy: fsdp2 shards over GPUs, and this run is on a CPU: use ddp")
    return {**environment, **FSDP2}


def _rendezvous(nodes: int, environment: Mapping[str, str]) -> list[str]:
    rank = environment.get("NODE_RANK", environment.get("SLURM_NODEID"))
    address, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT", "29500")
    if rank is None or address is None:
        raise ConfigError(
            f"launch.nodes is {nodes}: set MASTER_ADDR (the first node) and NODE_RANK (0 to {nodes - 1}) on each node, "
            "or start the command with srun and MASTER_ADDR"
        )
    return [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]
