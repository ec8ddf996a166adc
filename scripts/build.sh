#!/usr/bin/env bash
# Builds everything, and the program as a self-contained folder: artifacts/treeattn/treeattn starts without .NET installed.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh

dotnet build TreeAttention.Distributed.sln --configuration Release --nologo --verbosity quiet
rm -rf artifacts/treeattn
dotnet publish src/TreeAttention.Cli --configuration Release --nologo --verbosity quiet --output artifacts/treeattn
echo "artifacts/treeattn/treeattn: $(artifacts/treeattn/treeattn --version)"
