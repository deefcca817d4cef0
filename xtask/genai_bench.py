"""Measurements of onnxruntime-genai: python genai_bench.py MODEL THREADS PROMPT NEW.

Does what `phi-edge bench --turns --json` does: prints one object when the model is loaded, then one for every line
on standard input.
"""

import json
import resource
import sys
import time

import onnxruntime_genai as og

folder, threads, prompt, new = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
started = time.perf_counter()
config = og.Config(folder)
# Its default is half the cores; ours are all of them.
config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
model = og.Model(config)
loaded = time.perf_counter() - started


def generate(prompt, new):
    params = og.GeneratorParams(model)
    # The longest text decides how much KV memory it takes at once: no more than is needed.
    params.set_search_options(max_length=prompt + new, min_length=prompt + new, do_sample=False)
    generator = og.Generator(model, params)
    begun = time.perf_counter()
    generator.append_tokens([1 + i % 30000 for i in range(prompt)])
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new - 1):
        generator.generate_next_token()
    return first - begun, (new - 1) / (time.perf_counter() - first)


# The first run pays for memory and kernels that all later ones have.
generate(8, 2)
print(json.dumps({"load_ms": loaded * 1000, "version": og.__version__}), flush=True)
for _ in sys.stdin:
    first, decode = generate(prompt, new)
    print(json.dumps({
        "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "prefill_tokens_per_s": prompt / first,
        "decode_tokens_per_s": decode,
        "first_token_ms": first * 1000,
    }), flush=True)
