#!/usr/bin/env bash
# Sets up, builds, runs every test, and ends with one line that counts what really ran.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --mpi --numpy
scripts/build.sh
dotnet format TreeAttention.Distributed.sln --verify-no-changes --no-restore --verbosity quiet

results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
status=0
dotnet artifacts/bin/TreeAttention.Tests/release/TreeAttention.Tests.dll --no-progress --results-directory "$results" \
  2>&1 | tee "$results/log" || status=$?
passed=$(sed -n 's/^ *succeeded: //p' "$results/log" | tail -1)
failed=$(sed -n 's/^ *failed: //p' "$results/log" | tail -1)
skipped=$(sed -n 's/^ *skipped: //p' "$results/log" | tail -1)
echo "${passed:-0} passed, ${failed:-1} failed, ${skipped:-0} skipped"
[ "$status" -eq 0 ] && [ "${passed:-0}" -gt 0 ]
