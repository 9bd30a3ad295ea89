#!/usr/bin/env bash
# One training run on GPU nodes under Slurm, one process per GPU.
#
#   sbatch --nodes=16 --gpus-per-node=8 --ntasks-per-node=8 tools/launch/slurm.sh RECIPE.gin --run-dir /shared/runs/mine
#
# Arguments go to `moshijax train`. Slurm says which process is which, so nothing else is needed; the run directory must
# be on a file system that all nodes see. Five minutes before the time limit, and when the job is preempted, every
# process gets SIGTERM: the run saves, ends with 75 and is put back into the queue, and resumes when it starts again. A
# lost node ends it with another code; Slurm queues it again if it saw the node fail, else up to RESTARTS times (5).
#
# DRY_RUN=1 prints the command instead of running it. ACTIVATE is sourced first on every node (a virtual environment).
#SBATCH --job-name=moshijax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=moshijax-%j.log
set -uo pipefail
[ $# -gt 0 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
if [ -n "${ACTIVATE:-}" ]; then
  # shellcheck disable=SC1090
  source "$ACTIVATE"
fi

# One task that ends takes the others along; a killed step must not wait for processes that wait for each other.
step=(srun --kill-on-bad-exit=1 --wait=120 --label moshijax train "$@")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${step[@]}"
  echo
  exit 0
fi

"${step[@]}"
code=$?
if [ $code -eq 75 ] || { [ $code -ne 0 ] && [ $code -ne 2 ] && [ $code -ne 3 ] &&
  [ "${SLURM_RESTART_COUNT:-0}" -lt "${RESTARTS:-5}" ]; }; then
  echo "moshijax ended with $code: job $SLURM_JOB_ID goes back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
