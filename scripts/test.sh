#!/usr/bin/env bash
# Sets up, builds, runs every test, and ends with one line that counts what really ran.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --mpi --numpy --native
scripts/build.sh --all
dotnet format TreeAttention.Distributed.sln --verify-no-changes --no-restore --verbosity quiet

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
dotnet artifacts/bin/TreeAttention.Tests/release/TreeAttention.Tests.dll -noColor 2>&1 | tee "$log" || status=$?

# The runner's summary: "Total: 1412, Errors: 0, Failed: 1, Skipped: 2, Not Run: 0"; errors are failures outside a test.
count() { grep -a 'Total: ' "$log" | tail -1 | sed -n "s/.*$1: \([0-9]*\).*/\1/p"; }
total=$(count Total) failed=$(count Failed) errors=$(count Errors) skipped=$(count Skipped)
if [ -z "$total" ]; then
  echo "The test run ended without a summary (exit $status)." >&2
  echo "0 passed, 1 failed"
  exit 1
fi
failed=$((failed + errors))
passed=$((total - failed - skipped))
echo "$passed passed, $failed failed, $skipped skipped"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
