#!/usr/bin/env bash
# Packs the library as a NuGet package, and builds and runs samples/Decode, which uses nothing else.
set -euo pipefail
cd "$(dirname "$0")/.."
dotnet pack src/TreeAttention.Package --configuration Release --nologo --verbosity quiet --output artifacts/packages
# A package of the same version would be taken from where it was unpacked before.
rm -rf artifacts/sample/packages/treeattention
dotnet restore samples/Decode --packages artifacts/sample/packages --verbosity quiet --force
dotnet build samples/Decode --configuration Release --no-restore --nologo --verbosity quiet --output artifacts/sample/bin
dotnet artifacts/sample/bin/Decode.dll
