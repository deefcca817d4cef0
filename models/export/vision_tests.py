"""Makes what tests need of a small model that takes images.

    vision_tests.py FOLDER OUT [CROPS]

* OUT/pixels: of each file in FOLDER/images the pixels that the reference's preprocessing gives, by Pillow (its resizing is
  the reference's, to the last bit): 32-bit floats [crops, 3, 336, 336], and rows and columns of the parts as JSON.
* OUT/fp16, where FOLDER is a model: the model as exporters write it for GPUs: all floats of 16 bits, weights held by the graphs.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from PIL import Image

SIDE = 336
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
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


def rgb(path: Path) -> Image.Image:
    image = Image.open(path)
    # Alpha is dropped, not blended.
    return Image.fromarray(np.asarray(image)[:, :, :3]) if image.mode == "RGBA" else image.convert("RGB")


def pixels(image: Image.Image, crops: int) -> tuple[np.ndarray, tuple[int, int]]:
    wide = image.width >= image.height
    ratio = max(image.size) / min(image.size)
    scale = max(s for s in range(1, crops + 1) if s * math.ceil(s / ratio) <= crops)
    long, short = scale * SIDE, int(scale * SIDE / ratio)
    image = image.resize((long, short) if wide else (short, long), Image.BILINEAR)
    padded = math.ceil(short / SIDE) * SIDE
    before = (padded - short) // 2
    canvas = Image.new("RGB", (long, padded) if wide else (padded, long), (255, 255, 255))
    canvas.paste(image, (0, before) if wide else (before, 0))
    values = (np.asarray(canvas).astype(np.float32) / 255 - MEAN) / DEVIATION
    channels = [Image.fromarray(values[:, :, channel]) for channel in range(3)]
    view = np.stack([np.asarray(channel.resize((SIDE, SIDE), Image.BICUBIC)) for channel in channels])
    rows, columns = canvas.height // SIDE, canvas.width // SIDE
    parts = values.transpose(2, 0, 1).reshape(3, rows, SIDE, columns, SIDE).transpose(1, 3, 0, 2, 4)
    return np.concatenate([view[None], parts.reshape(-1, 3, SIDE, SIDE)]).astype(np.float32), (rows, columns)


def main(folder: Path, out: Path, crops: int) -> None:
    if (folder / "genai_config.json").exists():
        fp16(folder, out / "fp16")
    (out / "pixels").mkdir(parents=True, exist_ok=True)
    for file in sorted((folder / "images").iterdir()):
        data, grid = pixels(rgb(file), crops)
        data.tofile(out / "pixels" / f"{file.name}.f32")
        (out / "pixels" / f"{file.name}.json").write_text(json.dumps(grid))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 16)
