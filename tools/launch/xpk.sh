#!/usr/bin/env bash
# One training run on a slice of Cloud TPU hosts on GKE, through xpk (https://github.com/AI-Hypercomputer/xpk).
#
#   CLUSTER=my-cluster IMAGE=europe-docker.pkg.dev/p/r/moshijax:1 \
#     tools/launch/xpk.sh mine RECIPE.gin --run-dir gs://bucket/runs/mine
#
# The first argument names the workload, the rest goes to `moshijax train`. Every host of the slice runs the same command
# and learns from its environment which one it is. A run directory in a bucket needs it mounted as a folder (Cloud
# Storage FUSE), as logs and metrics are ordinary files.
#
# TPU_TYPE (v5p-256), SLICES (1), RESTARTS (20: after a preemption the run resumes from its last complete checkpoint),
# GRACE (120 s between SIGTERM and the kill) and ZONE, PROJECT (gcloud's) may be set; DRY_RUN=1 prints the command.
set -euo pipefail
[ $# -gt 1 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2; }
name=$1
shift
train=$(printf '%q ' moshijax train --distributed "$@")
command=(xpk workload create
  --workload "$name"
  --cluster "${CLUSTER:?name the GKE cluster in CLUSTER}"
  --docker-image "${IMAGE:?name a container image with moshijax and its extras tpu and train in IMAGE}"
  --tpu-type "${TPU_TYPE:-v5p-256}"
  --num-slices "${SLICES:-1}"
  --max-restarts "${RESTARTS:-20}"
  --termination-grace-period-seconds "${GRACE:-120}"
  --command "$train")
[ -z "${ZONE:-}" ] || command+=(--zone "$ZONE")
[ -z "${PROJECT:-}" ] || command+=(--project "$PROJECT")
if [ -n "${DRY_RUN:-}" ]; then
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi
exec "${command[@]}"
