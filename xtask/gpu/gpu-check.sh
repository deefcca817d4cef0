#!/usr/bin/env bash
# Checks phi-edge on this machine's GPU, from the folders that `cargo xtask gpu pack` made; all of them lie beside this one's folder.
#
#   bash 01/gpu-check.sh            every step, within 25 minutes
#   bash 01/gpu-check.sh STEP…      these steps, then the report; what earlier calls have found stays
#
# Steps: machine goldens vision webgpu weights speed bare genai context report. A step that fails does not stop the others.
# The results: gpu-check.json, gpu-check.md and gpu-check-logs.tar.gz in OUT.
#
# Needed: bash, coreutils, awk, tar, gzip, and NVIDIA's driver. CUDA 13's libraries are used where the machine has them (the loader's
# folders, /usr/local/cuda*, Python's nvidia/*/lib). Python 3.12 with numpy is used for the steps bare and genai, if it is there.
#
# Variables: PROVIDER=cuda or cpu (the same steps on the processor, in smaller sizes), WORK (where the kit is unpacked; 4 GB), OUT,
# PYTHON, DEVICE_MEMORY (bytes on the GPU for keys and values [the card's, less 8 GiB]), TOTAL_SECONDS and STEP_SECONDS (bounds).
set -u -o pipefail
export LC_ALL=C

ALL_STEPS="machine goldens vision webgpu weights speed bare genai context"
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
SCRIPT=$HERE/$(basename "${BASH_SOURCE[0]}")
export PROVIDER=${PROVIDER:-cuda} WORK=${WORK:-$(dirname "$HERE")/work} PYTHON=${PYTHON:-python3}
export OUT=${OUT:-$WORK/out} TOTAL_SECONDS=${TOTAL_SECONDS:-1500} STEP_SECONDS=${STEP_SECONDS:-600}
KIT=$WORK/kit
RESULTS=$WORK/results-$PROVIDER

case $PROVIDER in
cuda)
    MODEL=full STREAMS=${STREAMS:-"1 8 32"} PROMPT=${PROMPT:-512} NEW=${NEW:-128} TURNS=${TURNS:-5}
    REQUESTS=${REQUESTS:-32} CONTEXT=${CONTEXT:-131072} CHUNK=${CHUNK:-2048}
    ;;
cpu)
    MODEL=small STREAMS=${STREAMS:-"1 2 4"} PROMPT=${PROMPT:-64} NEW=${NEW:-16} TURNS=${TURNS:-3}
    REQUESTS=${REQUESTS:-8} CONTEXT=${CONTEXT:-8192} CHUNK=${CHUNK:-512}
    ;;
*)
    echo "PROVIDER is \"$PROVIDER\"; it is cuda or cpu" >&2
    exit 2
    ;;
esac
MODEL=$KIT/models/$MODEL
LARGEST_BATCH=${STREAMS##* }
# shellcheck source=gpu-steps.sh
. "$HERE/gpu-steps.sh"
# shellcheck source=gpu-report.sh
. "$HERE/gpu-report.sh"

# --- What steps say -------------------------------------------------------------------------------------------------------

# The text as a JSON string.
json_string() {
    local text
    text=$(printf '%s' "$1" | tr '\n\t' '  ' | tr -d '\000-\037')
    text=${text//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

# Ends the step: it can't be done here, for this reason.
skip() {
    echo "$1" >"$RESULTS/$STEP.reason"
    echo "$1"
    exit 77
}

# Ends the step: it failed, for this reason.
fail() {
    echo "$1" >"$RESULTS/$STEP.reason"
    echo "$1" >&2
    exit 1
}

# The numbers of a key in a file with an object a line.
numbers() {
    grep -o "\"$2\": *[-+0-9.eE]*" "$1" 2>/dev/null | sed 's/.*: *//'
}

median() {
    numbers "$1" "$2" | sort -g | awk '{v[NR] = $1} END {if (NR) printf "%.6g\n", (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2}'
}

# The objects of a file, one a line, as a JSON array.
array() {
    awk 'BEGIN {printf "["} /^\{/ {printf "%s%s", (n++ ? "," : ""), $0} END {printf "]"}' "$1" 2>/dev/null || printf '[]'
}

# --- What the kit has ---------------------------------------------------------------------------------------------------

# Joins the parts and unpacks them, once.
unpack() {
    local list=$HERE/parts.sha256 parts
    if cmp -s "$list" "$WORK/unpacked.sha256"; then
        return 0
    fi
    mkdir -p "$WORK" || return 1
    (cd "$(dirname "$HERE")" && sha256sum --quiet -c "$list") || {
        echo "parts are missing or damaged; all folders of the kit must lie in $(dirname "$HERE")" >&2
        return 1
    }
    parts=$(sed 's/^[0-9a-f]* [ *]//' "$list")
    rm -rf "$KIT"
    mkdir -p "$KIT"
    # Names of parts have no blanks.
    # shellcheck disable=SC2086
    (cd "$(dirname "$HERE")" && cat $parts) | tar -xzf - -C "$KIT" || return 1
    cp "$list" "$WORK/unpacked.sha256"
}

library() {
    local file
    for file in "$KIT/$1"/onnxruntime/capi/libonnxruntime.so.*; do
        [ -f "$file" ] && echo "$file" && return
    done
}

# The folders with CUDA's libraries that the loader does not look in, joined by colons.
cuda_folders() {
    local folder
    {
        printf '%s\n' /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib /usr/local/nvidia/lib64 /usr/local/nvidia/lib /usr/lib/wsl/lib
        "$PYTHON" -c 'import glob, sys; [print(f) for p in sys.path for f in glob.glob(p + "/nvidia/*/lib")]' 2>/dev/null
        timeout 30 find /usr/lib /usr/local/lib /opt /root /home -type d -path '*/nvidia/*/lib' 2>/dev/null
    } | awk '!seen[$0]++' | while read -r folder; do
        if compgen -G "$folder/lib*.so*" >/dev/null; then
            printf '%s:' "$folder"
        fi
    done
}

# Whether the loader finds this library.
loadable() {
    local folder
    local IFS=:
    for folder in ${LD_LIBRARY_PATH:-}; do
        [ -e "$folder/$1" ] && return 0
    done
    { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q "$1 "
}

# The environment of the programs under test.
prepare() {
    export XDG_CACHE_HOME=$WORK/cache XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp} NO_COLOR=1
    export PHI_EDGE_FIXTURES=$KIT/fixtures PHI_EDGE_TEST_MODELS=$KIT/test-models CI=true
    ORT_DYLIB_PATH=$(library python)
    export ORT_DYLIB_PATH
    if [ "$PROVIDER" = cuda ]; then
        export PHI_EDGE_TEST_PROVIDER=cuda
        [ -f "$WORK/cuda-folders" ] || cuda_folders >"$WORK/cuda-folders"
        LD_LIBRARY_PATH=$(cat "$WORK/cuda-folders")${LD_LIBRARY_PATH:-}
        export LD_LIBRARY_PATH
    fi
}

# Bytes of the GPU for phi-edge's keys and values.
device_memory() {
    if [ -n "${DEVICE_MEMORY:-}" ]; then
        echo "$DEVICE_MEMORY"
    elif [ "$PROVIDER" = cuda ]; then
        nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | awk 'NR == 1 {printf "%.0f\n", ($1 - 8192) * 1048576}'
    fi
}

# phi-edge with the measured model, library and provider.
phi_edge() {
    local memory
    memory=$(device_memory)
    export PHI_EDGE__MODEL__PATH=$MODEL PHI_EDGE__RUNTIME__PROVIDER=$PROVIDER PHI_EDGE__RUNTIME__LIBRARY=$ORT_DYLIB_PATH
    export PHI_EDGE__STORE__PATH=$WORK/store
    if [ "$PROVIDER" = cuda ]; then
        export PHI_EDGE__RUNTIME__DEVICE_MEMORY=$memory
        # Tensors of any size come and go: blocks of powers of two would waste half of the memory.
        export PHI_EDGE__RUNTIME__PROVIDER_OPTIONS='{ arena_extend_strategy = "kSameAsRequested" }'
    fi
    "$KIT/phi-edge" "$@"
}

# --- The whole -----------------------------------------------------------------------------------------------------------

# Runs a step within its bound and what is left of the whole, and records what came of it.
run_step() {
    local step=$1 begun limit code outcome reason left
    begun=$(date +%s)
    left=$((STARTED + TOTAL_SECONDS - begun))
    limit=$((left < STEP_SECONDS ? left : STEP_SECONDS))
    rm -f "$RESULTS/$step".* "$RESULTS/$step"-*
    echo "$step …"
    if [ "$limit" -lt 5 ]; then
        code=124 limit=0
    else
        timeout -k 10 "$limit" bash "$SCRIPT" --inside "$step" >"$RESULTS/$step.log" 2>&1
        code=$?
    fi
    reason=$(cat "$RESULTS/$step.reason" 2>/dev/null)
    case $code in
    0) outcome=passed ;;
    77) outcome=skipped ;;
    124 | 137)
        outcome=failed reason="not done within $limit s"
        [ ! -s "$RESULTS/$step.now" ] || reason="$reason, in the test $(cat "$RESULTS/$step.now")"
        ;;
    *) outcome=failed reason=${reason:-"status $code: $(grep -v '^{' "$RESULTS/$step.log" | tail -1 | head -c 400)"} ;;
    esac
    left=$(($(date +%s) - begun))
    printf '{"step":"%s","outcome":"%s","seconds":%s,"reason":%s,"data":%s}' "$step" "$outcome" "$left" \
        "$([ -n "$reason" ] && json_string "$reason" || echo null)" "$(cat "$RESULTS/$step.data" 2>/dev/null || echo null)" >"$RESULTS/$step.json"
    printf '| %s | %s | %s | %s |\n' "$step" "$outcome" "$left" "$(printf '%s' "$reason" | tr '|\n' '/ ')" >"$RESULTS/$step.line"
    echo "$step: $outcome, $left s${reason:+: $reason}"
    [ "$outcome" != failed ]
}

main() {
    local steps=$* step failed=0
    STARTED=$(date +%s)
    [ -n "$steps" ] || steps=$ALL_STEPS
    for step in $steps; do
        case " $ALL_STEPS report " in
        *" $step "*) ;;
        *)
            echo "there is no step \"$step\"; there are $ALL_STEPS report" >&2
            exit 2
            ;;
        esac
    done
    mkdir -p "$RESULTS" && unpack || exit 1
    for step in $steps; do
        [ "$step" = report ] || run_step "$step" || failed=1
    done
    report
    exit "$failed"
}

if [ "${1:-}" = --inside ]; then
    STEP=$2
    prepare
    "step_$STEP"
else
    main "$@"
fi
