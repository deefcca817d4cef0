"""Converts Phi-3.5-MoE's published checkpoint to a model directory, a layer at a time.

    python moe_convert.py CHECKPOINT OUT [--block 128|32] [--asymmetric] [--form cpu|cuda]

CHECKPOINT is a folder as Hugging Face has it: config.json, sharded safetensors, tokenizer. OUT is given the form that ONNX
Runtime computes rightly on processors, or with `--form cuda` the exporter's (see moe_graph.py). int4 blocks, symmetric unless
`--asymmetric`.

Each layer is a file of its own, written, synchronised and renamed, then checked against the checkpoint's layer
(moe_probe.py), then noted in OUT/.convert. The same command goes on where a former one was ended. About 4 GB of memory.
"""

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnx

import moe_graph
import moe_probe
from moe_checkpoint import Checkpoint, CheckpointError, shape_of
from moe_quantise import quantise
from random_model import genai_config

#: The alignment of a tensor in its file: the library maps it.
PAGE = 4096
#: Left free on the disk besides what is written.
RESERVE = 1 << 30
#: Bumped where parts of a former version can't be gone on with.
VERSION = 1
KEPT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json",
        "LICENSE", "LICENSE.md", "NOTICE.md")


class Part:
    """A file of weights whose places are known before the first is written, so that they may come in any order."""

    def __init__(self, shape, name, weights):
        self.shape, self.name, self.weights, self.places, at = shape, name, weights, {}, 0
        for weight in weights:
            kind = onnx.helper.tensor_dtype_to_np_dtype(moe_graph.element_type(shape, weight))
            length = int(np.prod(weight.dims)) * kind.itemsize
            self.places[weight.name] = (at, length, kind)
            at += -(-length // PAGE) * PAGE
        self.size = at

    def write(self, folder, fill):
        """Makes the file by `fill(put)`; `put(name, values, index, count)` writes a weight, or one of its `count` equal parts."""
        partial = folder / f"{self.name}.partial"
        with open(partial, "wb") as file:
            file.truncate(self.size)

            def put(name, values, index=0, count=1):
                at, length, kind = self.places[name]
                data = np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8)
                assert data.nbytes * count == length, f"{name} has {data.nbytes} bytes instead of {length // count}"
                file.seek(at + index * data.nbytes)
                file.write(data)

            fill(put)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(folder / self.name)

    def tensors(self):
        """The initializers."""
        made = []
        for weight in self.weights:
            at, length, _ = self.places[weight.name]
            tensor = onnx.TensorProto(name=weight.name, dims=weight.dims, data_type=moe_graph.element_type(self.shape, weight),
                                      data_location=onnx.TensorProto.EXTERNAL)
            for key, value in (("location", self.name), ("offset", at), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            made.append(tensor)
        return made


class Journal:
    """What is done already: OUT/.convert, with the job and a file for each part that is written and checked."""

    def __init__(self, out, job):
        self.out, self.folder = out, out / ".convert"
        known = self.folder / "job.json"
        if known.exists():
            if json.loads(known.read_text()) != job:
                raise CheckpointError(f"{out} was begun with another checkpoint or other options: give another folder, or delete it")
        elif out.exists() and any(file != self.folder for file in out.iterdir()):
            raise CheckpointError(f"{out} is no folder of an unfinished conversion: give a new one")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.note("job.json", job)

    def note(self, name, content):
        partial = self.folder / f"{name}.partial"
        with open(partial, "w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.folder / name)

    def is_done(self, part):
        file = self.out / part.name
        return (self.folder / f"{part.name}.json").exists() and file.exists() and file.stat().st_size == part.size

    def streams(self, part):
        with np.load(self.folder / f"{part.name}.npz") as stored:
            return stored["exact"], stored["rounded"], stored["first"]

    def close(self):
        """Removes the journal: in one step, so that no half of one is gone on with."""
        finished = self.folder.with_name(".convert.finished")
        self.folder.rename(finished)
        shutil.rmtree(finished)

    def finish_part(self, part, streams, found):
        np.savez(self.folder / f"{part.name}.npz", exact=streams[0], rounded=streams[1], first=streams[2])
        self.note(f"{part.name}.json", found)


def put_product(shape, put, checkpoint, name):
    quantised = quantise(checkpoint.matrix(name), shape.block, scale_type(shape), shape.asymmetric)
    put(f"{name}.MatMul.weight_Q4", quantised.blocks)
    put(f"{name}.MatMul.weight_scales", quantised.scales)
    if shape.asymmetric:
        put(f"{name}.MatMul.weight_zp", quantised.zero_points)
    put(f"{name}.Add.bias", checkpoint.vector(f"{name}.Add.bias"))


def scale_type(shape):
    return np.float16 if shape.form == "cuda" else np.float32


def put_expert(shape, put, checkpoint, layer, number):
    def put_weight(which, parts):
        for root in ("weight", "scales", *(["zero_points"] if shape.asymmetric else [])):
            field = {"weight": "blocks"}.get(root, root)
            values = [getattr(part, field).reshape(len(part.scales), -1) for part in parts]
            # Rows of gate and up take turns.
            joined = np.stack(values, 1) if len(values) > 1 else values[0]
            put(f"{layer}.moe.{root}_{which}", joined, number, shape.experts)

    gate, up, down = (quantise(weight, shape.block, scale_type(shape), shape.asymmetric) for weight in checkpoint.expert(layer, number))
    if shape.form == "cuda":
        put_weight(1, [gate])
        put_weight(3, [up])
    else:
        put_weight(1, [gate, up])
    put_weight(2, [down])


def put_norm(put, checkpoint, name):
    for kind in ("weight", "bias"):
        put(f"{name}.{kind}", checkpoint.vector(f"{name}.{kind}"))


def layer_filler(shape, checkpoint, i, progress):
    layer = f"model.layers.{i}"

    def fill(put):
        for part in ("input_layernorm", "post_attention_layernorm"):
            put_norm(put, checkpoint, f"{layer}.{part}")
        for part in ("qkv_proj", "o_proj"):
            put_product(shape, put, checkpoint, f"{layer}.attn.{part}")
        router = f"{layer}.moe.gate.MatMul.weight"
        put(router, checkpoint.vector(router))
        for number in range(shape.experts):
            put_expert(shape, put, checkpoint, layer, number)
            progress(f"layer {i + 1} of {shape.layers}: expert {number + 1} of {shape.experts}")

    return fill


def fill_head(shape, checkpoint):
    def fill(put):
        put_norm(put, checkpoint, f"model.layers.{shape.layers}.final_norm_layernorm")
        put_product(shape, put, checkpoint, "lm_head")

    return fill


def progress(text):
    """A line that the next one replaces, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:<78}", end="", file=sys.stderr, flush=True)


def report(text):
    print(f"\r{text}" if sys.stderr.isatty() else text, flush=True)


def check_space(journal, parts):
    needed = sum(part.size for part in parts if not journal.is_done(part)) + RESERVE
    free = shutil.disk_usage(journal.out).free
    if free < needed:
        raise CheckpointError(f"{journal.out} needs {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free")


def convert(shape, checkpoint, out, journal, count):
    """Writes and checks all parts that are not yet; returns all initializers."""
    embedding = Part(shape, "model.onnx.embedding.data", [moe_graph.embedding_weight(shape)])
    layers = [Part(shape, f"model.onnx.layer-{i:02}.data", moe_graph.layer_weights(shape, i)) for i in range(shape.layers)]
    head = Part(shape, "model.onnx.head.data", moe_graph.head_weights(shape))
    check_space(journal, [embedding, *layers, head])
    if not journal.is_done(embedding):
        table = checkpoint.vector("model.embed_tokens.weight")
        embedding.write(out, lambda put: put("model.embed_tokens.weight", table))
        stream = table[moe_probe.probe_ids(checkpoint.folder, shape, count)]
        journal.finish_part(embedding, (stream, stream, stream), {})
        del table
    streams = journal.streams(embedding)
    for i, part in enumerate(layers):
        start = time.monotonic()
        if journal.is_done(part):
            streams = journal.streams(part)
            report(f"layer {i + 1} of {shape.layers}: done before")
            continue
        part.write(out, layer_filler(shape, checkpoint, i, progress))
        progress(f"layer {i + 1} of {shape.layers}: being checked")
        streams, result = moe_probe.check_layer(shape, i, checkpoint, part.tensors(), out, streams)
        journal.finish_part(part, streams, vars(result))
        report(f"layer {i + 1} of {shape.layers}: {time.monotonic() - start:.1f} s, {result.line()}")
    if not journal.is_done(head):
        head.write(out, fill_head(shape, checkpoint))
        journal.finish_part(head, streams, {})
    report(f"whole model: {moe_probe.check_head(shape, checkpoint, head.tensors(), out, streams)}")
    return [tensor for part in (embedding, *layers, head) for tensor in part.tensors()]


def write_folder(shape, checkpoint, out):
    """What a model directory has beside its graph."""
    config = genai_config(shape, "model.onnx", "phimoe")
    for name in ("generation_config.json", "config.json"):
        path = checkpoint / name
        given = json.loads(path.read_text()) if path.exists() else {}
        if given.get("eos_token_id") is not None:
            config["model"]["eos_token_id"] = given["eos_token_id"]
            break
    if shape.form == "cuda":
        config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {}}]
    (out / "genai_config.json").write_text(json.dumps(config, indent=4) + "\n")
    manifest = {"name": out.name, "note": f"Phi-3.5-MoE, int4 in blocks of {shape.block}, by moe_convert.py."}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    for name in KEPT:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, out / name)


def main(options):
    shape = shape_of(options.checkpoint)
    shape.block, shape.asymmetric, shape.form, shape.accuracy = options.block, options.asymmetric, options.form, 4
    if shape.asymmetric and shape.form == "cuda":
        raise CheckpointError("--asymmetric is for --form cpu: the exporter's form for CUDA has symmetric experts")
    if not 1 <= options.check_tokens <= shape.original:
        raise CheckpointError(f"--check-tokens {options.check_tokens} is not between 1 and {shape.original}")
    for name, length in (("hidden_size", shape.hidden), ("intermediate_size", shape.inner)):
        if length % shape.block:
            raise CheckpointError(f"{name} {length} is no multiple of --block {shape.block}")
    checkpoint, out = Checkpoint(options.checkpoint, shape), options.out
    checkpoint.check()
    files = sorted(set(checkpoint.files.values()))
    job = {"version": VERSION, "config": (options.checkpoint / "config.json").read_text(),
           "files": [[name, (options.checkpoint / name).stat().st_size] for name in files],
           "block": shape.block, "asymmetric": shape.asymmetric, "form": shape.form, "tokens": options.check_tokens}
    journal = Journal(out, job)
    tensors = convert(shape, checkpoint, out, journal, options.check_tokens)
    model = onnx.helper.make_model(moe_graph.graph(shape, tensors, scale_type(shape)), ir_version=10, producer_name="phi-edge moe_convert.py",
                                   opset_imports=[onnx.helper.make_opsetid("", 22), onnx.helper.make_opsetid("com.microsoft", 1)])
    onnx.save(model, out / "model.onnx")
    write_folder(shape, options.checkpoint, out)
    journal.close()
    total = sum(file.stat().st_size for file in out.iterdir())
    report(f"{out}: {total / 1e9:.1f} GB" + ("; its experts' kernel for CUDA was not run" if shape.form == "cuda" else ""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--block", type=int, choices=(32, 128), default=128)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--form", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--check-tokens", type=int, default=32, help="tokens of the text that checks a layer")
    try:
        main(parser.parse_args())
    except (CheckpointError, moe_probe.CheckError, OSError) as error:
        sys.exit(f"moe_convert: {error}")
    except KeyboardInterrupt:
        sys.exit("moe_convert: ended; the same command goes on after the last layer that was finished")
