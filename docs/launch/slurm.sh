#!/bin/bash
# Two nodes of eight GPUs under SLURM: sbatch docs/launch/slurm.sh RUN_FILE [section.key=value ...]
#
# One task a node; counterpoint starts the node's processes itself. Run folder, data and cache are on a disk that all
# nodes share. SLURM sends SIGTERM five minutes before the limit: a checkpoint is written, and the same command, or a
# requeued job, continues from it, on any number of nodes.
#SBATCH --job-name=counterpoint
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.log

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch docs/launch/slurm.sh RUN_FILE [section.key=value ...]" >&2; exit 2; }

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${hosts[0]}
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT

srun --kill-on-bad-exit=1 counterpoint train "$@" \
    "launch.nodes=$SLURM_JOB_NUM_NODES" "launch.processes=$SLURM_GPUS_ON_NODE" launch.strategy=fsdp2 --resume auto
