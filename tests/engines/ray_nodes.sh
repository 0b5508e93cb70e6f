#!/usr/bin/env bash
# A Ray cluster at 127.0.0.1:6399: a head without cores and two nodes of one core, as long as the given command runs.
#   ray_nodes.sh FOLDER COMMAND...       (within a network of its own: without one Ray listens to the outside)
set -euo pipefail
folder=$1
shift
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0
trap 'kill $(jobs -p) 2>/dev/null || true; sleep 2; kill -9 $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 143' TERM

# One after the other: two nodes that start at once may fail to. Short folder: it holds sockets.
start() {
  ray start --block --object-store-memory=100000000 "${@:2}" >"$folder/$1.log" 2>&1 &
  for _ in $(seq 120); do
    if grep -q "runtime started" "$folder/$1.log"; then return; fi
    sleep 0.5
  done
  echo "error: Ray's $1 has not started; see $folder/$1.log" >&2
  exit 1
}
start head --head --port=6399 --num-cpus=0 --include-dashboard=false --disable-usage-stats --temp-dir="$folder"
start node1 --address=127.0.0.1:6399 --num-cpus=1
start node2 --address=127.0.0.1:6399 --num-cpus=1
"$@" &
wait $!
