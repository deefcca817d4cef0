"""Prints how far programs agree with the reference on an answer that crosses the LongRoPE boundary (docs/models.md).

    python crossing.py MODEL BOUNDARY [--golden GOLDEN.json] [--phi-edge BINARY]

The reference is ONNX Runtime on the model's graph without a cache, every token computed from the whole sequence; with
--golden the greedy ids of another program (Hugging Face) are held against it first. Needs numpy, onnxruntime and
onnxruntime-genai.
"""

import argparse
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og

# An answer crosses the boundary after so many new tokens, and has so many in all.
BEFORE, NEW = 8, 40
# A second turn's prompt has so many tokens more than the boundary.
TURN = 12


class Reference:
    def __init__(self, model):
        config = json.loads((model / "genai_config.json").read_text())["model"]
        self.ends, config = set(config["eos_token_id"]), config["decoder"]
        self.session = ort.InferenceSession(model / config["filename"], providers=["CPUExecutionProvider"])
        self.past = (1, config["num_key_value_heads"], 0, config["head_size"])

    def greedy(self, prompt, count):
        ids, least = list(prompt), np.inf
        for _ in range(count):
            feeds = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones((1, len(ids)), np.int64)}
            feeds |= {given.name: np.zeros(self.past, np.float32) for given in self.session.get_inputs()[2:]}
            last = self.session.run(["logits"], feeds)[0][0, -1]
            second, best = np.argsort(last)[-2:]
            least = min(least, float(last[best] - last[second]))
            ids.append(int(best))
        return ids[len(prompt):], least

    def endless(self, draw, count):
        """A drawn prompt whose answer has no end token, so that all programs go on, and that answer."""
        while True:
            prompt = draw()
            answer, least = self.greedy(prompt, count)
            if not self.ends & set(answer):
                return prompt, answer, least


def parameters(model, most):
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=most, do_sample=False)
    return params


def generator(model, prompt, count, *turns):
    """One sequence; each further turn is (ids, new tokens). Returns the last turn's answer."""
    turns = ((prompt, count), *turns)
    sequence = og.Generator(model, parameters(model, sum(len(ids) + count for ids, count in turns)))
    for ids, count in turns:
        sequence.append_tokens(np.array(ids, np.int32))
        start = len(sequence.get_sequence(0))
        for _ in range(count):
            sequence.generate_next_token()
    return [int(id) for id in sequence.get_sequence(0)[start:]]


def engine(model, prompt, *turns):
    """One request of an `Engine`; each turn is (ids, new tokens). Returns the last turn's answer."""
    engine = og.Engine(model)
    options = og.RequestOptions()
    options.set_max_session_tokens(sum(len(ids) + count for ids, count in (prompt, *turns)) + 1)
    request, buffer = engine.create_request(options=options), engine.create_event_buffer(64)
    for ids, count in (prompt, *turns):
        turn, answer = og.TurnOptions(request), []
        turn.set_do_sample(False)
        turn.set_max_generated_tokens(count)
        turn.set_min_generated_tokens(count)
        request.begin_turn(np.array(ids, np.int32), turn)
        while engine.has_pending_requests():
            for event in engine.run(buffer):
                if event.flags & og.EngineEventFlags.FAILED:
                    raise SystemExit(f"genai failed: {event.error_code}")
                if event.flags & og.EngineEventFlags.TOKEN:
                    answer.append(int(event.token))
    request.close()
    return answer


def phi_edge(binary, model, prompt, count, policy):
    environment = os.environ | {"PHI_EDGE__MODEL__PATH": str(model), "PHI_EDGE__RUNTIME__ROPE_POLICY": policy}
    command = [binary, "ask", "--ids", ",".join(map(str, prompt)), "--max-tokens", str(count), "--json"]
    return json.loads(subprocess.run(command, env=environment, check=True, capture_output=True).stdout)["tokens"]


def report(name, got, expected):
    pairs = enumerate(zip(got, expected))
    agreeing = next((at for at, (a, b) in pairs if a != b), min(len(got), len(expected)))
    print(f"| {name} | {agreeing} of {len(expected)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("boundary", type=int)
    parser.add_argument("--golden", type=Path)
    parser.add_argument("--phi-edge")
    args = parser.parse_args()
    reference, boundary = Reference(args.model), args.boundary
    rng = np.random.default_rng(5)
    draw = lambda count: [int(id) for id in rng.integers(3, 250, count)]
    golden = None
    if args.golden:
        case = next(case for case in json.loads(args.golden.read_text())["cases"] if case["name"] == "cross-orig-max")
        prompt, golden = case["prompt_ids"], case["greedy_ids"]
        expected, least = reference.greedy(prompt, len(golden))
    else:
        prompt, expected, least = reference.endless(lambda: draw(boundary - BEFORE), NEW)
    print(f"onnxruntime {ort.__version__}, onnxruntime-genai {og.__version__}; {len(prompt)} + {len(expected)} tokens, smallest margin {least:.4f}")
    if golden:
        report("Hugging Face", golden, expected)
    model, count = og.Model(str(args.model)), len(expected)
    report("genai Generator", generator(model, prompt, count), expected)
    report("genai Engine", engine(model, (prompt, count)), expected)
    # Two turns: the first ends below the boundary, the second's prompt lies beyond it.
    first, answer, _ = reference.endless(lambda: draw(boundary - 2 * BEFORE), 4)
    second, wanted, _ = reference.endless(lambda: first + answer + draw(boundary + TURN - len(first + answer)), NEW)
    turn = second[len(first + answer):]
    report("genai Generator, second turn", generator(model, first, 4, (turn, NEW)), wanted)
    report("genai Engine, second turn", engine(model, (first, 4), (turn, NEW)), wanted)
    if args.phi_edge:
        for policy in ("switch", "pin"):
            got = phi_edge(args.phi_edge, args.model, prompt, count, policy)
            report(f"phi-edge, {policy}", got, expected)


if __name__ == "__main__":
    main()
