"""A bare loop over a decoder's graph: python bare_loop.py MODEL PROVIDER BATCH PROMPT NEW.

The session of ONNX Runtime's Python package and its IO binding, keys and values in one buffer for past and present, greedy choice, no
scheduling: what a program gets for `BATCH` rows of one length. Prints one object when the model is loaded, then one for every line on
standard input, as `phi-edge bench --turns --json` does.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

folder, provider = Path(sys.argv[1]), sys.argv[2]
batch, prompt, new = (int(argument) for argument in sys.argv[3:6])
device = "cuda" if provider == "cuda" else "cpu"
config = json.loads((folder / "genai_config.json").read_text())["model"]
decoder = config["decoder"]
started = time.perf_counter()
if hasattr(ort, "preload_dlls") and device == "cuda":
    ort.preload_dlls()
session = ort.InferenceSession(
    str(folder / decoder["filename"]), providers=["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
)
if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
    sys.exit("this onnxruntime can't use CUDA here")
loaded = time.perf_counter() - started

layers, heads, size = decoder["num_hidden_layers"], decoder["num_key_value_heads"], decoder["head_size"]
kind = {"tensor(float16)": np.float16, "tensor(float)": np.float32}
types = {node.name: kind.get(node.type) for node in (*session.get_inputs(), *session.get_outputs())}
past = [decoder["inputs"][f"past_{part}_names"] % layer for layer in range(layers) for part in ("key", "value")]
present = [decoder["outputs"][f"present_{part}_names"] % layer for layer in range(layers) for part in ("key", "value")]
shape = [batch, heads, prompt + new, size]
caches = [ort.OrtValue.ortvalue_from_shape_and_type(shape, types[name], device, 0) for name in past]
binding = session.io_binding()
for cache, source, result in zip(caches, past, present):
    for bind, name in ((binding.bind_input, source), (binding.bind_output, result)):
        bind(name, device, 0, types[name], shape, cache.data_ptr())


def run(ids, total, logits_on):
    """One run of tokens `[batch, length]`, the rows then `total` tokens long; the logits stay on the device or come here."""
    mask = np.ones((batch, total), np.int64)
    binding.bind_cpu_input("input_ids", ids)
    binding.bind_cpu_input("attention_mask", mask)
    # Bound last of all outputs, so the last of them.
    binding.bind_output("logits", logits_on)
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()


def measure(salt):
    vocabulary = config["vocab_size"]
    rows = [[(n * 7919 + (salt + row) * 104729 + 17) % vocabulary for n in range(prompt)] for row in range(batch)]
    begun = time.perf_counter()
    # Logits of whole prompts are large, and only the last row of each counts.
    run(np.array(rows, np.int64), prompt, device)
    first = time.perf_counter()
    ids = np.array([[1 + row] for row in range(batch)], np.int64)
    for step in range(new - 1):
        run(ids, prompt + step + 1, "cpu")
        ids = binding.get_outputs()[-1].numpy()[:, -1, :].argmax(axis=-1).reshape(batch, 1).astype(np.int64)
    ended = time.perf_counter()
    return {
        "prefill_tokens_per_s": batch * prompt / (first - begun),
        "decode_tokens_per_s": batch * (new - 1) / (ended - first),
        "total_s": ended - begun,
    }


measure(0)
print(json.dumps({"load_ms": loaded * 1000, "version": ort.__version__}, separators=(",", ":")), flush=True)
for number, _ in enumerate(sys.stdin, 1):
    print(json.dumps(measure(number * batch), separators=(",", ":")), flush=True)
