#!/usr/bin/env bash
# Measures this machine's GPU: decode and prefill of treeattn beside PyTorch's SDPA (flash, cuDNN, efficient) and FlexAttention on
# the same numbers in the same run, each checked against float64 first, and the latency of every reduction. A table on the
# screen; results.jsonl, a synced line for each measurement, and the environment with the command in the results folder.
#
#   ./gpu-bench.sh [decode|prefill|combine]... [--out FOLDER] [--seconds N] [--rounds N] [--match TEXT] [--dry-run]
#
# Without a part all three run, in less than 9 minutes (--seconds bounds it; what was left out for lack of time is listed). A
# single part has the whole time. --match measures only the cells whose name has TEXT in it; --dry-run prints the plan.
# Needs python3; where it has no PyTorch for CUDA, treeattn is measured alone.
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/libraries.sh"
[ -n "$python" ] || { echo "gpu-bench.sh: python3 is not installed; it drives the measurements." >&2; exit 69; }
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache} # compiled kernels
exec "$python" -B "$here/bench" --folder "$here" "$@"
