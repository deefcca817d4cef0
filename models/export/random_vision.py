"""Writes a model directory of Phi-3.5-vision's three graphs, with random weights and without PyTorch.

    python random_vision.py OUT [--layers 32] [--vision-layers 24] … [--precision f32|f16]

The vision graph is CLIP ViT-L/14-336 to its second-to-last layer, the HD merge of its crops and the projection to the
decoder's width. The embedding graph puts the features where ids are negative. The text graph is random_model.py's with
`inputs_embeds`. `--precision f16` writes the form for CUDA, with `--positions` that for DirectML.

The tokenizer of `--tokenizer FOLDER` is copied beside it; ids that it does not know have no text.
"""

import json
import math

import numpy as np
from onnx import helper, numpy_helper

from random_model import INT64, Weights, arguments, genai_config, graph, save, write_folder

NAME = "phi-3.5-v-instruct-{}.onnx"
#: Patches a side of a crop of 336 pixels, and in all; a merged token stands for 2x2 of them.
SIDE, PATCHES, MERGED = 24, 576, 12


class Graph:
    """Nodes under construction, with the constants that they name."""

    def __init__(self, weights):
        self.weights, self.nodes, self.constants = weights, [], {}

    def node(self, kind, inputs, name, outputs=1, **attributes):
        """Adds a node; its outputs are called after it."""
        names = [f"{name}/output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *values):
        """A constant of one dimension."""
        return self.constant("INT64", np.array(values, np.int64))

    def scalar(self, value):
        """A constant without dimensions, of the weights' type."""
        return self.constant("scalar", np.array(value, self.weights.numpy))

    def constant(self, kind, values):
        name = f"/constants/{kind}/{values.tolist()}"
        self.constants[name] = numpy_helper.from_array(values, name)
        return name

    def reshape(self, source, name, *shape):
        return self.node("Reshape", [source, self.ints(*shape)], name)

    def linear(self, source, name, inner, outer, spread=1.0):
        """A product with a bias, as PyTorch's exporter writes it; its result is `spread` times as wide as its input."""
        root = name.strip("/").replace("/", ".")
        weight = self.weights.floats(f"{root}.weight", [inner, outer], 0.0, spread / math.sqrt(inner))
        product = self.node("MatMul", [source, weight], f"{name}/MatMul")
        return self.node("Add", [self.weights.floats(f"{root}.bias", [outer], 0.0, 0.02), product], f"{name}/Add")

    def norm(self, source, name, width):
        root = name.strip("/").replace("/", ".")
        scale = self.weights.floats(f"{root}.weight", [width], 1.0, 0.05)
        bias = self.weights.floats(f"{root}.bias", [width], 0.0, 0.02)
        return self.node("LayerNormalization", [source, scale, bias], f"{name}/LayerNormalization", axis=-1, epsilon=1e-5)

    def finish(self, name, inputs, outputs):
        return helper.make_graph(self.nodes, name, inputs, outputs, [*self.weights.tensors, *self.constants.values()])


def patches(g, shape, model):
    """The crops of all images as rows of a class embedding and 576 patches, with their positions."""
    width, weights = shape.vision_hidden, g.weights
    flat = g.reshape("pixel_values", "/img_processor/Reshape", -1, 3, 336, 336)
    kernel = weights.floats(f"{model}.patch_embedding.weight", [width, 3, 14, 14], 0.0, 1 / math.sqrt(3 * 14 * 14))
    conv = g.node("Conv", [flat, kernel], f"/{model}/patch_embedding/Conv", kernel_shape=[14, 14], strides=[14, 14])
    rows = g.reshape(conv, f"/{model}/Reshape", 0, width, PATCHES)
    rows = g.node("Transpose", [rows], f"/{model}/Transpose", perm=[0, 2, 1])
    batch = g.node("Shape", [rows], f"/{model}/Shape", start=0, end=1)
    whole = g.node("Concat", [batch, g.ints(1, width)], f"/{model}/class/Concat", axis=0)
    first = g.node("Expand", [weights.floats(f"{model}.class_embedding", [1, 1, width], 0.0, 1.0), whole], f"/{model}/class/Expand")
    rows = g.node("Concat", [first, rows], f"/{model}/Concat", axis=1)
    positions = weights.floats(f"{model}.position_embedding", [1, PATCHES + 1, width], 0.0, 0.5)
    return g.node("Add", [rows, positions], f"/{model}/Add")


def layer(g, shape, stream, name):
    """One layer of CLIP: attention over a crop's rows and a block with QuickGELU, each behind a norm."""
    width, heads = shape.vision_hidden, shape.vision_heads
    head, attention = width // heads, f"{name}/self_attn"
    normed = g.norm(stream, f"{name}/layer_norm1", width)

    def split(part, perm, factor=None):
        rows = g.linear(normed, f"{attention}/{part}_proj", width, width)
        if factor:
            rows = g.node("Mul", [rows, g.scalar(factor)], f"{attention}/{part}_proj/Mul")
        rows = g.reshape(rows, f"{attention}/{part}_proj/Reshape", 0, 0, heads, head)
        return g.node("Transpose", [rows], f"{attention}/{part}_proj/Transpose", perm=perm)

    queries, keys = split("q", [0, 2, 1, 3], 1 / math.sqrt(head)), split("k", [0, 2, 3, 1])
    values = split("v", [0, 2, 1, 3])
    scores = g.node("MatMul", [queries, keys], f"{attention}/MatMul")
    shares = g.node("Softmax", [scores], f"{attention}/Softmax", axis=-1)
    mixed = g.node("MatMul", [shares, values], f"{attention}/MatMul_1")
    mixed = g.node("Transpose", [mixed], f"{attention}/Transpose", perm=[0, 2, 1, 3])
    mixed = g.reshape(mixed, f"{attention}/Reshape", 0, 0, width)
    stream = g.node("Add", [stream, g.linear(mixed, f"{attention}/out_proj", width, width, 0.5)], f"{name}/Add")
    inner = g.linear(g.norm(stream, f"{name}/layer_norm2", width), f"{name}/mlp/fc1", width, shape.vision_inner)
    gate = g.node("Sigmoid", [g.node("Mul", [inner, g.scalar(1.702)], f"{name}/mlp/Mul")], f"{name}/mlp/Sigmoid")
    inner = g.node("Mul", [inner, gate], f"{name}/mlp/Mul_1")
    return g.node("Add", [stream, g.linear(inner, f"{name}/mlp/fc2", shape.vision_inner, width, 0.5)], f"{name}/Add_1")


def merged(g, crops, name, count, height, width, row):
    """Rows of `height` x `width` crops of 24x24 patches as those of one picture: 2x2 patches become a row of four times
    the width, in reading order, and `sub_GN` ends each line."""
    channels = row // 4
    blocks = g.node("Concat", [count, g.ints(MERGED, 2, MERGED, 2, channels)], f"{name}/Concat", axis=0)
    rows = g.node("Reshape", [crops, blocks], f"{name}/Reshape")
    rows = g.node("Transpose", [rows], f"{name}/Transpose", perm=[0, 1, 3, 2, 4, 5])
    rows = g.node("Reshape", [rows, g.node("Concat", [height, width, g.ints(MERGED, MERGED, row)], f"{name}/Concat_1", axis=0)],
                  f"{name}/Reshape_1")
    rows = g.node("Transpose", [rows], f"{name}/Transpose_1", perm=[0, 2, 1, 3, 4])
    lines = g.node("Mul", [height, g.ints(MERGED)], f"{name}/Mul")
    columns = g.node("Mul", [width, g.ints(MERGED)], f"{name}/Mul_1")
    rows = g.node("Reshape", [rows, g.node("Concat", [lines, columns, g.ints(row)], f"{name}/Concat_2", axis=0)], f"{name}/Reshape_2")
    ends = g.node("Expand", ["sub_GN", g.node("Concat", [lines, g.ints(1, row)], f"{name}/Concat_3", axis=0)], f"{name}/Expand")
    return g.reshape(g.node("Concat", [rows, ends], f"{name}/Concat_4", axis=1), f"{name}/Reshape_3", -1, row)


def merge_images(g, features, row):
    """The loop over the images: the crops in use, `glb_GN`, the view of the whole."""
    kind, body, one = g.weights.kind, Graph(g.weights), g.ints(1)
    # The loop's body sees the constants of the graph around it.
    body.constants = g.constants
    crops = body.node("Gather", [features, "image"], "/merge/Gather", axis=0)
    size = body.node("Gather", ["image_sizes", "image"], "/merge/Gather_1", axis=0)
    grid = body.node("Div", [size, g.ints(336)], "/merge/Div")
    height = body.node("Gather", [grid, g.ints(0)], "/merge/Gather_2", axis=0)
    width = body.node("Gather", [grid, one], "/merge/Gather_3", axis=0)
    count = body.node("Mul", [height, width], "/merge/Mul")
    used = body.node("Slice", [crops, one, body.node("Add", [count, one], "/merge/Add"), g.ints(0)], "/merge/Slice")
    whole = body.node("Slice", [crops, g.ints(0), one, g.ints(0)], "/merge/Slice_1")
    parts = [merged(body, used, "/merge/sub", count, height, width, row), "glb_GN",
             merged(body, whole, "/merge/glb", one, one, one, row)]
    after = body.node("Concat", ["before", *parts], "/merge/Concat", axis=0)
    going = body.node("Identity", ["going"], "/merge/Identity")
    info = helper.make_tensor_value_info
    inputs = [info("image", INT64, []), info("going", 9, []), info("before", kind, ["rows", row])]
    outputs = [info(going, 9, []), info(after, kind, ["more_rows", row])]
    images = g.node("Squeeze", [g.node("Shape", ["pixel_values"], "/merge/Shape", start=0, end=1), g.ints(0)], "/merge/Squeeze")
    empty = g.node("ConstantOfShape", [g.ints(0, row)], "/merge/ConstantOfShape",
                   value=helper.make_tensor("value", kind, [1], [0.0]))
    return g.node("Loop", [images, "", empty], "/merge/Loop", body=helper.make_graph(body.nodes, "merge", inputs, outputs))


def vision_graph(shape, weights):
    g, width, model = Graph(weights), shape.vision_hidden, "img_processor.vision_model.embeddings"
    stream = g.norm(patches(g, shape, model), "/img_processor/vision_model/pre_layrnorm", width)
    for i in range(shape.vision_layers - 1):
        stream = layer(g, shape, stream, f"/img_processor/vision_model/encoder/layers.{i}")
    stream = g.node("Slice", [stream, g.ints(1), g.ints(PATCHES + 1), g.ints(1)], "/img_processor/Slice")
    crops = g.node("Shape", ["pixel_values"], "/img_processor/Shape", start=0, end=2)
    crops = g.node("Concat", [crops, g.ints(PATCHES, width)], "/img_processor/Concat", axis=0)
    features = g.node("Reshape", [stream, crops], "/img_processor/Reshape_1")
    row = 4 * width
    weights.floats("sub_GN", [1, 1, row], 0.0, 1.0)
    weights.floats("glb_GN", [1, row], 0.0, 1.0)
    rows = g.linear(merge_images(g, features, row), "/img_projection/0", row, shape.hidden)
    # GELU as PyTorch's exporter writes it.
    wide = g.node("Erf", [g.node("Div", [rows, g.scalar(math.sqrt(2))], "/img_projection/1/Div")], "/img_projection/1/Erf")
    wide = g.node("Mul", [rows, g.node("Add", [wide, g.scalar(1.0)], "/img_projection/1/Add")], "/img_projection/1/Mul")
    g.linear(g.node("Mul", [wide, g.scalar(0.5)], "/img_projection/1/Mul_1"), "/img_projection/2", shape.hidden, shape.hidden)
    g.nodes[-1].output[0] = "image_features"
    info = helper.make_tensor_value_info
    return g.finish("vision", [info("pixel_values", weights.kind, ["num_images", "max_num_crops", 3, "height", "width"]),
                               info("image_sizes", INT64, ["num_images", 2])],
                    [info("image_features", weights.kind, ["num_image_tokens", shape.hidden])])


def embedding_graph(shape, weights):
    g = Graph(weights)
    zero = g.constant("INT64", np.array(0, np.int64))
    table = weights.floats("model.embed_tokens.weight", [shape.vocab, shape.hidden], 0.0, 1.0)
    places = g.node("Less", ["input_ids", zero], "/embed/Less")
    ids = g.node("Where", [places, zero, "input_ids"], "/embed/Where")
    rows = g.node("Gather", [table, ids], "/embed/Gather", axis=0)
    indices = g.node("Transpose", [g.node("NonZero", [places], "/embed/NonZero")], "/embed/Transpose", perm=[1, 0])
    g.node("ScatterND", [rows, indices, "image_features"], "/embed/ScatterND")
    g.nodes[-1].output[0] = "inputs_embeds"
    info = helper.make_tensor_value_info
    return g.finish("embedding", [info("input_ids", INT64, ["batch_size", "sequence_length"]),
                                  info("image_features", weights.kind, ["num_image_tokens", shape.hidden])],
                    [info("inputs_embeds", weights.kind, ["batch_size", "sequence_length", shape.hidden])])


def config(shape):
    """genai_config.json: the text model's with the two other graphs."""
    whole = genai_config(shape, NAME.format("text"))
    model = whole["model"]
    model["type"] = "phi3v"
    model["decoder"]["inputs"] = {"inputs_embeds": "inputs_embeds", **model["decoder"]["inputs"]}
    del model["decoder"]["inputs"]["input_ids"]
    model["embedding"] = {"filename": NAME.format("embedding"), "outputs": {"inputs_embeds": "inputs_embeds"},
                          "inputs": {"input_ids": "input_ids", "image_features": "image_features"}}
    model["vision"] = {"filename": NAME.format("vision"), "outputs": {"image_features": "image_features"},
                       "inputs": {"pixel_values": "pixel_values", "image_sizes": "image_sizes"}}
    return whole


def processor_config():
    def step(name, kind, **attributes):
        return {"operation": {"name": name, "domain": "com.microsoft.extensions", "type": kind, **attributes}}

    return {"processor": {"name": "phi-3-image-processor", "transforms": [
        step("decode_image", "DecodeImage", attrs={"color_space": "BGR"}), step("convert_to_rgb", "ConvertRGB"),
        step("phi3_image_transform", "Phi3ImageTransform", attrs={"num_crops": 16, "num_img_tokens": 144})]}}


def main():
    shape = arguments(__doc__, vision_layers=24, vision_hidden=1024, vision_inner=4096, vision_heads=16)
    shape.out.mkdir(parents=True, exist_ok=True)
    parts = (("vision", vision_graph), ("embedding", embedding_graph), ("text", lambda *given: graph(*given, embeds=True)))
    for salt, (part, made) in enumerate(parts):
        path = shape.out / NAME.format(part)
        # Each graph has its own generator: their weights are the same whatever the others' shapes are.
        weights = Weights(path.with_name(f"{path.name}.data"), [shape.seed, salt], shape.precision)
        save(path, made(shape, weights), weights)
    (shape.out / "processor_config.json").write_text(json.dumps(processor_config(), indent=4) + "\n")
    write_folder(shape.out, config(shape), shape.tokenizer)


if __name__ == "__main__":
    main()
