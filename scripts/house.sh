#!/usr/bin/env bash
# Prints the counts that keep the house liveable: files of src, median and longest, rooms, circles of rooms, public types.
# The same tests hold them in every run of scripts/test.sh; this builds what they need and shows the numbers.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
dotnet build tests/TreeAttention.Tests --configuration Release --nologo --verbosity quiet
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
dotnet artifacts/bin/TreeAttention.Tests/release/TreeAttention.Tests.dll -noColor -showLiveOutput \
  -class TreeAttention.Tests.Architecture.HouseTests -class TreeAttention.Tests.Architecture.FloorsTests >"$log" 2>&1 || status=$?
sed -n 's/^.*\[OUTPUT\] *//p' "$log"
if [ "$status" -ne 0 ]; then cat "$log" >&2; fi
exit "$status"
