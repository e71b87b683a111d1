#!/bin/bash

# Parameters
#SBATCH --account='project 1'
#SBATCH --cpus-per-task=12
#SBATCH --exclusive
#SBATCH --export=ALL
#SBATCH --gpus-per-node=8
#SBATCH --job-name=sft-demo-000000
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/runs/it'"'"'s a run/logs/batch-%j.log'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@90
#SBATCH --time=60

# setup
# The job imports the snapshot that was taken when it was submitted, whatever happens to the checkout;
# a jobs/ folder in the working directory must not shadow it.
export PYTHONPATH='/runs/it'"'"'s a run/code'
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
cd '/runs/it'"'"'s a run'
# What lies here is run, and a pickle is among it.
[ -O . ] || { echo "$PWD belongs to another user; nothing was run" >&2; exit 2; }
# A supervisor that was killed (128 + SIGKILL) starts once more in the same allocation, three times at most.
trap '[ $? -eq 137 ] && [ "${TUNEYARD_STARTS:-1}" -lt 4 ] && TUNEYARD_STARTS=$((TUNEYARD_STARTS + 1)) exec bash "$0"' EXIT
export TUNEYARD_STARTS=${TUNEYARD_STARTS:-1}
module load cuda/13.0
# Where the launcher was cut off after sbatch's yes, the pickle has not been named after the job.
[ -e submitit/${SLURM_JOB_ID}_submitted.pkl ] || ln -s supervisor.pkl submitit/${SLURM_JOB_ID}_submitted.pkl 2>/dev/null

# command
export SUBMITIT_EXECUTOR=slurm
'/shared/my venv/bin/python' -u -m submitit.core._submit '/runs/it'"'"'s a run/submitit'
