#!/usr/bin/env bash
# Sets up what is missing, builds, and runs the main job: exact attention over real inputs and over a long synthetic context,
# every tree reduction beside ring attention, each held against float64; in-process, and under mpiexec where an MPI is.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --mpi
scripts/build.sh

treeattn=artifacts/treeattn/treeattn
data=samples/data
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

launch() { # launcher, ranks, arguments of treeattn
  local launcher=$1 ranks=$2
  shift 2
  local options=()
  if [ "$launcher" = mpiexec.openmpi ]; then
    options=(--oversubscribe --bind-to none)
    [ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)
  fi
  TERM=dumb "$launcher" "${options[@]}" -n "$ranks" "$treeattn" "$@"
}

echo
echo "== Real inputs: 16 queries over 8,192 keys of a small language model, 4 in-process ranks =="
"$treeattn" attend --query $data/query.npy --key $data/key.npy --value $data/value.npy --causal \
  --ranks 4 --output "$out/output.npy" --lse "$out/lse.npy" --verify
echo
"$treeattn" bench --query $data/query.npy --key $data/key.npy --value $data/value.npy --causal --ranks 4 -n 20

echo
echo "== 131,072 synthetic keys, 32 query and 8 KV heads of 128, float32, 2 in-process ranks =="
"$treeattn" bench -b 128K --ranks 2 -n 5 -w 1

for launcher in mpiexec.openmpi mpiexec.mpich; do
  command -v "$launcher" >/dev/null || { echo; echo "== $launcher is not installed: skipped =="; continue; }
  echo
  echo "== The same real inputs under $launcher, 2 processes =="
  launch "$launcher" 2 attend --query $data/query.npy --key $data/key.npy --value $data/value.npy --causal \
    --output "$out/$launcher.npy" --verify
  launch "$launcher" 2 bench --query $data/query.npy --key $data/key.npy --value $data/value.npy --causal -n 20
done
