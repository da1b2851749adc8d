#!/bin/bash
# Learning from rewards under SLURM: one node trains, the others sample
#   sbatch --nodes=3 docs/launch/slurm_rl.sh grpo/gpt_oss_20b_servers [section.key=value ...]
#
# The servers of the other nodes, one vLLM a GPU, get each step's adapter over HTTP from the first node. SLURM sends
# SIGTERM five minutes before the limit: a checkpoint is written, and the same command, or a requeued job, continues from
# it, with other servers if there are others by then.
#SBATCH --job-name=counterpoint-rl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@300
#SBATCH --output=slurm-%j.log

set -euo pipefail
[ $# -ge 1 ] || { echo "usage: sbatch docs/launch/slurm_rl.sh RUN_FILE [section.key=value ...]" >&2; exit 2; }
MODEL=${MODEL:-openai/gpt-oss-20b}
RANK=${RANK:-16}  # lora.rank of the run file, rounded up to 8, 16, 32 or 64

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ ${#hosts[@]} -ge 2 ] || { echo "it needs two nodes or more: one trains, the others sample" >&2; exit 2; }
COUNTERPOINT_ADAPTERS_URL=http://${hosts[0]}:8765
COUNTERPOINT_ADAPTERS_TOKEN=$(head -c 32 /dev/urandom | base64 | tr -d '/+=')
VLLM_ALLOW_RUNTIME_LORA_UPDATING=1
export COUNTERPOINT_ADAPTERS_URL COUNTERPOINT_ADAPTERS_TOKEN VLLM_ALLOW_RUNTIME_LORA_UPDATING MODEL RANK

urls=()
for host in "${hosts[@]:1}"; do
    for ((gpu = 0; gpu < SLURM_GPUS_ON_NODE; gpu++)); do urls+=("http://$host:$((8100 + gpu))/v1"); done
done
servers=$(IFS=,; echo "${urls[*]}")

# One vLLM a GPU on each node but the first; they end with the job.
# shellcheck disable=SC2016
srun --nodes=$((${#hosts[@]} - 1)) --exclude="${hosts[0]}" --kill-on-bad-exit=0 bash -c '
    for ((gpu = 0; gpu < SLURM_GPUS_ON_NODE; gpu++)); do
        CUDA_VISIBLE_DEVICES=$gpu vllm serve "$MODEL" --host 0.0.0.0 --port $((8100 + gpu)) --enable-lora \
            --max-lora-rank "$RANK" --max-loras 2 --logprobs-mode processed_logprobs --generation-config vllm &
    done
    wait' &

srun --nodes=1 --nodelist="${hosts[0]}" --kill-on-bad-exit=1 counterpoint train "$@" rollout.engine=server \
    "rollout.server.url=[$servers]" rollout.server.adapters=http rollout.server.wait=1800 launch.serve.servers=0 \
    "launch.processes=$SLURM_GPUS_ON_NODE" launch.strategy=fsdp2 --resume auto
