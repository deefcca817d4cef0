"""Writes a model directory as onnxruntime-genai's exporter does, with random weights and without PyTorch.

    python random_model.py OUT [--layers 32] [--hidden 3072] … [--form 2026|2024] [--precision f32|f16]

Speed does not depend on the weights, so performance is measured on these. `--form 2024` writes what the exporter wrote
in 2024: opset 14, IR 7, fixed KV dimensions, zero points in the quantised blocks, a file name of its own, `position_ids`
named in genai_config.json although the graph takes none. The two forms of one seed compute the same.

`--precision f16` writes the form for CUDA: scales, norms, keys, values and logits of 16 bits. `--positions` with it that for
DirectML: `position_ids`, rotary embeddings as nodes of their own, and their tables in one that positions choose from.

`--sharp` makes the logits depend more on the attention, for measurements of accuracy, and some channels of the keys large, as
trained models have them.

The tokenizer of `--tokenizer FOLDER` is copied beside it; ids that it does not know have no text.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16
INT64, INT32, UINT8 = TensorProto.INT64, TensorProto.INT32, TensorProto.UINT8


class Weights:
    """The external data: tensors are written as they come, so that memory holds one at a time."""

    #: The alignment of a tensor: the library maps the file.
    page = 4096

    def __init__(self, path, seed, precision="f32"):
        self.file, self.name, self.rng = open(path, "wb"), path.name, np.random.default_rng(seed)
        self.tensors, self.kind, self.numpy = [], *((FLOAT16, np.float16) if precision == "f16" else (FLOAT, np.float32))

    def start(self, name, dims, data_type):
        """Starts a tensor, whose bytes `file` is given next."""
        self.file.write(b"\0" * (-self.file.tell() % self.page))
        self.tensors.append(TensorProto(name=name, dims=dims, data_type=data_type, data_location=TensorProto.EXTERNAL))
        self.offset = self.file.tell()

    def end(self):
        """Ends the tensor that was started."""
        for key, value in (("location", self.name), ("offset", self.offset), ("length", self.file.tell() - self.offset)):
            self.tensors[-1].external_data.add(key=key, value=str(value))

    def add(self, name, dims, data_type, data):
        self.start(name, dims, data_type)
        self.file.write(data)
        self.end()
        return name

    def floats(self, name, dims, mean, spread, rows=None):
        """Normal values; each row is multiplied by its factor in `rows`."""
        values = self.rng.standard_normal(dims, dtype=np.float32)
        values *= spread
        values += mean
        if rows is not None:
            values *= rows[:, None]
        return self.add(name, dims, self.kind, values.astype(self.numpy, copy=False).tobytes())


def tables(shape, factors, length, scale=None):
    """LongRoPE's cosines and sines (arXiv 2402.13753), as the exporter computes them: `scale` times as large, by default
    Phi-3's attention factor."""
    half = shape.head // 2
    inverse = 1.0 / (np.asarray(factors) * 10000.0 ** (np.arange(half) * 2 / shape.head))
    if scale is None:
        ratio = shape.context / shape.original
        scale = math.sqrt(1 + math.log(ratio) / math.log(shape.original)) if ratio > 1 else 1.0
    angles = np.outer(np.arange(length), inverse)
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def sharp_rows(shape):
    """Factors for the rows of queries, keys and values: values twice as large and, of each head, four pairs of channels that
    are rotated together four times as large in the keys and a quarter in the queries."""
    half = shape.head // 2
    large = np.ones(shape.head, np.float32)
    for pair in range(half // 8, half, half // 4):
        large[[pair, pair + half]] = 4
    large = np.tile(large, shape.heads)
    return np.concatenate([1 / large, large, np.full(shape.hidden, 2)]).astype(np.float32)


def long_factors(shape):
    half = shape.head // 2
    return [1 + 63 * (i / max(half - 1, 1)) ** 2 for i in range(half)]


def rope_caches(shape, kind, numpy, large=None, small=None):
    """The `If` that chooses the tables by the mask's width. `large` and `small` are pairs of factors and scale."""
    half = shape.head // 2

    def branch(name, given, length):
        nodes = []
        for part, table in zip(("cos", "sin"), tables(shape, given[0], length, given[1])):
            tensor = helper.make_tensor(f"{part}_cache_{name}", kind, table.shape, table.astype(numpy).tobytes(), raw=True)
            nodes.append(helper.make_node("Constant", [], [f"{part}_cache_{name}"], f"/{name}/{part}_cache/Constant", value=tensor))
        outputs = [helper.make_tensor_value_info(n.output[0], kind, [length, half]) for n in nodes]
        return helper.make_graph(nodes, f"{name}_rotemb_caches_graph", [], outputs)

    return helper.make_node(
        "If", ["/model/rope_caches_subgraph/Greater/output_0"], ["cos_cache", "sin_cache"], "/model/rope_caches_subgraph/If",
        then_branch=branch("large", large or (long_factors(shape), None), shape.context),
        else_branch=branch("small", small or ([1.0] * half, None), shape.original),
    )


def joined_tables(shape, weights):
    """The tables of both regimes as one; returns the nodes that move the positions to the second, and the constants."""
    first, second = tables(shape, [1.0] * (shape.head // 2), shape.original), tables(shape, long_factors(shape), shape.context)
    tensors = [helper.make_tensor(name, weights.kind, joined.shape, joined.tobytes(), raw=True)
               for name, *parts in zip(("cos_cache", "sin_cache"), first, second)
               for joined in [np.concatenate(parts).astype(weights.numpy)]]
    root, boundary = "/model/pos_ids_reformat", f"/model/constants/INT64/{shape.original}"
    chain = (("ReduceMax", ["position_ids"], {"keepdims": 0}), ("GreaterOrEqual", ["ReduceMax", boundary], {}),
             ("Cast", ["GreaterOrEqual"], {"to": INT64}), ("Mul", ["Cast", boundary], {}), ("Add", ["Mul", "position_ids"], {}))
    output = "{}/{}/output_0".format
    nodes = [helper.make_node(kind, [output(root, name) if name in ("ReduceMax", "GreaterOrEqual", "Cast", "Mul") else name
                                     for name in inputs], [output(root, kind)], f"{root}/{kind}", **attributes)
             for kind, inputs, attributes in chain]
    return nodes, tensors


class Nodes(list):
    """A graph's nodes under construction."""

    MICROSOFT = ("MatMulNBits", "GroupQueryAttention", "RotaryEmbedding", "SkipSimplifiedLayerNormalization",
                 "SkipLayerNormalization", "QMoE")

    def node(self, kind, inputs, outputs, name, **attributes):
        """Adds a node; returns its first output."""
        domain = "com.microsoft" if kind in self.MICROSOFT else ""
        self.append(helper.make_node(kind, inputs, outputs, name, domain=domain, **attributes))
        return outputs[0]

    def constant(self, value, dims=()):
        name = f"/model/constants/INT64/{list(dims) and [value] or value}"
        tensor = helper.make_tensor(name, INT64, dims, [value])
        return self.node("Constant", [], [name], name.replace("constants", "constant_nodes"), value=tensor)


def lengths(nodes, shape, ropes):
    """The nodes that turn the mask into `seqlens_k` and `total_sequence_length`, which are returned; `ropes` are those of the
    rotary embeddings, put between."""
    node, constant = nodes.node, nodes.constant
    boundary = constant(shape.original)
    mask = "/model/attn_mask_reformat/attn_mask_subgraph"
    node("Shape", ["attention_mask"], [f"{mask}/Shape/output_0"], f"{mask}/Shape")
    width = node("Gather", [f"{mask}/Shape/output_0", constant(1)], [f"{mask}/Gather/output_0"], f"{mask}/Gather", axis=0)
    if not shape.positions:
        node("Greater", [width, boundary], ["/model/rope_caches_subgraph/Greater/output_0"], "/model/rope_caches_subgraph/Greater")
    nodes.extend(ropes)
    one = constant(1, (1,))
    node("ReduceSum", ["attention_mask", one], [f"{mask}/ReduceSum/output_0"], f"{mask}/ReduceSum", keepdims=0)
    node("Sub", [f"{mask}/ReduceSum/output_0", one], [f"{mask}/Sub/output_0"], f"{mask}/Sub")
    ends = node("Cast", [f"{mask}/Sub/output_0"], [f"{mask}/Sub/Cast/output_0"], f"{mask}/Sub/Cast", to=INT32)
    return ends, node("Cast", [width], [f"{mask}/Gather/Cast/output_0"], f"{mask}/Gather/Cast", to=INT32)


def keys_and_values(shape, kind, layers=None):
    """The graph's inputs and outputs of keys and values, of all layers or of `layers`. Fixed dimensions in 2024; today the
    last one is left open."""
    kv_dim = shape.head if shape.form == 2024 else "kv_cache_dim"
    info, inputs, outputs = helper.make_tensor_value_info, [], []
    for i in range(shape.layers) if layers is None else layers:
        for part in ("key", "value"):
            inputs.append(info(f"past_key_values.{i}.{part}", kind, ["batch_size", shape.kv_heads, "past_sequence_length", kv_dim]))
            outputs.append(info(f"present.{i}.{part}", kind, ["batch_size", shape.kv_heads, "total_sequence_length", kv_dim]))
    return inputs, outputs


def graph(shape, weights, embeds=False):
    """The decoder's graph. With `embeds` its input is `inputs_embeds`, as the exporter's `exclude_embeds` makes it."""
    nodes = Nodes()
    node = nodes.node

    def matmul(source, name, k, n, rows=None):
        blocks = k // shape.block
        root = name.strip("/").replace("/", ".").removeprefix("model.")
        root = root if root.startswith("lm_head") else f"model.{root}"
        quantised = weights.add(f"{root}.MatMul.weight_Q4", [n, blocks, shape.block // 2], UINT8, weights.rng.bytes(n * k // 2))
        # int4 values spread by 4.6 about 8: the product has the spread of its input.
        spread = 1 / (4.6 * math.sqrt(k))
        inputs = [source, quantised, weights.floats(f"{root}.MatMul.weight_scales", [n, blocks], spread, spread / 20, rows)]
        if shape.form == 2024:
            # The published models have zero points; 8 everywhere is what symmetric blocks mean.
            inputs.append(weights.add(f"{root}.MatMul.weight_zp", [n * ((blocks + 1) // 2)], UINT8, b"\x88" * (n * ((blocks + 1) // 2))))
        return node("MatMulNBits", inputs, [f"{name}/MatMul/output_0"], f"{name}/MatMul_Q4", K=k, N=n, bits=4,
                    block_size=shape.block, accuracy_level=shape.accuracy)

    if shape.positions:
        ropes, tensors = joined_tables(shape, weights)
        weights.tensors.extend(tensors)
    else:
        ropes = [rope_caches(shape, weights.kind, weights.numpy)]
    ends, total = lengths(nodes, shape, ropes)

    hidden, inner = shape.hidden, shape.inner
    stream = "inputs_embeds"
    if not embeds:
        embedding = weights.floats("model.embed_tokens.weight", [shape.vocab, hidden], 0.0, 1.0)
        stream = node("Gather", [embedding, "input_ids"], ["/model/embed_tokens/Gather/output_0"], "/model/embed_tokens/Gather")
    pending = None

    def norm(name, last=False):
        """The norm that also adds what the block before it has computed."""
        nonlocal stream
        weight = weights.floats(f"{name.strip('/').replace('/', '.')}.weight", [hidden], 1.0, 0.05)
        if pending is None:
            return node("SimplifiedLayerNormalization", [stream, weight], [f"{name}/output_0"], f"{name}/LayerNorm",
                        axis=-1, epsilon=1e-5, stash_type=1)
        outputs = [f"{name}/output_0"] if last else [f"{name}/output_0", "", "", f"{name}/output_3"]
        node("SkipSimplifiedLayerNormalization", [stream, pending, weight], outputs, f"{name}/SkipLayerNorm", epsilon=1e-5)
        stream = outputs[-1]
        return outputs[0]

    for i in range(shape.layers):
        layer = f"/model/layers.{i}"
        normed, sharp = norm(f"{layer}/input_layernorm"), sharp_rows(shape) if shape.sharp else None
        if shape.positions:
            parts = [matmul(normed, f"{layer}/attn/{part}_proj", hidden, hidden) for part in "qkv"]
            for k in range(2):
                turned = f"{layer}/attn/{'qk'[k]}_rotary/RotaryEmbedding"
                parts[k] = node("RotaryEmbedding", [parts[k], "/model/pos_ids_reformat/Add/output_0", "cos_cache", "sin_cache"],
                                [f"{turned}/output_0"], turned, interleaved=0, num_heads=0, rotary_embedding_dim=0)
            caches = ["", ""]
        else:
            parts = [matmul(normed, f"{layer}/attn/qkv_proj", hidden, 3 * hidden, sharp), "", ""]
            caches = ["cos_cache", "sin_cache"]
        attention = node(
            "GroupQueryAttention",
            [*parts, f"past_key_values.{i}.key", f"past_key_values.{i}.value", ends, total, *caches],
            [f"{layer}/attn/GroupQueryAttention/output_0", f"present.{i}.key", f"present.{i}.value"],
            f"{layer}/attn/GroupQueryAttention", num_heads=shape.heads, kv_num_heads=shape.heads,
            scale=1 / math.sqrt(shape.head), do_rotary=int(not shape.positions), rotary_interleaved=0,
        )
        pending = matmul(attention, f"{layer}/attn/o_proj", hidden, hidden)
        normed = norm(f"{layer}/post_attention_layernorm")
        gate = matmul(normed, f"{layer}/mlp/gate_proj", hidden, inner)
        up = matmul(normed, f"{layer}/mlp/up_proj", hidden, inner)
        open_ = node("Sigmoid", [gate], [f"{layer}/mlp/act_fn/Sigmoid/output_0"], f"{layer}/mlp/act_fn/Sigmoid")
        gated = node("Mul", [gate, open_], [f"{layer}/mlp/act_fn/Mul/output_0"], f"{layer}/mlp/act_fn/Mul")
        both = node("Mul", [gated, up], [f"{layer}/mlp/Mul/output_0"], f"{layer}/mlp/Mul")
        pending = matmul(both, f"{layer}/mlp/down_proj", inner, hidden)
    logits = matmul(norm(f"/model/layers.{shape.layers}/final_norm_layernorm", last=True), "/lm_head", hidden, shape.vocab)
    nodes[-1].output[0] = "logits"
    assert logits != "logits"

    info = helper.make_tensor_value_info
    text = info("input_ids", INT64, ["batch_size", "sequence_length"])
    if embeds:
        text = info("inputs_embeds", weights.kind, ["batch_size", "sequence_length", hidden])
    past, present = keys_and_values(shape, weights.kind)
    inputs = [text, info("attention_mask", INT64, ["batch_size", "total_sequence_length"])]
    if shape.positions:
        inputs.append(info("position_ids", INT64, ["batch_size", "sequence_length"]))
    inputs += past
    outputs = [info("logits", weights.kind, ["batch_size", "sequence_length", shape.vocab]), *present]
    return helper.make_graph(nodes, "main_graph", inputs, outputs, weights.tensors)


def genai_config(shape, filename, kind="phi3"):
    inputs = {"input_ids": "input_ids", "attention_mask": "attention_mask",
              "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    if shape.form == 2024 or shape.positions:
        inputs["position_ids"] = "position_ids"
    end = shape.vocab - 57
    return {
        "model": {
            "bos_token_id": 1, "context_length": shape.context,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": filename, "head_size": shape.head, "hidden_size": shape.hidden, "inputs": inputs,
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
                "num_attention_heads": shape.heads, "num_hidden_layers": shape.layers, "num_key_value_heads": shape.kv_heads,
            },
            "eos_token_id": [end, end - 6, end - 7], "pad_token_id": end - 7, "type": kind, "vocab_size": shape.vocab,
        },
        "search": {"do_sample": False, "max_length": shape.context, "past_present_share_buffer": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
    }


def write(shape, out, tokenizer):
    out.mkdir(parents=True, exist_ok=True)
    filename = "phi3-random-cpu-int4.onnx" if shape.form == 2024 else "model.onnx"
    weights = Weights(out / f"{filename}.data", shape.seed, shape.precision)
    save(out / filename, graph(shape, weights), weights, *((14, 7) if shape.form == 2024 else (22, 10)))
    write_folder(out, genai_config(shape, filename), tokenizer)


def save(path, graph, weights, opset=22, ir=10):
    """Writes the graph's file; its weights are in theirs already."""
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    weights.file.close()
    onnx.save(helper.make_model(graph, ir_version=ir, producer_name="phi-edge random_model.py", opset_imports=opsets), path)


def write_folder(out, config, tokenizer):
    """Writes what a model directory has beside its graphs."""
    (out / "genai_config.json").write_text(json.dumps(config, indent=4) + "\n")
    manifest = {"name": out.name, "note": "Random weights, for measurements and tests: its answers mean nothing."}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja") if tokenizer else ():
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, out / name)


def arguments(description=__doc__, **more):
    """The shape that the command line names: the decoder's options, and those of `more` with their defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name, value in (("layers", 32), ("hidden", 3072), ("inner", 8192), ("heads", 32), ("vocab", 32064), ("context", 131072),
                        ("original", 4096), ("block", 128), ("accuracy", 4), ("seed", 1), ("form", 2026),
                        *more.items()):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    parser.add_argument("--precision", choices=("f32", "f16"), default="f32")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--sharp", action="store_true")
    parser.add_argument("--positions", action="store_true")
    shape = parser.parse_args()
    shape.head = shape.hidden // shape.heads
    shape.kv_heads = getattr(shape, "kv_heads", shape.heads)
    return shape


if __name__ == "__main__":
    chosen = arguments()
    write(chosen, chosen.out, chosen.tokenizer)
