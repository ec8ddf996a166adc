#!/usr/bin/env bash
# Puts NVIDIA's run-time compiler NVRTC 12.4 (Debian trixie, non-free; needs no GPU) into a folder of your own, so that the
# kernels can be compiled for real devices: scripts/fetch-nvrtc.sh [FOLDER], by default artifacts/nvrtc.
# Package lists and files are private: the system's apt configuration and its packages stay as they are. The mirror is the
# one that apt uses on this machine. Where it cannot be reached, this says why and ends with 69.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "$0")/../artifacts/nvrtc}")
library=$folder/libnvrtc.so.12
[ -e "$library" ] && { echo "$library"; exit 0; }

unavailable() { echo "NVRTC was not fetched: $1" >&2; exit 69; }

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
command -v apt-get >/dev/null || unavailable "apt-get is not installed."
[ -e "$keyring" ] || unavailable "Debian's keys ($keyring) are not installed."
mirror=$(apt-get indextargets --format '$(ORIGIN) $(CODENAME) $(SITE)' 'Created-By: Packages' | awk '$1 == "Debian" && $2 !~ /-/ { print $3; exit }')
[ -n "$mirror" ] || unavailable "this machine's apt has no Debian mirror."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,packages,files}
echo "deb [signed-by=$keyring] $mirror trixie non-free" >"$work/sources.list"
private=(-q -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/lists"
  -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root -o Acquire::Retries=1 -o Acquire::http::Timeout=30
  -o APT::Update::Error-Mode=any)
apt-get "${private[@]}" update >"$work/log" 2>&1 || unavailable "$(grep -m1 -E '^(E|W): ' "$work/log")"
(cd "$work/packages" && apt-get "${private[@]}" download libnvrtc12 libnvrtc-builtins12.4) >"$work/log" 2>&1 ||
  unavailable "$(grep -m1 -E '^(E|W): ' "$work/log")"
for package in "$work"/packages/*.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/files" --strip-components=4 --wildcards './usr/lib/x86_64-linux-gnu/*'
done
mkdir -p "$folder"
mv "$work"/files/* "$folder/"
echo "$library"
