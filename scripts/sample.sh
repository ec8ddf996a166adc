#!/usr/bin/env bash
# Packs the library as a NuGet package, and builds and runs samples/Decode and samples/Serving, which use nothing else.
# An argument is how many seconds the second one serves.
set -euo pipefail
cd "$(dirname "$0")/.."
dotnet pack src/TreeAttention.Package --configuration Release --nologo --verbosity quiet --output artifacts/packages
# A package of the same version would be taken from where it was unpacked before.
rm -rf artifacts/sample/packages/treeattention
for sample in Decode Serving; do
  dotnet restore samples/$sample --packages artifacts/sample/packages --verbosity quiet --force
  dotnet build samples/$sample --configuration Release --no-restore --nologo --verbosity quiet --output artifacts/sample/bin/$sample
done
dotnet artifacts/sample/bin/Decode/Decode.dll
dotnet artifacts/sample/bin/Serving/Serving.dll "${1:-20}"
