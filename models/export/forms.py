"""Writes tests/fixtures/forms: one small random model in the exporter's forms of 2024 and of today, with goldens.

    python forms.py

The reference is ONNX Runtime alone, without any cache: every token is computed from the whole sequence. So it also says
what is right beyond the LongRoPE boundary, where the cache must be computed anew.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "tests/fixtures/forms"
SHAPE = "--layers 2 --hidden 64 --inner 96 --heads 4 --vocab 320 --context 256 --original 64 --block 32 --accuracy 1".split()


def greedy(session, prompt, count):
    ids, gaps = list(prompt), []
    for _ in range(count):
        feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
        for given in session.get_inputs()[2:]:
            feeds[given.name] = np.zeros((1, 4, 0, 16), np.float32)
        last = session.run(["logits"], feeds)[0][0, -1]
        best = np.argsort(last)[-2:]
        ids.append(int(best[1]))
        gaps.append(float(last[best[1]] - last[best[0]]))
    return ids[len(prompt):], gaps


def main():
    goldens = {}
    for form in ("2024", "2026"):
        out = OUT / form
        subprocess.run([sys.executable, HERE / "random_model.py", out, "--form", form, *SHAPE], check=True)
        name = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["filename"]
        session = ort.InferenceSession(out / name, providers=["CPUExecutionProvider"])
        rng = np.random.default_rng(7)
        goldens[form] = []
        # Below the boundary, across it while reading, across it while writing.
        for length, count in ((5, 40), (90, 30), (50, 60), (1, 8)):
            prompt = [int(n) for n in rng.integers(0, 260, length)]
            ids, gaps = greedy(session, prompt, count)
            goldens[form].append({"prompt_ids": prompt, "ids": ids, "gaps": [round(gap, 4) for gap in gaps]})
    assert goldens["2024"] == goldens["2026"], "the forms differ"
    (OUT / "golden.json").write_text(json.dumps(goldens["2026"]) + "\n")


if __name__ == "__main__":
    main()
