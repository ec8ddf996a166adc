#!/usr/bin/env bash
# Writes the bindings in src/TreeAttention.Interop/Cuda again: castxml reads the headers, our generator writes what the .rsp files name.
#   regenerate.sh            from the declarations beside this script
#   regenerate.sh FOLDER     from the vendor's cuda.h and nvrtc.h in FOLDER
#   regenerate.sh --check    changes nothing, fails when the committed bindings are not what would be written
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v castxml >/dev/null || { echo "castxml is missing: apt-get install castxml (Debian main)." >&2; exit 69; }

headers=native/bindings/declarations
check=
if [ "${1:-}" = --check ]; then check=yes; elif [ $# -gt 0 ]; then headers=$1; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
dotnet build native/bindings/Generator --configuration Release --nologo --verbosity quiet

status=0
for library in cuda nvrtc; do
  response=native/bindings/$library.rsp
  output=$(sed -n '/^--output$/{n;p}' "$response")
  castxml --castxml-output=1 -x c --castxml-cc-gnu-c gcc -o "$work/$library.xml" "$headers/$(sed -n '/^--file$/{n;p}' "$response")"
  dotnet artifacts/bin/Generator/release/Generator.dll "$work/$library.xml" "@$response" "$work/$library.g.cs"
  if [ -n "$check" ]; then
    cmp "$work/$library.g.cs" "$output" || status=1
  else
    cp "$work/$library.g.cs" "$output"
  fi
done
exit $status
