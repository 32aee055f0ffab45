#!/bin/bash
# A cohort as a Slurm array: sbatch --array=1-8 slurm.sh pairs.csv out
# Each task registers one part of the pairs. All tasks write into the same folder. If you submit the
# same array again, it does only what is missing.
#SBATCH --job-name=dinoreg-rt
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=08:00:00
set -eu
table=$1 output=$2
shift 2
parts=${SLURM_ARRAY_TASK_COUNT:-1}
exec dinoreg-rt cohort "$table" -o "$output" --shard "${SLURM_ARRAY_TASK_ID:-1}/$parts" "$@"
