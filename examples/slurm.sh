#!/bin/bash
#SBATCH --job-name=robustft
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@300
#SBATCH --output=slurm-%x-%j.out

# One torchrun a node. Five minutes before the time is up Slurm sends SIGTERM: every process saves a
# checkpoint and ends, the job is queued again, and --resume latest goes on where it was. Options of
# `robustft train` come after the script's name:
#
#   sbatch examples/slurm.sh --method flyp --model ViT-B-16 --pretrained openai \
#       --data-location DATA --name my-run
set -euo pipefail

gpus=${SLURM_GPUS_ON_NODE:-1}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# robustft shares a node's processors among its processes: so many threads each.
export OMP_NUM_THREADS=$(( ${SLURM_CPUS_PER_TASK:-$gpus} / gpus ))

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "$gpus" \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m robustft train --resume latest "$@" &
work=$!

stop() {
    kill -TERM "$work" 2>/dev/null || true
    wait "$work" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap stop TERM
wait "$work"
