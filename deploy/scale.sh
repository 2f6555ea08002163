#!/bin/sh
# Makes a change of `tandem planner` in the system of docker-compose.yml: docs/planner.md.
#
#   tandem planner --apply deploy/scale.sh              workers of the default profile
#   tandem planner --apply "deploy/scale.sh mock"       of the profile mock, gpu or rdma
set -eu

suffix=${1:+-$1}

# Compose by itself would end the newest container, whichever was drained. A worker's name is its role and its container.
if [ -n "$PLANNER_WORKER" ]; then
    docker stop "${PLANNER_WORKER#*-}"
    docker rm "${PLANNER_WORKER#*-}"
fi

# The services are named, or compose would scale all others to what the file says.
set -- "prefill$suffix" "decode$suffix"
scale="--scale prefill$suffix=$PLANNER_PREFILL --scale decode$suffix=$PLANNER_DECODE"
if [ "$PLANNER_UNIFIED" -gt 0 ]; then
    set -- "$@" "unified$suffix"
    scale="$scale --scale unified$suffix=$PLANNER_UNIFIED"
fi
# shellcheck disable=SC2086
docker compose up -d --no-deps --no-recreate $scale "$@"
