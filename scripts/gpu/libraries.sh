# Sourced by the GPU scripts: finds the CUDA run-time compiler and NCCL among the packages of the machine's Python (PyTorch
# brings both), and tells the program by TREEATTN_NVRTC_LIBRARY and TREEATTN_NCCL_LIBRARY. What is set already stays; what
# is not found the program looks for itself, by the system's library paths.

python=$(command -v python3) || python=

package_library() { # places below the folders of Python's packages, the best first
  [ -n "$python" ] || return 0
  local folder place
  while IFS= read -r folder; do
    for place in "$@"; do
      if [ -e "$folder/$place" ]; then
        echo "$folder/$place"
        return 0
      fi
    done
  done < <("$python" -c 'import sys; print(*filter(None, sys.path), sep="\n")')
}

if [ -z "${TREEATTN_NVRTC_LIBRARY:-}" ]; then
  TREEATTN_NVRTC_LIBRARY=$(package_library nvidia/cu13/lib/libnvrtc.so.13 nvidia/cuda_nvrtc/lib/libnvrtc.so.13 nvidia/cuda_nvrtc/lib/libnvrtc.so.12)
  export TREEATTN_NVRTC_LIBRARY
fi
if [ -z "${TREEATTN_NCCL_LIBRARY:-}" ]; then
  TREEATTN_NCCL_LIBRARY=$(package_library nvidia/nccl/lib/libnccl.so.2 nvidia/cu13/lib/libnccl.so.2)
  export TREEATTN_NCCL_LIBRARY
fi
