#!/usr/bin/env bash
# Builds the program as a self-contained folder: artifacts/treeattn/treeattn starts without .NET installed.
# With --all also everything else: tests and benchmarks.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

if [ "${1:-}" = --all ]; then
  dotnet build TreeAttention.Distributed.sln --configuration Release --nologo --verbosity quiet
elif [ $# -gt 0 ]; then
  echo "build.sh: unknown argument '$1'; there is --all" >&2
  exit 2
fi
rm -rf artifacts/treeattn
dotnet publish src/TreeAttention.Cli --configuration Release --nologo --verbosity quiet --output artifacts/treeattn
echo "artifacts/treeattn/treeattn: $(artifacts/treeattn/treeattn --version)"
