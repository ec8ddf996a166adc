#!/usr/bin/env bash
# Copies the installed Open MPI 4.1 into a folder that runs anywhere with the same or a newer C library, and writes the
# `mpiexec` that starts it from there: scripts/bundle-open-mpi.sh FOLDER. For ranks of one machine: only the components that
# one host needs go along, with the libraries they are linked against, the C library left out.
set -euo pipefail
[ $# -eq 1 ] || { echo "usage: scripts/bundle-open-mpi.sh FOLDER" >&2; exit 2; }
folder=$(realpath -m "$1")
orterun=$(readlink -f "$(command -v mpiexec.openmpi)") || {
  echo "Open MPI (mpiexec.openmpi) is not installed; scripts/setup.sh --mpi installs it." >&2
  exit 69
}
system=/usr/lib/x86_64-linux-gnu
components=$system/openmpi/lib/openmpi3
[ -e "$system/libmpi.so.40" ] && [ -d "$components" ] || { echo "No Open MPI 4.1 of Debian's layout in $system." >&2; exit 69; }

usr=$folder/mpi/usr
libraries=$folder/mpi/lib
mkdir -p "$usr/bin" "$usr/lib/x86_64-linux-gnu/openmpi/lib/openmpi3" "$usr/lib/x86_64-linux-gnu/pmix2/lib/pmix" "$usr/share/openmpi" "$libraries"
cp -L "$orterun" "$usr/bin/mpiexec"
cp -L /usr/bin/orted "$usr/bin/orted"

wanted='allocator_|bml_|btl_(self|vader|tcp)|coll_(basic|libnbc|tuned|self|inter|sync|sm)|dfs_|errmgr_|ess_(hnp|pmi|singleton|env|tool)'
wanted+='|filem_|grpcomm_|iof_'
wanted+='|mpool_|odls_|oob_|osc_(sm|rdma|pt2pt)|plm_(rsh|isolated)|pmix_|pml_(ob1|cm)|ras_simulator'
wanted+='|rcache_|reachable_|rmaps_|rml_|routed_|rtc_|schizo_'
wanted+='|shmem_|state_|topo_basic|vprotocol_|snapc|sstore|crs_none|compress_|event_|hwloc_|patcher_|memory_|timer_|pstat_|regx_|backtrace_|if_'
for component in "$components"/mca_*.so; do
  [[ $(basename "$component") =~ ^mca_($wanted) ]] && cp -L "$component" "$usr/lib/x86_64-linux-gnu/openmpi/lib/openmpi3/"
done
cp -L "$system"/pmix2/lib/pmix/*.so "$usr/lib/x86_64-linux-gnu/pmix2/lib/pmix/"
cp /usr/share/openmpi/help-*.txt "$usr/share/openmpi/"

# What all of these load, under the names that they ask for. libmunge is opened by pmix at run time.
for file in "$usr"/bin/* "$system/libmpi.so.40" "$system/pmix2/lib/libpmix.so.2" "$system/libmunge.so.2" \
  "$usr"/lib/x86_64-linux-gnu/openmpi/lib/openmpi3/*.so "$usr"/lib/x86_64-linux-gnu/pmix2/lib/pmix/*.so; do
  LD_LIBRARY_PATH=$system/openmpi/lib:$system/pmix2/lib ldd "$file" | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }'
done | sort -u | while read -r name path; do
  case $name in
    libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | libutil.so* | libresolv.so* | libgcc_s.so* | libstdc++.so*) ;;
    *) cp -L "$path" "$libraries/$name" ;;
  esac
done
cp -L "$system/libmpi.so.40" "$system/pmix2/lib/libpmix.so.2" "$system/libmunge.so.2" "$libraries/"

cat >"$folder/mpiexec" <<'LAUNCHER'
#!/bin/sh
# The bundled Open MPI, wherever this folder lies: ranks of this machine, as many as asked for.
here=$(dirname "$(readlink -f "$0")")
export OPAL_PREFIX="$here/mpi/usr" PMIX_LIBDIR="$here/mpi/usr/lib/x86_64-linux-gnu/pmix2/lib"
export LD_LIBRARY_PATH="$here/mpi/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
# Components whose hardware is absent are no news. Containers refuse to copy between processes: shared memory does.
export OMPI_MCA_mca_base_component_show_load_errors=0 OMPI_MCA_btl_vader_single_copy_mechanism=none TERM=dumb
if [ "$(id -u)" = 0 ]; then set -- --allow-run-as-root "$@"; fi
exec "$here/mpi/usr/bin/mpiexec" --oversubscribe --bind-to none --mca plm isolated "$@"
LAUNCHER
chmod +x "$folder/mpiexec"
