#!/usr/bin/env bash
# Sets up, builds, runs every test (the kernels' own on the CPU included), and ends with one line that counts what really ran.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh --mpi --numpy --native
scripts/build.sh --all
# Blanks, and the order of imports (style by a rule that the build knows already): the build has held everything else.
dotnet format whitespace TreeAttention.Distributed.sln --verify-no-changes --no-restore --verbosity quiet
dotnet format style TreeAttention.Distributed.sln --diagnostics IDE0065 --verify-no-changes --no-restore --verbosity quiet

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
dotnet artifacts/bin/TreeAttention.Tests/release/TreeAttention.Tests.dll -noColor 2>&1 | tee "$log" || status=$?

# The runner's summary: "Total: 1412, Errors: 0, Failed: 1, Skipped: 2, Not Run: 0"; errors are failures outside a test.
count() { grep -a 'Total: ' "$log" | tail -1 | sed -n "s/.*$1: \([0-9]*\).*/\1/p"; }
if [ -z "$(count Total)" ]; then
  echo "The test run ended without a summary (exit $status)." >&2
  echo "0 passed, 1 failed"
  exit 1
fi
failed=$(($(count Failed) + $(count Errors)))
names=$(grep -a '\[FAIL\]' "$log" || test $? -eq 1)
skipped=$(count Skipped)
passed=$(($(count Total) - failed - skipped))

if command -v cmake >/dev/null && command -v g++ >/dev/null; then
  # The compiler of real devices, for the compile proof; without it those tests count as skipped.
  nvrtc=$(scripts/fetch-nvrtc.sh) || echo "The kernels are not compiled for real devices." >&2
  cmake -S native -B artifacts/native >/dev/null
  cmake --build artifacts/native --parallel 2 -- --quiet
  TREEATTN_NVRTC_LIBRARY=$nvrtc ctest --test-dir artifacts/native -LE nightly --parallel 2 --output-on-failure 2>&1 | tee "$log" || status=$?
  # "95% tests passed, 2 tests failed out of 42"; a test that could not run says "(Skipped)" in its line.
  native_total=$(sed -n 's/.*tests failed out of \([0-9]*\).*/\1/p' "$log" | tail -1)
  names+=$'\n'$(grep -a '\*\*\*Failed\|\*\*\*Exception\|\*\*\*Timeout\|\*\*\*Not Run' "$log" || test $? -eq 1)
  native_failed=$(sed -n 's/.* \([0-9]*\) tests failed out of.*/\1/p' "$log" | tail -1)
  native_skipped=$(grep -ac '\*\*\*Skipped' "$log") || native_skipped=0
  failed=$((failed + ${native_failed:-1}))
  skipped=$((skipped + native_skipped))
  passed=$((passed + ${native_total:-0} - ${native_failed:-0} - native_skipped))
else
  echo "cmake or g++ is missing: the kernels' own tests did not run." >&2
  skipped=$((skipped + 1))
fi

# The library as its users get it: packed, and used by a project of its own.
if scripts/sample.sh; then passed=$((passed + 1)); else failed=$((failed + 1)); names+=$'\n'"scripts/sample.sh"; fi
if [ -n "${names//$'\n'/}" ]; then printf 'Failed:\n%s\n' "$names"; fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$status" -eq 0 ] && [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
