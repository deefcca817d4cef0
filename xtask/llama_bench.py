"""Measurements of llama.cpp's server: python llama_bench.py SERVER MODEL.gguf SCENARIO key=value …

Does what `phi-edge bench --turns --json` does: prints one object when the model is loaded, then one for every line
on standard input. Scenarios: `streams`, `burst` and `arrivals`, with its cache of prompts on.
"""

import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

server, model, scenario = sys.argv[1:4]
given = {key: int(value) for key, value in (argument.split("=") for argument in sys.argv[4:])}
prompt, new, slots = given["prompt"], given["new"], given.get("concurrency", 1)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
room = given.get("shared", 0) + prompt + new + 64
started = time.perf_counter()
process = subprocess.Popen(
    [server, "-m", model, "-t", str(given["threads"]), "-np", str(slots), "-c", str(room * slots),
     "--host", "127.0.0.1", "--port", str(port)],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
)
salt = 0


def post(path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=3600) as answer:
        return json.load(answer)


def wait():
    while True:
        if process.poll() is not None:
            sys.exit(f"llama.cpp's server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)


def ids(salt, count):
    return [300 + (salt * 7919 + i * 104729) % 30000 for i in range(count)]


def complete(tokens, new, reports):
    answer = post("/completion", {
        "prompt": tokens, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": True,
    })
    reports.append(answer["timings"])


def all_of(prompts, gap=0.0):
    """Asks for all of them, each this long after the one before; the whole time and what the server measured."""
    reports, threads, begun = [], [], time.perf_counter()
    for n, tokens in enumerate(prompts):
        time.sleep(max(0.0, begun + n * gap - time.perf_counter()))
        threads.append(threading.Thread(target=complete, args=(tokens, new, reports)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    if len(reports) != len(prompts):
        sys.exit("llama.cpp's server did not answer everything")
    return time.perf_counter() - begun, reports


def measure():
    global salt
    salt += 1000
    if scenario == "streams":
        total, reports = all_of([ids(salt + n, prompt) for n in range(slots)])
        return {
            "total_s": total,
            "prefill_tokens_per_s": statistics.median(r["prompt_per_second"] for r in reports),
            "decode_tokens_per_s": statistics.median(r["predicted_per_second"] for r in reports) * slots,
        }
    if scenario == "burst":
        shared = ids(salt, given["shared"])
        total, reports = all_of([shared + ids(salt + n + 1, prompt) for n in range(given["requests"])])
        return {"total_s": total, "prompt_tokens_computed": sum(r["prompt_n"] for r in reports)}
    total, _ = all_of([ids(salt + n, prompt) for n in range(given["requests"])], 5.0 / given["requests"])
    return {"total_s": total}


try:
    wait()
    load = time.perf_counter() - started
    complete(ids(1, 8), 2, [])
    version = subprocess.run([server, "--version"], capture_output=True, text=True).stderr
    version = next((line.split(": ", 1)[1] for line in version.splitlines() if line.startswith("version")), "?")
    print(json.dumps({"load_ms": load * 1000, "version": version}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), flush=True)
finally:
    process.terminate()
    process.wait()
