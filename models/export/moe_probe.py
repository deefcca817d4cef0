"""Checks of a converted layer: a few tokens' hidden states go through the checkpoint's layer, through the written int4 weights
and through ONNX Runtime.

Two streams of hidden states go from layer to layer: the checkpoint's, and that of the int4 weights alone, whose distance is
the error that has accumulated. Both are computed by moe_reference.py.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

import moe_graph
import moe_reference

#: A graph's largest difference from the reference of the same int4 weights, as a share of the largest hidden state.
GRAPH_TOLERANCE = 1e-3
#: An int4 layer that is off by more is no rounding: weights were read or written wrongly.
INT4_LIMIT = 0.6
TEXT = """The pump in hall 3 stopped at 14:02. Its bearing was at 81 °C, eleven degrees above the limit of 70, and vibration had
risen since noon. Write one sentence for the shift report, then list what the technician should look at first."""


class CheckError(Exception):
    """A converted layer that does not compute what it should."""


@dataclass
class Result:
    """What a layer's check found: shares of the size of what the layer adds, the medians of all tokens."""

    int4_error: float
    accumulated_error: float
    graph_difference: float | None
    other_experts: int

    def line(self):
        graph = "not run" if self.graph_difference is None else f"within {self.graph_difference:.1e} of the int4 reference"
        return (f"int4 error {self.int4_error:.1%}, accumulated {self.accumulated_error:.1%}, "
                f"tokens with other experts {self.other_experts}, graph {graph}")


def probe_ids(folder, shape, count):
    """Tokens of a text where the tokenizer is at hand, else spread over the vocabulary."""
    try:
        from tokenizers import Tokenizer

        ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids
        if ids and max(ids) < shape.vocab:
            return np.resize(ids, count)
    except Exception:  # Neither the package nor the file is needed.
        pass
    return np.random.default_rng(5).integers(3, shape.vocab * 3 // 4, count)


def size(rows):
    return np.sqrt((rows**2).mean(-1))


def error(got, wanted, before):
    """The median over the tokens of the error, as a share of what the layers have added."""
    return float(np.median(size(got - wanted) / size(wanted - before)))


def run_graph(shape, i, tensors, folder, stream):
    """ONNX Runtime's result of a layer, at 32 bits: what its graph means, without the rounding of level 4."""
    path = folder / ".check.onnx"
    plain = type(shape)(**(vars(shape) | {"accuracy": 0}))
    model = onnx.helper.make_model(moe_graph.layer_graph(plain, i, tensors), ir_version=10, opset_imports=[
        onnx.helper.make_opsetid("", 22), onnx.helper.make_opsetid("com.microsoft", 1)])
    onnx.save(model, path)
    try:
        settings = ort.SessionOptions()
        settings.log_severity_level = 3
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        feeds = {"stream": stream[None], "attention_mask": np.ones((1, len(stream)), np.int64)}
        past = np.zeros((1, shape.kv_heads, 0, shape.head), np.float32)
        feeds |= {f"past_key_values.{i}.{part}": past for part in ("key", "value")}
        return session.run(["result"], feeds)[0][0]
    finally:
        path.unlink(missing_ok=True)


def check_layer(shape, i, checkpoint, tensors, folder, streams):
    """Checks layer `i`; returns both streams behind it, and the result."""
    written = moe_reference.Stored(folder, shape, tensors)
    exact, exact_experts, _ = moe_reference.layer(shape, checkpoint, i, streams[0])
    rounded, experts, _ = moe_reference.layer(shape, written, i, streams[0])
    accumulated, _, _ = moe_reference.layer(shape, written, i, streams[1])
    difference = None
    if shape.form == "cpu":
        got = run_graph(shape, i, tensors, folder, streams[0])
        difference = float(np.abs(got - rounded).max() / np.abs(rounded).max())
    other = int((np.sort(experts, 1) != np.sort(exact_experts, 1)).any(1).sum())
    result = Result(error(rounded, exact, streams[0]), error(accumulated, exact, streams[2]), difference, other)
    if difference is not None and not difference <= GRAPH_TOLERANCE:
        raise CheckError(f"layer {i}: ONNX Runtime's result is {difference:.1e} from the reference of the same int4 weights; "
                         f"at most {GRAPH_TOLERANCE} is rounding. Does requirements.txt's version of onnxruntime run?")
    if not result.int4_error <= INT4_LIMIT:
        raise CheckError(f"layer {i}: int4 weights are off by {result.int4_error:.0%} of what the layer adds; at most "
                         f"{INT4_LIMIT:.0%} is rounding. Is the checkpoint damaged?")
    return (exact, accumulated, streams[2]), result


def check_head(shape, checkpoint, tensors, folder, streams):
    """How much the whole model's answers differ: a line of text."""
    written = moe_reference.Stored(folder, shape, tensors)
    exact, rounded = moe_reference.head(shape, checkpoint, streams[0]), moe_reference.head(shape, written, streams[1])
    shares, others = moe_reference.softmax(exact), moe_reference.softmax(rounded)
    divergence = float((shares * (np.log(shares + 1e-30) - np.log(others + 1e-30))).sum(-1).mean())
    same = int((exact.argmax(-1) == rounded.argmax(-1)).sum())
    return f"the likeliest token is the same at {same} of {len(exact)} places, mean divergence {divergence:.3f} nats"
