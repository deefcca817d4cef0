# The steps of gpu-check.sh, which sources this: `step_NAME` each. A step writes what it measured, as JSON, to `$RESULTS/$STEP.data`, and
# ends by `skip` or `fail` with a reason.
# shellcheck shell=bash disable=SC2153,SC2154

step_machine() {
    local card=null driver=null missing="" library
    if [ "$PROVIDER" = cuda ]; then
        command -v nvidia-smi >/dev/null || fail "nvidia-smi was not found: is NVIDIA's driver installed?"
        nvidia-smi
        card=$(json_string "$(nvidia-smi --query-gpu=name,memory.total --format=csv,noheader | head -1)")
        driver=$(json_string "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)")
    fi
    printf '{"card":%s,"driver":%s,"processor":%s,"processors":%s,"memory_gib":%s,"system":%s,"kernel":%s,"python":%s,"cuda_folders":%s,"kit":%s}\n' \
        "$card" "$driver" "$(json_string "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)")" "$(nproc)" \
        "$(awk '/^MemTotal/ {printf "%.0f", $2 / 1048576}' /proc/meminfo)" \
        "$(json_string "$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)")" "$(json_string "$(uname -r)")" \
        "$(json_string "$("$PYTHON" --version 2>/dev/null)")" "$(json_string "$(cat "$WORK/cuda-folders" 2>/dev/null)")" \
        "$(cat "$KIT/kit.json")" >"$RESULTS/machine.data"
    if [ "$PROVIDER" = cuda ]; then
        for library in libcuda.so.1 libcublasLt.so.13 libcublas.so.13 libcudart.so.13 libcurand.so.10; do
            loadable "$library" || missing="$missing $library"
        done
        [ -z "$missing" ] || fail "the loader does not find$missing: install CUDA 13, or name their folder in LD_LIBRARY_PATH"
        loadable libcudnn.so.9 || echo "libcudnn.so.9 is missing: models that take images can't run"
    fi
}

# Runs the tests of binaries, each test in a process of its own, with a bound in seconds: a crash is the failure of one.
run_tests() {
    local limit=$1 binary test begun outcome failed="" lines=$RESULTS/$STEP.tests
    shift
    : >"$lines"
    for binary in "$@"; do
        for test in $("$binary" --list --format terse | sed -n 's/: test$//p'); do
            begun=$(date +%s.%N)
            echo "$test" >"$RESULTS/$STEP.now"
            timeout -k 5 "$limit" "$binary" --exact "$test" --test-threads=1 >"$RESULTS/test.log" 2>&1
            outcome=$?
            cat "$RESULTS/test.log"
            case $outcome in
            0) outcome=passed ;;
            101) outcome=failed ;;
            124 | 137) outcome="not done within $limit s" ;;
            *) outcome="crashed with status $outcome" ;;
            esac
            [ "$outcome" = passed ] || failed="$failed $test ($outcome)"
            test_line "$test" "$outcome" "$begun" >>"$lines"
            printf '{"tests":%s}\n' "$(array "$lines")" >"$RESULTS/$STEP.data"
        done
    done
    rm -f "$RESULTS/$STEP.now"
    [ -s "$lines" ] || fail "there are no tests, or they don't start"
    [ -z "$failed" ] || fail "failed:$failed"
}

# What came of a test, with the message of its panic.
test_line() {
    local message=null
    [ "$2" = passed ] || message=$(json_string "$(grep -A2 panicked "$RESULTS/test.log" | tail -n +2 | head -c 400)")
    printf '{"test":%s,"outcome":%s,"seconds":%s,"message":%s}\n' "$(json_string "$1")" "$(json_string "$2")" \
        "$(awk -v a="$3" -v b="$(date +%s.%N)" 'BEGIN {printf "%.1f", b - a}')" "$message"
}

step_goldens() { run_tests 240 "$KIT"/goldens/*; }

step_vision() { run_tests 240 "$KIT"/vision/*; }

step_webgpu() {
    [ "$PROVIDER" = cuda ] || [ -n "${WEBGPU:-}" ] || skip "it needs a GPU; WEBGPU=1 runs it on whatever driver of Vulkan there is"
    ORT_DYLIB_PATH=$(library webgpu)
    [ -n "$ORT_DYLIB_PATH" ] || skip "the kit was packed without WebGPU's library"
    loadable libvulkan.so.1 || skip "there is no libvulkan.so.1 on this machine (Debian: libvulkan1)"
    export PHI_EDGE_TEST_PROVIDER=webgpu
    local icd=/usr/local/nvidia/share/vulkan/icd.d/nvidia_icd.json
    if [ -z "${VK_DRIVER_FILES:-}" ] && [ -f "$icd" ]; then
        export VK_DRIVER_FILES=$icd
    fi
    run_tests 200 "$KIT"/goldens/device_rows "$KIT"/vision/*
}

# Bytes of the file `$1`, repeated from the offset `$3` on, `$2` in all.
repeated() {
    { tail -c "+$(($3 + 1))" "$1" && while cat "$1"; do :; done; } 2>/dev/null | head -c "$2"
}

step_weights() {
    local data=$MODEL/model.onnx.data source length offset size wanted
    wanted=$(awk '{bytes += $2} END {printf "%.0f", bytes}' "$data.recipe")
    size=$(stat -c %s "$data" 2>/dev/null || echo 0)
    if [ "$size" != "$wanted" ]; then
        while read -r source length offset; do
            case $source in
            zeros) head -c "$length" /dev/zero ;;
            *) repeated "$MODEL/patterns/$source" "$length" "$offset" ;;
            esac
        done <"$data.recipe" >"$data.new"
        size=$(stat -c %s "$data.new")
        [ "$size" = "$wanted" ] || fail "model.onnx.data has $size bytes instead of $wanted: is the disk full?"
        mv "$data.new" "$data"
    fi
    printf '{"model":%s,"bytes":%s}\n' "$(json_string "$(basename "$MODEL")")" "$wanted" >"$RESULTS/weights.data"
}

have_weights() {
    [ -f "$MODEL/model.onnx.data" ] || step_weights
}

# A line for each turn.
turns() {
    seq "$TURNS"
}

# The measurements of a step, which are files of lines in `$RESULTS/$STEP-KEY.lines`, as its data.
collect() {
    local file key data=""
    for file in "$RESULTS/$STEP"-*.lines; do
        [ -s "$file" ] || continue
        key=${file##*/"$STEP"-}
        data="$data,$(json_string "${key%.lines}"):$(array "$file")"
    done
    printf '{%s}\n' "${data#,}" >"$RESULTS/$STEP.data"
}

step_speed() {
    local streams failed=""
    have_weights
    for streams in $STREAMS; do
        # The first turn of each pays for kernels and memory: the median does not.
        turns | phi_edge bench --json --turns --concurrency "$streams" --prompt-tokens "$PROMPT" --new-tokens "$NEW" \
            --prefill-chunk "$CHUNK" | tee "$RESULTS/speed-$streams.lines" || failed="$failed, $streams streams"
        collect
    done
    turns | phi_edge bench --json --turns --scenario burst --requests "$REQUESTS" --concurrency "$LARGEST_BATCH" --shared-tokens "$((PROMPT + 88))" \
        --prompt-tokens 60 --new-tokens 64 --prefill-chunk "$CHUNK" | tee "$RESULTS/speed-burst.lines" || failed="$failed, the burst"
    collect
    [ -z "$failed" ] || fail "failed:${failed#,}"
}

# Has `$PYTHON` import the module `$1`: that of the kit, else the machine's. Fails where there is none.
have_module() {
    local path
    for path in "$KIT/python" ""; do
        export PYTHONPATH=$path
        if "$PYTHON" -c "import numpy, $1" >/dev/null 2>&1; then
            return 0
        fi
    done
    return 1
}

step_bare() {
    local streams failed=""
    have_module onnxruntime || skip "there is no Python 3.12 with numpy, and no other with numpy and onnxruntime (PYTHON names one)"
    have_weights
    for streams in $STREAMS; do
        turns | "$PYTHON" "$KIT/bare_loop.py" "$MODEL" "$PROVIDER" "$streams" "$PROMPT" "$NEW" |
            tee "$RESULTS/bare-$streams.lines" || failed="$failed, $streams streams"
        collect
    done
    [ -z "$failed" ] || fail "failed:${failed#,}"
}

# A measurement of onnxruntime-genai: its arguments behind the model.
genai() {
    "$PYTHON" "$KIT/genai_bench.py" "$MODEL" "$@" provider="$PROVIDER" threads="$(nproc)"
}

step_genai() {
    local failed="" burst=()
    have_module onnxruntime_genai ||
        skip "there is no Python 3.12 with numpy, and no other with numpy and onnxruntime_genai (PYTHON names one)"
    have_weights
    burst=(burst requests="$REQUESTS" shared="$((PROMPT + 88))" prompt=60 new=64)
    turns | genai streams prompt="$PROMPT" new="$NEW" concurrency=1 | tee "$RESULTS/genai-1.lines" || failed="$failed, one stream"
    collect
    # One after the other, as its `Generator` does, and together, as its `Engine` does: the better one counts.
    seq 1 | genai "${burst[@]}" concurrency=1 engine=0 | tee "$RESULTS/genai-burst.lines" || failed="$failed, the burst by Generator"
    collect
    turns | genai "${burst[@]}" concurrency="$LARGEST_BATCH" engine=1 | tee "$RESULTS/genai-engine.lines" ||
        failed="$failed, the burst by Engine"
    collect
    [ -z "$failed" ] || fail "failed:${failed#,}"
}

step_context() {
    local tokens=$CONTEXT most
    have_weights
    if [ "$PROVIDER" = cuda ]; then
        # 480 KiB a token: docs/device-memory.md.
        most=$(($(device_memory) / 491520))
        [ "$tokens" -le "$most" ] || tokens=$most
    fi
    [ "$tokens" -gt 1024 ] || fail "the device has too little memory"
    phi_edge bench --json --prompt-tokens "$((tokens - 64))" --new-tokens 32 --prefill-chunk "$CHUNK" | tee "$RESULTS/context-tokens.lines" ||
        fail "a text of $tokens tokens failed: $(grep -v '^{' "$RESULTS/context.log" | tail -1)"
    printf '{"tokens":%s,"wanted":%s,"measured":%s}\n' "$tokens" "$CONTEXT" "$(array "$RESULTS/context-tokens.lines")" >"$RESULTS/context.data"
    [ "$tokens" = "$CONTEXT" ] || fail "$tokens tokens work; for $CONTEXT the device has too little memory"
}
