# The report of gpu-check.sh, which sources this: gpu-check.json, gpu-check.md and gpu-check-logs.tar.gz in OUT.
# shellcheck shell=bash disable=SC2153,SC2154

# `$1 / $2`, or nothing where one is missing.
ratio() {
    [ -n "$1" ] && [ -n "$2" ] && awk -v a="$1" -v b="$2" 'BEGIN {if (b > 0) printf "%.2f", a / b}'
}

shown() {
    if [ -n "$1" ]; then printf '%.4g' "$1"; else printf -- '–'; fi
}

# A line of the table of targets: what, measured, bound, and whether a greater value is better.
target() {
    local met="not measured"
    if [ -n "$2" ]; then
        met=$(awk -v v="$2" -v b="$3" -v up="$4" 'BEGIN {print (up ? v >= b : v <= b) ? "met" : "not met"}')
    fi
    printf '| %s | %s | %s | %s |\n' "$1" "${2:-–}" "$3" "$met"
}

speed_table() {
    local streams ours bare genai one
    printf '\n## Speed\n\n%s, prompts of %s tokens, %s new ones, medians of %s turns; tokens a second over all streams.\n\n' \
        "$(basename "$MODEL") model" "$PROMPT" "$NEW" "$TURNS"
    printf '| streams | prefill | decode | over one stream | bare loop, decode | phi-edge / bare | genai, decode | phi-edge / genai |\n|---|---|---|---|---|---|---|---|\n'
    one=$(median "$RESULTS/speed-1.lines" decode_tokens_per_s)
    for streams in $STREAMS; do
        ours=$(median "$RESULTS/speed-$streams.lines" decode_tokens_per_s)
        bare=$(median "$RESULTS/bare-$streams.lines" decode_tokens_per_s)
        genai=$(median "$RESULTS/genai-$streams.lines" decode_tokens_per_s)
        printf '| %s | %s | %s | %s | %s | %s | %s | %s |\n' "$streams" \
            "$(shown "$(median "$RESULTS/speed-$streams.lines" prefill_tokens_per_s)")" "$(shown "$ours")" \
            "$(shown "$(ratio "$ours" "$one")")" "$(shown "$bare")" "$(shown "$(ratio "$ours" "$bare")")" \
            "$(shown "$genai")" "$(shown "$(ratio "$ours" "$genai")")"
    done
}

target_table() {
    local streams burst genai engine
    printf '\n## Targets\n\n| what | measured | bound | |\n|---|---|---|---|\n'
    for streams in $STREAMS; do
        target "decode over the bare loop, streams: $streams; at least" \
            "$(ratio "$(median "$RESULTS/speed-$streams.lines" decode_tokens_per_s)" "$(median "$RESULTS/bare-$streams.lines" decode_tokens_per_s)")" 0.95 1
    done
    target "decode of one stream over genai, at least" \
        "$(ratio "$(median "$RESULTS/speed-1.lines" decode_tokens_per_s)" "$(median "$RESULTS/genai-1.lines" decode_tokens_per_s)")" 1.0 1
    burst=$(median "$RESULTS/speed-burst.lines" total_s)
    genai=$(median "$RESULTS/genai-burst.lines" total_s)
    engine=$(median "$RESULTS/genai-engine.lines" total_s)
    if [ -n "$engine" ]; then
        genai=$(awk -v a="${genai:-$engine}" -v b="$engine" 'BEGIN {print a < b ? a : b}')
    fi
    target "seconds of $REQUESTS requests at once over genai's, at most" "$(ratio "$burst" "$genai")" 0.5 0
    target "tokens of context, at least" "$(numbers "$RESULTS/context.data" tokens | head -1)" "$CONTEXT" 1
}

test_table() {
    local step=$1
    [ -s "$RESULTS/$step.tests" ] || return 0
    printf '\n## Tests of %s\n\n| test | outcome | s |\n|---|---|---|\n' "$step"
    sed 's/^{"test":"\([^"]*\)","outcome":"\([^"]*\)","seconds":\([0-9.]*\),.*/| \1 | \2 | \3 |/' "$RESULTS/$step.tests"
}

report() {
    local step lines="" file
    mkdir -p "$OUT"
    for step in $ALL_STEPS; do
        if [ -s "$RESULTS/$step.json" ]; then
            lines="$lines,$(cat "$RESULTS/$step.json")"
        else
            lines="$lines,{\"step\":\"$step\",\"outcome\":\"not run\",\"seconds\":0,\"reason\":null,\"data\":null}"
        fi
    done
    printf '{"date":"%s","provider":"%s","steps":[%s]}\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$PROVIDER" "${lines#,}" >"$OUT/gpu-check.json"
    {
        printf '# phi-edge on %s, %s\n\n' "$PROVIDER" "$(date -u +%Y-%m-%d)"
        file=$RESULTS/machine.data
        for step in card driver processor processors memory_gib system kernel python version commit; do
            sed -n "s/.*\"$step\":\"\{0,1\}\([^\",}]*\).*/* $step: \1/p" "$file" 2>/dev/null
        done | grep -v ': null$'
        printf '\n| step | outcome | s | |\n|---|---|---|---|\n'
        for step in $ALL_STEPS; do
            if [ -s "$RESULTS/$step.line" ]; then cat "$RESULTS/$step.line"; else echo "| $step | not run | | |"; fi
        done
        speed_table
        target_table
        for step in goldens vision webgpu; do test_table "$step"; done
    } >"$OUT/gpu-check.md"
    tar -czf "$OUT/gpu-check-logs.tar.gz" -C "$RESULTS" .
    echo "The results are in $OUT: gpu-check.md, gpu-check.json."
}
