#!/usr/bin/env bash
# Builds the program as a self-contained folder: artifacts/treeattn/treeattn starts without .NET installed.
# With --all also everything else: tests, benchmarks, and the emulated GPU that tests run the kernels on.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

if [ "${1:-}" = --all ]; then
  dotnet build TreeAttention.Distributed.sln --configuration Release --nologo --verbosity quiet
  if command -v cmake >/dev/null && command -v g++ >/dev/null; then
    cmake -S native -B artifacts/emulation -DTREEATTN_NATIVE_TESTS=OFF >/dev/null
    cmake --build artifacts/emulation -- --quiet
    echo "artifacts/emulation/libcuda_emulated.so"
  else
    echo "cmake or g++ is missing: no emulated GPU is built, and the tests that need it are skipped. scripts/setup.sh --native installs both." >&2
  fi
elif [ $# -gt 0 ]; then
  echo "build.sh: unknown argument '$1'; there is --all" >&2
  exit 2
fi
rm -rf artifacts/treeattn
dotnet publish src/TreeAttention.Cli --configuration Release --nologo --verbosity quiet --output artifacts/treeattn
echo "artifacts/treeattn/treeattn: $(artifacts/treeattn/treeattn --version)"
