#!/usr/bin/env bash
# Checks that this machine's GPU computes what it should: every primitive of the kernels against golden data, every algorithm,
# option and layout against float64 on 1, 2, 4 and 8 ranks that share the GPU, in one process and under the bundled MPI, and
# NCCL. One line for each check, a summary, and exit code 0 only if nothing failed. A check that cannot run here is skipped and
# says why; probes tell what the machine can do and count neither way.
#
#   ./gpu-check.sh [--cases N] [--ranks "1 2 4 8"] [--seconds N] [--out FOLDER]
#
# --cases: random calls for each group of ranks (default 24). --seconds: time for all of it (default 480); checks come in the
# order of what they tell, and those that there is no time for are skipped. Logs of every check go to FOLDER (default
# results/gpu-check); checks.tsv there grows by a synced line a check, so that a run that was stopped is worth what it had done.
set -uo pipefail
here=$(dirname "$(readlink -f "$0")")
. "$here/libraries.sh"
cases=24
ranks="1 2 4 8"
limit=480
out=results/gpu-check
while [ $# -gt 0 ]; do
  case $1 in
    --cases | --ranks | --seconds | --out)
      [ $# -ge 2 ] || { echo "gpu-check.sh: $1 needs a value" >&2; exit 2; }
      case $1 in --cases) cases=$2 ;; --ranks) ranks=$2 ;; --seconds) limit=$2 ;; --out) out=$2 ;; esac
      shift 2
      ;;
    --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    *) echo "gpu-check.sh: unknown argument '$1'; --help tells what there is" >&2; exit 2 ;;
  esac
done
mkdir -p "$out" || exit 73
[ -e "$out/checks.tsv" ] && { echo "$out holds results already, and results are never overwritten; give another --out." >&2; exit 73; }
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-${HOME:-$out}/.cache} # compiled kernels

step_limit=${GPU_CHECK_STEP_SECONDS:-150}
declare -A count=([ok]=0 [FAILED]=0 [skipped]=0 [probe]=0)

record() { # outcome, name, seconds, what was seen
  count[$1]=$((count[$1] + 1))
  printf '%-7s  %-34s %4ss  %s\n' "$1" "$2" "$3" "$4"
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$out/checks.tsv"
  sync "$out/checks.tsv"
}

last_word() { # of a log: the closing count of verify, else its last line
  grep -aE '^[0-9]+ passed, [0-9]+ failed' "$1" | tail -1 | grep . || grep -av '^$' "$1" | tail -1 | cut -c1-160
}

# Runs a command with a time limit and keeps its output; the exit code is the command's, or 75 where all the time was used up;
# seconds are in $seconds.
attempt() { # name, command
  log=$out/$(tr -c 'a-z0-9\n' - <<<"$1").log
  shift
  printf '# %s\n' "$*" >"$log"
  local start=$SECONDS code=0 left=$((limit - SECONDS))
  local most=$((left < step_limit ? left : step_limit))
  seconds=0
  if [ $most -gt 0 ]; then
    timeout --kill-after=10 "$most" "$@" >>"$log" 2>&1 </dev/null || code=$?
    seconds=$((SECONDS - start))
    [ $code -ne 124 ] && [ $code -ne 137 ] && return $code
    echo "stopped after $seconds seconds" >>"$log"
  fi
  [ $most -eq "$step_limit" ] && return $code
  echo "no time was left: --seconds $limit" >>"$log"
  return 75
}

check() { # name, command
  local name=$1 code=0
  attempt "$@" || code=$?
  case $code in
    0) record ok "$name" "$seconds" "$(last_word "$log")" ;;
    69 | 75) record skipped "$name" "$seconds" "$(last_word "$log")" ;;
    *) record FAILED "$name" "$seconds" "exit $code: $(last_word "$log")" ;;
  esac
}

probe() { # name, command
  local name=$1 code=0
  attempt "$@" || code=$?
  record probe "$name" "$seconds" "exit $code: $(last_word "$log")"
}

treeattn=$here/treeattn
verify=("$treeattn" verify --device cuda --oversubscribe-gpus --cases "$cases")
samples=$here/samples

timeout 60 "$treeattn" doctor | tee "$out/doctor.log"
command -v nvidia-smi >/dev/null &&
  timeout 60 nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv | tee "$out/nvidia-smi.log"

# Without a GPU nothing below means anything: that is one failure with its reason, not a list of skipped checks.
first=0
attempt "gpu" "$treeattn" verify --device cuda --cases 1 || first=$?
if [ $first -eq 69 ]; then
  tail -1 "$log" >&2
  echo "gpu-check: nothing was checked" >&2
  exit 69
fi

nccl=("$treeattn" verify --transport nccl --oversubscribe-gpus --cases "$cases")
for n in $ranks; do
  check "verify, $n in-process ranks" "${verify[@]}" --ranks "$n"
  [ "$n" -gt 1 ] && check "verify, $n MPI ranks" "$here/mpiexec" -n "$n" "${verify[@]}"
  [ "$n" = "${ranks%% *}" ] || continue
  for dtype in bf16 f16 f32; do
    check "attend, real inputs, $dtype" "$treeattn" attend --device cuda --oversubscribe-gpus --ranks 2 --query "$samples/query.npy" \
      --key "$samples/key.npy" --value "$samples/value.npy" --causal --dtype "$dtype" --verify --force --output "$out/output-$dtype.npy"
  done
  check "verify, NCCL, 1 rank" "${nccl[@]}"
done
# NCCL refuses two ranks on one GPU unless it takes them for two machines, or is new enough to be told. Processes that share a
# GPU take turns of milliseconds, and kernels of NCCL wait for each other: few cases will do.
two=("$treeattn" verify --transport nccl --oversubscribe-gpus --cases "$((cases < 4 ? cases : 4))")
probe "probe: NCCL, 2 ranks as 2 hosts" "$here/mpiexec" -n 1 env NCCL_HOSTID=one "${two[@]}" : -n 1 env NCCL_HOSTID=two "${two[@]}"
probe "probe: NCCL, 2 ranks on one GPU" env NCCL_MULTI_RANK_GPU_ENABLE=1 "$here/mpiexec" -n 2 "${two[@]}"

echo "gpu-check: ${count[ok]} passed, ${count[FAILED]} failed, ${count[skipped]} skipped, ${count[probe]} probes; logs in $out"
[ "${count[FAILED]}" -eq 0 ] && [ "${count[ok]}" -gt 0 ]
