#!/usr/bin/env bash
# Measures what the README claims, into benchmarks/results/NAME: every figure a ratio within one run of interleaved rounds.
# Takes some minutes on an otherwise idle machine. Usage: scripts/measure.sh [NAME]
# Without a name the folder is named by CPU, cores, date and commit: amd-epyc-2-cores/2026-11-21-8b42f10.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -le 1 ] || { echo "usage: scripts/measure.sh [NAME]" >&2; exit 2; }
cpu=$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)
slug=$(echo "$cpu" | tr '[:upper:]' '[:lower:]' | tr -cs 'a-z0-9' '-')
name=${1:-${slug%-}-$(nproc)-cores/$(date -u +%Y-%m-%d)-$(git rev-parse --short HEAD)}
out=benchmarks/results/$name
[ -e "$out" ] && { echo "$out exists; results are never overwritten" >&2; exit 73; }
scripts/build.sh
treeattn=artifacts/treeattn/treeattn
mkdir -p "$out"

run() { # name of the results file, command
  local name=$1
  shift
  echo "$*" | tee -a "$out/commands.txt"
  "$@" --json | grep "^{" >"$out/$name.jsonl" # decode says in words what it did, before its object
}

launch() { # results file, launcher, arguments of treeattn
  local name=$1 launcher=$2
  shift 2
  command -v "$launcher" >/dev/null || { echo "$launcher is not installed: skipped" | tee -a "$out/commands.txt"; return; }
  local options=()
  if [ "$launcher" = mpiexec.openmpi ]; then
    options=(--oversubscribe --bind-to none)
    [ "$(id -u)" = 0 ] && options+=(--allow-run-as-root)
  fi
  run "$name" env TERM=dumb "$launcher" "${options[@]}" -n 2 "$treeattn" "$@"
}

for dtype in f32 bf16 f16 f8e4m3; do
  run "decode-$dtype" "$treeattn" bench -b 64K -e 256K -f 4 --dtype $dtype --algorithm single --ceiling -n 15
done
run prefill-f32 "$treeattn" bench -b 2K -e 8K -f 2 --query-len 0 --causal --heads 8 --kv-heads 8 --algorithm single --ceiling -n 7 -w 1
# The same kernels as a machine without AVX-512 runs them.
for dtype in f32 bf16 f16; do
  run "decode-$dtype-avx2" env DOTNET_EnableAVX512=0 "$treeattn" bench -b 64K --dtype $dtype --algorithm single --ceiling -n 15
done
run prefill-f32-avx2 env DOTNET_EnableAVX512=0 "$treeattn" bench -b 2K -e 8K -f 2 --query-len 0 --causal --heads 8 --kv-heads 8 \
  --algorithm single --ceiling -n 7 -w 1
run tree-and-ring-in-process "$treeattn" bench -b 64K --ranks 2 --ceiling -n 15
run decode-10000-steps "$treeattn" decode --context 128K --steps 10000 --heads 8 --kv-heads 2 --head-dim 64 --dtype bf16 --ranks 2 --causal
run reproducible "$treeattn" bench -b 64K --ranks 2 --reproducible --ceiling -n 15
for launcher in mpiexec.openmpi mpiexec.mpich; do
  launch "tree-and-ring-$launcher" $launcher bench -b 64K --ceiling -n 15
  launch "combine-$launcher" $launcher bench --combine -n 3000 -w 300
done

{
  echo "# $name"
  echo
  echo "Commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' with local changes'); $(date -u +%Y-%m-%d)."
  echo "Machine: $cpu (family $(sed -n 's/^cpu family\s*: //p' /proc/cpuinfo | head -1)), $(nproc) cores, \
$(free -g | awk '/^Mem/ {print $2}') GiB; flags: $(grep -o -w -E 'avx2|fma|f16c|avx512f|avx512bw|avx512_bf16' /proc/cpuinfo | sort -u | tr '\n' ' ')"
  echo "Commands: commands.txt (scripts/measure.sh $name). Columns: docs/bench.md."
} >"$out/README.md"
echo "$out"
