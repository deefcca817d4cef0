"""Makes what a test needs of a small model that takes images.

    vision_tests.py FOLDER OUT

OUT/fp16 is the model in FOLDER as exporters write it for GPUs: all floats of 16 bits, weights held by the graphs.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def halve_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type == FLOAT:
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def halve_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        halve_tensor(tensor)
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == FLOAT:
            value.type.tensor_type.elem_type = FLOAT16
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = numpy_helper.from_array(np.zeros(1, np.float16))
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                halve_graph(attribute.g)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                halve_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = FLOAT16


def fp16(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    model = json.loads((folder / "genai_config.json").read_text())["model"]
    graphs = {model[part]["filename"] for part in ("decoder", "embedding", "vision")}
    for file in folder.iterdir():
        if file.is_file() and file.name not in graphs and file.suffix != ".data":
            shutil.copyfile(file, out / file.name)
    for name in sorted(graphs):
        graph = onnx.load(folder / name)
        halve_graph(graph.graph)
        onnx.save(graph, out / name)


if __name__ == "__main__":
    fp16(Path(sys.argv[1]), Path(sys.argv[2]) / "fp16")
