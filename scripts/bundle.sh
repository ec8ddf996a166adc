#!/usr/bin/env bash
# Makes one archive for a machine that has nothing but a GPU driver and NVRTC: the program, Open MPI for its ranks, the GPU
# check and the GPU benchmark. Unpack it anywhere, run ./gpu-check.sh, then ./gpu-bench.sh.
# Usage: scripts/bundle.sh [--no-build]   (--no-build takes the program that scripts/build.sh has built)
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
  "") scripts/setup.sh --mpi && scripts/build.sh ;;
  --no-build) ;;
  *) echo "bundle.sh: unknown argument '$1'; there is --no-build" >&2; exit 2 ;;
esac

folder=artifacts/treeattn-bundle
rm -rf "$folder" "$folder.tar.xz"
mkdir -p "$folder/samples"
cp artifacts/treeattn/treeattn LICENSE "$folder/"
scripts/bundle-open-mpi.sh "$folder"
cp -r scripts/gpu/. "$folder/"
rm -rf "$folder"/*/__pycache__
cp samples/data/*.npy "$folder/samples/"

# The same files give the same archive.
tar --create --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --directory artifacts treeattn-bundle | xz --threads=0 -1 >"$folder.tar.xz"
bytes=$(stat --format=%s "$folder.tar.xz")
echo "$folder.tar.xz: $((bytes / 1000)) kB, treeattn $("$folder/treeattn" --version)"
[ "$bytes" -lt 25000000 ] || { echo "The archive has grown beyond 25 MB." >&2; exit 1; }
