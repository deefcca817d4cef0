"""Writes tests/fixtures/moe: small models of Phi-3.5-MoE's form with random weights, and goldens of moe_reference.py.

    python moe_forms.py [FOLDER]

Three layers, four experts, LongRoPE's boundary at 64 tokens of 256. Each case's greedy answer is the reference's, which
computes every token from the whole sequence, with factors by its length. ONNX Runtime, where it can run a form, must answer
the same, each token from the whole sequence too.

Products of level 4 round their rows to 8 bits, differently from processor to processor, and a sparse mixer decides by
comparisons. Goldens for it are of prompts whose answers stay the same when all weights are off by 0.6 %, which is what such
rounding does to a product.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

import moe_reference
from random_model import long_factors

HERE = Path(__file__).resolve().parent
DIMENSIONS = {"layers": 3, "hidden": 64, "inner": 96, "heads": 4, "kv-heads": 2, "experts": 4, "vocab": 320, "context": 256,
              "original": 64, "block": 32}
#: Options of random_moe.py for each folder.
FORMS = {
    "plain": {"accuracy": 0, "routing": "random"},
    "level4": {"accuracy": 4},
    "level4-asymmetric": {"accuracy": 4, "asymmetric": None, "seed": 2},
    # Rows of a multiple of 64, which CUDA's kernel requires.
    "cuda": {"accuracy": 4, "form": "cuda", "inner": 128},
}
#: Name, tokens of the prompt, of the answer, and the group of those that step together.
CASES = (
    ("one-token", 1, 8, None), ("short", 6, 10, None), ("medium", 40, 10, "company"), ("ends-at-the-boundary", 52, 12, "company"),
    ("crosses-after-one", 64, 8, "company"), ("crosses", 57, 16, None), ("crosses-late", 60, 12, None), ("beyond", 65, 8, None),
    ("long", 100, 10, None),
)
#: Of prompts that are drawn: all are below the tokenizer's control tokens.
TEXT_IDS = 250
DISTURBANCE, DISTURBED = 0.006, 4


class Cached(moe_reference.Stored):
    """Weights that are dequantised once; each value is off by a random share of `disturbance`."""

    def __init__(self, folder, shape, disturbance=0.0, seed=0):
        super().__init__(folder, shape)
        self.disturbance, self.rng, self.known = disturbance, np.random.default_rng(seed), {}

    def off(self, values):
        return values * (1 + self.disturbance * self.rng.standard_normal(values.shape, np.float32))

    def matrix(self, name):
        if name not in self.known:
            self.known[name] = self.off(super().matrix(name))
        return self.known[name]

    def expert(self, layer, number):
        if (layer, number) not in self.known:
            self.known[layer, number] = tuple(map(self.off, super().expert(layer, number)))
        return self.known[layer, number]


class Shape:
    def __init__(self, options):
        for name, value in {**DIMENSIONS, **options}.items():
            setattr(self, name.replace("-", "_"), value)
        self.head, self.epsilon, self.jitter = self.hidden // self.heads, 1e-5, 0.01
        self.large, self.small = (long_factors(self), None), ([1.0] * (self.head // 2), None)


def greedy(shape, weights, prompt, count, margin=0.0):
    """The answer, the logits after the prompt, the smallest margin and routing gap; None below `margin`."""
    ids, first, margins, gaps = list(prompt), None, [], []
    for _ in range(count):
        last, gap = moe_reference.logits(shape, weights, ids)
        first = last if first is None else first
        best = np.argsort(last)[-2:]
        margins.append(float(last[best[1]] - last[best[0]]))
        gaps.append(gap)
        if margins[-1] < margin:
            return None
        ids.append(int(best[1]))
    return ids[len(prompt):], first, min(margins), min(gaps)


def steady_case(shape, exact, disturbed, rng, length, count):
    """A prompt whose answer does not depend on rounding."""
    margin, gap = (0.12, 0.0) if disturbed else (0.01, 2e-4)
    while True:
        prompt = [int(n) for n in rng.integers(3, TEXT_IDS, length)]
        found = greedy(shape, exact, prompt, count, margin)
        if found is None or found[3] < gap:
            continue
        if length + count > shape.original + 1:
            kept, shape.large = shape.large, shape.small
            with_short = greedy(shape, exact, prompt, count)
            shape.large = kept
            if with_short[0] == found[0]:
                continue
        for weights in disturbed:
            other = greedy(shape, weights, prompt, count)
            if other[0] != found[0] or np.abs(other[1] - found[1]).max() > 0.1:
                break
        else:
            return prompt, found


def runs(session, prompt, count, shape):
    """ONNX Runtime's answer and its logits after the prompt."""
    ids, first = list(prompt), None
    for _ in range(count):
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        for given in session.get_inputs()[2:]:
            feeds[given.name] = np.zeros((1, shape.kv_heads, 0, shape.head), np.float32)
        last = session.run(["logits"], feeds)[0][0, -1]
        first = last if first is None else first
        ids.append(int(last.argmax()))
    return ids[len(prompt):], first


def goldens(folder, options):
    shape = Shape(options)
    exact, disturbed, session = Cached(folder, shape), [], None
    if shape.accuracy:
        disturbed = [Cached(folder, shape, DISTURBANCE, seed) for seed in range(DISTURBED)]
    if "form" not in options:
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = 1
        session = ort.InferenceSession(folder / "model.onnx", settings, providers=["CPUExecutionProvider"])
    rng, cases = np.random.default_rng(11), []
    for name, length, count, group in CASES:
        prompt, (ids, first, margin, gap) = steady_case(shape, exact, disturbed, rng, length, count)
        top = np.argsort(first)[::-1][:5]
        case = {"name": name, "prompt_ids": prompt, "max_new_tokens": count, "greedy_ids": ids,
                "last_logits_top5": {"ids": top.tolist(), "values": [round(float(first[n]), 5) for n in top]},
                "min_margin": round(margin, 4), "min_router_gap": round(gap, 5)}
        if group:
            case["group"] = group
        if session:
            answer, logits = runs(session, prompt, count, shape)
            difference = float(np.abs(logits - first).max())
            assert answer == ids, f"{folder.name} {name}: ONNX Runtime answers {answer} instead of {ids}"
            assert difference < (0.1 if shape.accuracy else 1e-4), f"{folder.name} {name}: {difference} apart"
            case["onnxruntime_max_abs_diff"] = float(f"{difference:.2e}")
        cases.append(case)
        print(folder.name, case["name"], case["min_margin"], case["min_router_gap"], case.get("onnxruntime_max_abs_diff"), flush=True)
    text = ",\n".join(json.dumps(case) for case in cases)
    (folder / "golden.json").write_text('{"cases": [\n' + text + "\n]}\n")


def main(out):
    for name, options in FORMS.items():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        given = []
        for option, value in {**DIMENSIONS, **options}.items():
            given += [f"--{option}"] if value is None else [f"--{option}", str(value)]
        subprocess.run([sys.executable, HERE / "random_moe.py", folder, *given], check=True)
        goldens(folder, options)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[1] / "tests/fixtures/moe")
