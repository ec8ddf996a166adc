#!/usr/bin/env bash
# The long native tests: the full grid of shapes over several seeds, plain and under AddressSanitizer and
# ThreadSanitizer, and every kernel instance by the compiler of real devices (scripts/fetch-nvrtc.sh; skipped where that cannot be had).
# Needs cmake, a C++20 compiler and util-linux (setarch); no GPU.
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
"$tests/attend_all" 20 all
ASAN_OPTIONS=detect_leaks=1 "$tests/attend_address" 2 grid
ASAN_OPTIONS=detect_leaks=1 "$tests/attend_address" 6
ASAN_OPTIONS=detect_leaks=1 "$tests/states_address" 6
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/attend_thread" 1 grid
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/attend_thread" 4
TSAN_OPTIONS=halt_on_error=1 setarch -R "$tests/states_thread" 4
echo "nightly: all passed"
