#!/usr/bin/env bash
# Makes sure that what the other scripts need is there: the .NET 10 SDK (required) and, with --mpi, Open MPI and MPICH,
# with --native what builds the emulated GPU and its bindings.
# Installs Debian packages when it may; otherwise it says exactly what to install. Sourced or called; safe to repeat.
set -euo pipefail

sdk_major() { dotnet --version 2>/dev/null | cut -d. -f1; }

if [ "$(sdk_major)" != 10 ]; then
  echo "The .NET 10 SDK is not installed (dotnet --version says '$(dotnet --version 2>/dev/null || echo nothing)')." >&2
  echo "Install it from https://dot.net or with your distribution's package dotnet-sdk-10.0, then run this again." >&2
  exit 69
fi

missing=()
for need in "$@"; do
  case "$need" in
    --mpi)
      command -v mpiexec.openmpi >/dev/null || missing+=(openmpi-bin)
      command -v mpiexec.mpich >/dev/null || missing+=(mpich)
      ;;
    --native)
      command -v g++ >/dev/null || missing+=(g++)
      command -v cmake >/dev/null || missing+=(cmake make)
      command -v castxml >/dev/null || missing+=(castxml)
      ;;
    --numpy) /usr/bin/python3 -c 'import numpy' 2>/dev/null || missing+=(python3-numpy) ;;
    *) echo "setup.sh: unknown need '$need'" >&2; exit 2 ;;
  esac
done

[ ${#missing[@]} -eq 0 ] && exit 0
install=(apt-get install -y --no-install-recommends "${missing[@]}")
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  as_root=()
elif command -v apt-get >/dev/null && sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "Missing: ${missing[*]}. To have them: sudo ${install[*]}" >&2
  exit 0
fi
echo "Installing ${missing[*]} ..."
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update -qq && DEBIAN_FRONTEND=noninteractive "${as_root[@]}" "${install[@]}"; } >"$log" 2>&1; then
  tail -5 "$log" >&2
  echo "Could not install ${missing[*]}; what needs them is skipped and says so. To have them: sudo ${install[*]}" >&2
fi
rm -f "$log"
