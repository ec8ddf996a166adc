#!/usr/bin/env bash
# The long tests of the GPU path, without a GPU: the full grid of shapes over several seeds, plain and under AddressSanitizer and
# ThreadSanitizer; every kernel instance by the compiler of real devices (scripts/fetch-nvrtc.sh; skipped where that cannot be had);
# every mutant of the mask; the whole of treeattn verify over the emulated GPU in four orders of its work.
# Needs what scripts/test.sh needs, and util-linux (setarch).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${NATIVE_BUILD:-artifacts/native}
jobs=${JOBS:-$(nproc)}
cmake -S native -B "$build" -DCMAKE_BUILD_TYPE=
cmake --build "$build" --parallel "$jobs"
nvrtc=$(scripts/fetch-nvrtc.sh) || echo "The kernels are not compiled for real devices." >&2
TREEATTN_NVRTC_LIBRARY=$nvrtc ctest --test-dir "$build" --output-on-failure --parallel "$jobs"

tests=$build/tests
"$tests/attend_all" 3 grid
"$tests/states_plain" 20
"$tests/precise_plain" 20
"$tests/attend_all" 20 all
ASAN_OPTIONS=detect_leaks=1 "$tests/attend_address" 2 grid
ASAN_OPTIONS=detect_leaks=1 "$tests/attend_address" 6
ASAN_OPTIONS=detect_leaks=1 "$tests/prefill_address" 1 grid
ASAN_OPTIONS=detect_leaks=1 "$tests/prefill_address" 6
ASAN_OPTIONS=detect_leaks=1 "$tests/states_address" 6
ASAN_OPTIONS=detect_leaks=1 "$tests/precise_address" 6
ASAN_OPTIONS=detect_leaks=1 "$tests/append_address" 10
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/attend_thread" 1 grid
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/attend_thread" 4
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/prefill_thread" 3
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/states_thread" 4
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/precise_thread" 4
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/append_thread" 10

scripts/build.sh --all
# All mutants of the mask, where an ordinary run tries one of each expression; and more counts of ranks.
TREEATTN_TEST_MASK_MUTANTS=all dotnet artifacts/bin/TreeAttention.Tests/release/TreeAttention.Tests.dll -noColor \
  -class TreeAttention.Tests.Verification.MaskMutantTests
for ranks in 2 4 5 6 7; do
  artifacts/treeattn/treeattn verify --ranks $ranks
done
for seed in 0 1 2 3; do
  for ranks in 1 3; do
    TREEATTN_CUDA=emulated TREEATTN_EMULATION_SEED=$seed artifacts/treeattn/treeattn verify --device cuda --ranks $ranks
  done
done
echo "nightly: all passed"
