"""Measurements of onnxruntime-genai: python genai_bench.py MODEL SCENARIO key=value …

Does what `phi-edge bench --turns --json` does: prints one object when the model is loaded, then one for every line
on standard input. Scenarios: `streams` (of one: `Generator`), `burst` and `arrivals` (`Engine`, which batches), and `image`,
whose last argument is a picture's path. `provider=cuda` runs the model there, where this is a build for it.
"""

import json
import resource
import statistics
import sys
import time

import numpy as np
import onnxruntime_genai as og

folder, scenario = sys.argv[1], sys.argv[2]
picture = sys.argv.pop() if scenario == "image" else None
given = dict(argument.split("=") for argument in sys.argv[3:])
provider = given.pop("provider", "cpu")
given = {key: int(value) for key, value in given.items()}
prompt, new, slots = given.get("prompt", 0), given.get("new", 1), given.get("concurrency", 1)
started = time.perf_counter()
config = og.Config(folder)
# Its default is half the cores; ours are all of them.
options = {"session_options": {"intra_op_num_threads": given["threads"]}}
overlay = {"model": {"decoder": options}}
if picture:
    overlay["model"] |= {"vision": options, "embedding": options}
if slots > 1:
    overlay["engine"] = {"static_batching": {"max_batch_size": slots}}
config.overlay(json.dumps(overlay))
if provider != "cpu":
    config.clear_providers()
    config.append_provider(provider)
model = og.Model(config)
loaded = time.perf_counter() - started


def ids(salt, count):
    return [1 + (salt * 7919 + i * 104729) % 30000 for i in range(count)]


def generate(tokens, new):
    """One answer; seconds to the first token, and from it to the last."""
    params = og.GeneratorParams(model)
    # The longest text decides how much KV memory it takes at once: no more than is needed.
    length = len(tokens) + new
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    begun = time.perf_counter()
    generator.append_tokens(tokens)
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new - 1):
        generator.generate_next_token()
    return first - begun, time.perf_counter() - first


class Batch:
    """Requests in an `Engine`."""

    def __init__(self):
        self.engine = og.Engine(model)
        self.buffer = self.engine.create_event_buffer(64)
        self.requests, self.written, self.first, self.begun = [], 0, [], {}

    def add(self, tokens, new):
        options = og.RequestOptions()
        options.set_max_session_tokens(len(tokens) + new)
        request = self.engine.create_request(options=options)
        turn = og.TurnOptions(request)
        turn.set_do_sample(False)
        turn.set_max_generated_tokens(new)
        turn.set_min_generated_tokens(new)
        request.begin_turn(np.array(tokens, dtype=np.int32), turn)
        self.requests.append(request)
        self.begun[id(request)] = time.perf_counter()

    def busy(self):
        return self.engine.has_pending_requests()

    def run(self):
        for event in self.engine.run(self.buffer):
            if int(event.flags.value if hasattr(event.flags, "value") else event.flags) & int(
                og.EngineEventFlags.FAILED.value
            ):
                sys.exit(f"genai failed: {event.error_code}")
            self.written += 1

    def close(self):
        for request in self.requests:
            request.close()


def streams():
    if slots > 1:
        started, batch = time.perf_counter(), Batch()
        for stream in range(slots):
            batch.add(ids(stream, prompt), new)
        while batch.busy():
            batch.run()
        batch.close()
        return {"total_s": time.perf_counter() - started, "written": batch.written}
    first, decode = generate(ids(0, prompt), new)
    return {
        "prefill_tokens_per_s": prompt / first,
        "decode_tokens_per_s": (new - 1) / decode,
        "first_token_ms": first * 1000,
        "total_s": first + decode,
    }


def burst():
    """It has no cache of prefixes. `Generator`, one after the other, is what its users have; `Engine` batches."""
    requests, shared = given["requests"], ids(0, given["shared"])
    started = time.perf_counter()
    if given.get("engine", 1):
        batch = Batch()
        for n in range(requests):
            batch.add(shared + ids(n + 1, prompt), new)
        while batch.busy():
            batch.run()
        batch.close()
        return {"total_s": time.perf_counter() - started, "written": batch.written}
    firsts = []
    for n in range(requests):
        generate(shared + ids(n + 1, prompt), new)
        firsts.append((time.perf_counter() - started) * 1000)
    return {"total_s": time.perf_counter() - started, "done_ms": statistics.median(firsts)}


def arrivals():
    requests, over = given["requests"], 5.0
    started, batch, arrived = time.perf_counter(), Batch(), 0
    while arrived < requests or batch.busy():
        elapsed = time.perf_counter() - started
        while arrived < requests and arrived * over / requests <= elapsed:
            batch.add(ids(arrived, prompt), new)
            arrived += 1
        if batch.busy():
            batch.run()
        else:
            time.sleep(max(0.0, arrived * over / requests - elapsed))
    batch.close()
    return {"total_s": time.perf_counter() - started, "written": batch.written}


def image():
    """The first token of a prompt with a picture; the picture's file is read each time."""
    begun = time.perf_counter()
    inputs = processor(TEXT, images=og.Images.open(picture))
    read = time.perf_counter() - begun
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=4096, do_sample=False)
    generator = og.Generator(model, params)
    generator.set_inputs(inputs)
    generator.generate_next_token()
    return {"first_token_ms": (time.perf_counter() - begun) * 1000, "read_ms": read * 1000}


# The first run pays for memory and kernels that all later ones have.
if picture:
    TEXT = "<|user|>\n<|image_1|>\nDescribe the image.<|end|>\n<|assistant|>\n"
    processor = model.create_multimodal_processor()
    image()
else:
    generate(ids(0, 8), 2)
print(json.dumps({"load_ms": loaded * 1000, "version": og.__version__}), flush=True)
for _ in sys.stdin:
    report = {"streams": streams, "burst": burst, "arrivals": arrivals, "image": image}[scenario]()
    report["rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(report), flush=True)
