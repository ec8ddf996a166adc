#!/usr/bin/env bash
# Writes the bindings in src/TreeAttention.Interop/{Cuda,Nccl} and the kernels' arguments in src/TreeAttention.Devices/Cuda/Kernels again:
# castxml reads the headers, our generator writes what the .rsp files name.
#   regenerate.sh            from the declarations beside this script
#   regenerate.sh FOLDER     from the vendor's cuda.h and nvrtc.h in FOLDER; NCCL's and the kernels' from ours
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
for library in cuda nvrtc nccl kernels; do
  response=native/bindings/$library.rsp
  output=$(sed -n '/^--output$/{n;p}' "$response")
  from=$headers
  language=(-x c --castxml-cc-gnu-c gcc)
  case $library in
    nccl) from=native/bindings/declarations ;; # later headers have more settings than we set
    kernels) from=native/kernels; language=(-x c++ -Wno-pragma-once-outside-header --castxml-cc-gnu g++) ;;
  esac
  castxml --castxml-output=1 "${language[@]}" -o "$work/$library.xml" "$from/$(sed -n '/^--file$/{n;p}' "$response")"
  dotnet artifacts/bin/Generator/release/Generator.dll "$work/$library.xml" "@$response" "$work/$library.g.cs"
  if [ -n "$check" ]; then
    cmp "$work/$library.g.cs" "$output" || status=1
  else
    cp "$work/$library.g.cs" "$output"
  fi
done
exit $status
