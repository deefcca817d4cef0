"""The graph of Phi-3.5-MoE's decoder, and the list of its weights.

Two forms. "cpu": `QMoE` with gate and up as one weight whose rows are interleaved, and the sparse mixer's rule in plain nodes
before it, for ONNX Runtime's CPU kernel has neither a third weight nor that rule. "cuda": what onnxruntime-genai's exporter
writes, with three weights and `use_sparse_mixer=1`. ONNX Runtime's CPU kernel computes that one wrongly, without an error.

A shape names the dimensions: layers, hidden, inner, heads, kv_heads, head, experts, vocab, context, original, block, accuracy
(0 leaves the level out), asymmetric, form, epsilon, jitter; `large` and `small` are pairs of LongRoPE's factors and scale.
"""

import math
from dataclasses import dataclass

from onnx import TensorProto, helper

from random_model import FLOAT, FLOAT16, INT64, UINT8, Nodes, keys_and_values, lengths, rope_caches

#: In place of minus infinity, with which a row of nothing else would have no softmax.
MASKED = -1e30
#: The experts that the sparse mixer chooses for a token.
CHOSEN = 2


@dataclass(frozen=True)
class Weight:
    """An initializer: its kind, and for those of a quantised product the length of a row before quantisation."""

    name: str
    kind: str
    dims: tuple
    inner: int = 0


def io_type(shape):
    """The type of hidden states, scales, keys, values and logits."""
    return FLOAT16 if shape.form == "cuda" else FLOAT


def element_type(shape, weight):
    return UINT8 if weight.kind in ("blocks", "zero_points") else io_type(shape)


def norm_weights(name, hidden):
    return [Weight(f"{name}.weight", "norm", (hidden,)), Weight(f"{name}.bias", "bias", (hidden,))]


def product_weights(shape, name, inner, outer):
    """The weights of a quantised product with a bias."""
    blocks = inner // shape.block
    root = f"{name}.MatMul.weight"
    weights = [Weight(f"{root}_Q4", "blocks", (outer, blocks, shape.block // 2), inner),
               Weight(f"{root}_scales", "scales", (outer, blocks), inner)]
    if shape.asymmetric:
        weights.append(Weight(f"{root}_zp", "zero_points", (outer * ((blocks + 1) // 2),), inner))
    return [*weights, Weight(f"{name}.Add.bias", "bias", (outer,))]


def expert_parts(shape):
    """The expert weights of a layer: number, rows and row length."""
    hidden, inner = shape.hidden, shape.inner
    if shape.form == "cuda":
        return [(1, inner, hidden), (2, hidden, inner), (3, inner, hidden)]
    return [(1, 2 * inner, hidden), (2, hidden, inner)]


def expert_weights(shape, name):
    weights = []
    for number, outer, inner in expert_parts(shape):
        blocks = inner // shape.block
        weights += [Weight(f"{name}.weight_{number}", "blocks", (shape.experts, outer, inner // 2), inner),
                    Weight(f"{name}.scales_{number}", "scales", (shape.experts, outer, blocks), inner)]
        if shape.asymmetric:
            weights.append(Weight(f"{name}.zero_points_{number}", "zero_points", (shape.experts, outer, (blocks + 1) // 2), inner))
    return weights


def qkv_width(shape):
    return (shape.heads + 2 * shape.kv_heads) * shape.head


def layer_weights(shape, i):
    """The weights of a layer in the order in which its file has them."""
    layer = f"model.layers.{i}"
    return [
        *norm_weights(f"{layer}.input_layernorm", shape.hidden),
        *product_weights(shape, f"{layer}.attn.qkv_proj", shape.hidden, qkv_width(shape)),
        *product_weights(shape, f"{layer}.attn.o_proj", shape.heads * shape.head, shape.hidden),
        *norm_weights(f"{layer}.post_attention_layernorm", shape.hidden),
        Weight(f"{layer}.moe.gate.MatMul.weight", "router", (shape.hidden, shape.experts)),
        *expert_weights(shape, f"{layer}.moe"),
    ]


def embedding_weight(shape):
    return Weight("model.embed_tokens.weight", "embedding", (shape.vocab, shape.hidden))


def head_weights(shape):
    """The weights behind the last layer."""
    return [*norm_weights(f"model.layers.{shape.layers}.final_norm_layernorm", shape.hidden),
            *product_weights(shape, "lm_head", shape.hidden, shape.vocab)]


def all_weights(shape):
    yield embedding_weight(shape)
    for i in range(shape.layers):
        yield from layer_weights(shape, i)
    yield from head_weights(shape)


class Decoder(Nodes):
    """The nodes of the decoder."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.stream, self.pending = shape, None, None

    def number(self, value):
        """A constant of the hidden states' type without dimensions."""
        kind = io_type(self.shape)
        name = f"/model/constants/{TensorProto.DataType.Name(kind)}/{value}"
        return self.node("Constant", [], [name], name.replace("constants", "constant_nodes"),
                         value=helper.make_tensor(name, kind, [], [value]))

    def norm(self, name, last=False):
        """The norm that also adds what the block before it has computed."""
        root, epsilon = name.strip("/").replace("/", "."), self.shape.epsilon
        weights = [f"{root}.weight", f"{root}.bias"]
        if self.pending is None:
            return self.node("LayerNormalization", [self.stream, *weights], [f"{name}/output_0"], f"{name}/LayerNorm",
                             axis=-1, epsilon=epsilon, stash_type=1)
        outputs = [f"{name}/output_0"] if last else [f"{name}/output_0", "", "", f"{name}/output_3"]
        self.node("SkipLayerNormalization", [self.stream, self.pending, *weights], outputs, f"{name}/SkipLayerNorm", epsilon=epsilon)
        self.stream = outputs[-1]
        return outputs[0]

    def product(self, source, name, inner, outer):
        """A quantised product and its bias."""
        shape, root = self.shape, name.strip("/").replace("/", ".")
        inputs = [source, f"{root}.MatMul.weight_Q4", f"{root}.MatMul.weight_scales"]
        if shape.asymmetric:
            inputs.append(f"{root}.MatMul.weight_zp")
        product = self.node("MatMulNBits", inputs, [f"{name}/MatMul/output_0"], f"{name}/MatMul_Q4", K=inner, N=outer, bits=4,
                            block_size=shape.block, accuracy_level=shape.accuracy)
        return self.node("Add", [product, f"{root}.Add.bias"], [f"{name}/Add/output_0"], f"{name}/Add")

    def attention(self, i, source, ends, total):
        shape, name = self.shape, f"/model/layers.{i}/attn"
        packed = self.product(source, f"{name}/qkv_proj", shape.hidden, qkv_width(shape))
        mixed = self.node(
            "GroupQueryAttention",
            [packed, "", "", f"past_key_values.{i}.key", f"past_key_values.{i}.value", ends, total, "cos_cache", "sin_cache"],
            [f"{name}/GroupQueryAttention/output_0", f"present.{i}.key", f"present.{i}.value"],
            f"{name}/GroupQueryAttention", num_heads=shape.heads, kv_num_heads=shape.kv_heads,
            scale=1 / math.sqrt(shape.head), do_rotary=1, rotary_interleaved=0,
        )
        return self.product(mixed, f"{name}/o_proj", shape.heads * shape.head, shape.hidden)

    def mixer(self, name, scores):
        """The sparse mixer without its jitter (Phi-3.5-MoE's `sparsemixer`, which does not sample outside training): the
        weight of each expert if it is the best, and of the others if they are the second."""
        axis = self.constant(-1, (1,))
        magnitude = self.node("Abs", [scores], [f"{name}/Abs/output_0"], f"{name}/Abs")

        def shares(part, left):
            """The softmax over those that are near enough to the largest of `left`, and that largest."""
            root = f"{name}/{part}"

            def node(kind, inputs, **attributes):
                return self.node(kind, inputs, [f"{root}/{kind}/output_0"], f"{root}/{kind}", **attributes)

            most = node("ReduceMax", [left, axis], keepdims=1)
            distance = node("Div", [node("Sub", [most, scores]), node("Max", [magnitude, most])])
            far = node("Greater", [distance, self.number(2 * self.shape.jitter)])
            return node("Softmax", [node("Where", [far, self.number(MASKED), left])], axis=-1), most

        first, most = shares("first", scores)
        best = self.node("Equal", [scores, most], [f"{name}/Equal/output_0"], f"{name}/Equal")
        rest = self.node("Where", [best, self.number(MASKED), scores], [f"{name}/rest/Where/output_0"], f"{name}/rest/Where")
        second, _ = shares("second", rest)
        return self.node("Where", [best, first, second], [f"{name}/Where/output_0"], f"{name}/Where")

    def experts(self, i, source):
        shape, name, root = self.shape, f"/model/layers.{i}/moe", f"model.layers.{i}.moe"
        scores = self.node("MatMul", [source, f"{root}.gate.MatMul.weight"], [f"{name}/gate/MatMul/output_0"], f"{name}/gate/MatMul")
        rows = f"/model/constants/INT64/[-1, {shape.experts}]"
        self.node("Constant", [], [rows], rows.replace("constants", "constant_nodes"),
                  value=helper.make_tensor(rows, INT64, [2], [-1, shape.experts]))
        scores = self.node("Reshape", [scores, rows], [f"{name}/gate/Reshape/output_0"], f"{name}/gate/Reshape")
        inputs, zero_points = [source, scores], []
        for number in (1, 2, 3):
            known = any(number == part[0] for part in expert_parts(shape))
            inputs += [f"{root}.weight_{number}", f"{root}.scales_{number}", ""] if known else ["", "", ""]
            zero_points.append(f"{root}.zero_points_{number}" if known and shape.asymmetric else "")
        attributes = {"k": CHOSEN, "activation_alpha": 1.0, "activation_beta": 0.0, "expert_weight_bits": 4,
                      "block_size": shape.block, "weights_prepacked": 0}
        if shape.form == "cuda":
            attributes |= {"activation_type": "silu", "swiglu_fusion": 0, "use_sparse_mixer": 1, "normalize_routing_weights": 0}
            inputs += zero_points if shape.asymmetric else []
        else:
            attributes |= {"activation_type": "swiglu", "swiglu_fusion": 1}
            if shape.accuracy:
                attributes["accuracy_level"] = shape.accuracy
            inputs += [*zero_points, self.mixer(f"{name}/mixer", scores)]
        return self.node("QMoE", inputs, [f"{name}/output_0"], name, **attributes)

    def layer(self, i, ends, total):
        layer = f"/model/layers.{i}"
        self.pending = self.attention(i, self.norm(f"{layer}/input_layernorm"), ends, total)
        self.pending = self.experts(i, self.norm(f"{layer}/post_attention_layernorm"))


def unique(nodes):
    """The nodes without constants that are there already."""
    seen, kept = set(), []
    for node in nodes:
        if node.op_type != "Constant" or node.output[0] not in seen:
            kept.append(node)
        seen.update(node.output)
    return kept


def graph(shape, initializers, numpy):
    """The decoder's graph over weights that are written already; `numpy` is the type of its rope tables."""
    shape.positions, kind, info = False, io_type(shape), helper.make_tensor_value_info
    nodes = Decoder(shape)
    ends, total = lengths(nodes, shape, [rope_caches(shape, kind, numpy, shape.large, shape.small)])
    nodes.stream = nodes.node("Gather", ["model.embed_tokens.weight", "input_ids"], ["/model/embed_tokens/Gather/output_0"],
                              "/model/embed_tokens/Gather")
    for i in range(shape.layers):
        nodes.layer(i, ends, total)
    normed = nodes.norm(f"/model/layers.{shape.layers}/final_norm_layernorm", last=True)
    nodes.product(normed, "/lm_head", shape.hidden, shape.vocab)
    nodes[-1].output[0] = "logits"
    return finish(nodes, range(shape.layers), info("input_ids", INT64, ["batch_size", "sequence_length"]),
                  info("logits", kind, ["batch_size", "sequence_length", shape.vocab]), initializers)


def layer_graph(shape, i, initializers):
    """A graph of layer `i` alone, from `stream` to `result`, fp32 hidden states [batch, length, hidden]."""
    shape.positions, dims = False, ["batch_size", "sequence_length", shape.hidden]
    nodes = Decoder(shape)
    ends, total = lengths(nodes, shape, [rope_caches(shape, FLOAT, "float32", shape.large, shape.small)])
    nodes.stream = "stream"
    nodes.layer(i, ends, total)
    nodes.node("Add", [nodes.stream, nodes.pending], ["result"], "/result/Add")
    ends_of = (helper.make_tensor_value_info(name, FLOAT, dims) for name in ("stream", "result"))
    return finish(nodes, [i], *ends_of, initializers)


def finish(nodes, layers, first, last, initializers):
    past, present = keys_and_values(nodes.shape, io_type(nodes.shape), layers)
    mask = helper.make_tensor_value_info("attention_mask", INT64, ["batch_size", "total_sequence_length"])
    return helper.make_graph(unique(nodes), "main_graph", [first, mask, *past], [last, *present], initializers)
