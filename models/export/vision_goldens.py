"""Writes what Phi-3.5-vision's graphs answer about pictures, computed by plain ONNX Runtime and Pillow.

    python vision_goldens.py MODEL IMAGES CROPS OUT.json

MODEL is a folder of the three graphs, of any precision; IMAGES a folder of pictures. The preprocessing is the one that
tests/fixtures/vision/README.md describes. There is no cache: every token is computed from the whole sequence.
"""

import argparse
import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image
from tokenizers import Tokenizer

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
SIDE, SAMPLES, ANSWER = 336, 64, 8
QUESTIONS = ("Describe the image.", "Was ist auf dem Bild zu sehen?", "Count the objects.")


def size_of_grid(width, height, crops):
    """Pixels of the resized picture and of the grid of crops that it is padded to."""
    turned = width < height
    long, short = max(width, height), min(width, height)
    ratio = long / short
    scale = 1
    while (scale + 1) * math.ceil((scale + 1) / ratio) <= crops:
        scale += 1
    # A picture of less than a line, which the reference can't resize, keeps one.
    resized = (scale * SIDE, max(1, int(scale * SIDE / ratio)))
    padded = (resized[0], math.ceil(resized[1] / SIDE) * SIDE)
    return (resized[::-1], padded[::-1]) if turned else (resized, padded)


def preprocess(path, crops):
    """The crops of a picture, the view of the whole first, and the pixels of its grid (height, width)."""
    picture = Image.open(path).convert("RGB")
    resized, padded = size_of_grid(*picture.size, crops)
    whole = Image.new("RGB", padded, (255, 255, 255))
    whole.paste(picture.resize(resized, Image.Resampling.BILINEAR), tuple((p - r) // 2 for p, r in zip(padded, resized)))
    values = (np.asarray(whole, np.float32) / np.float32(255) - MEAN) / DEVIATION
    view = [Image.fromarray(values[:, :, c]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for c in range(3)]
    grid = values.reshape(padded[1] // SIDE, SIDE, padded[0] // SIDE, SIDE, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, SIDE, SIDE)
    pixels = np.zeros((crops + 1, 3, SIDE, SIDE), np.float32)
    pixels[0], pixels[1:1 + len(grid)] = np.stack([np.asarray(channel) for channel in view]), grid
    return pixels, (padded[1], padded[0])


def image_tokens(height, width):
    rows, columns = height // SIDE, width // SIDE
    return (rows * columns + 1) * 144 + 1 + (rows + 1) * 12


class Model:
    def __init__(self, folder):
        config = json.loads((folder / "genai_config.json").read_text())["model"]
        load = lambda part: ort.InferenceSession(folder / config[part]["filename"], providers=["CPUExecutionProvider"])
        self.vision, self.embedding, self.text = load("vision"), load("embedding"), load("decoder")
        heads, size = config["decoder"]["num_key_value_heads"], config["decoder"]["head_size"]
        self.type = np.float16 if "float16" in self.vision.get_inputs()[0].type else np.float32
        self.empty = np.zeros((1, heads, 0, size), self.type)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def ids(self, prompt, tokens):
        """The prompt's ids: every text between two pictures is encoded by itself, a picture's are minus its number."""
        ids = []
        for part in re.split(r"(<\|image_\d+\|>)", prompt):
            number = re.fullmatch(r"<\|image_(\d+)\|>", part)
            if number:
                ids += [-int(number[1])] * tokens[int(number[1]) - 1]
            elif part:
                ids += self.tokenizer.encode(part, add_special_tokens=False).ids
        return ids

    def features(self, pixels, size):
        return self.vision.run(None, {"pixel_values": pixels[None].astype(self.type), "image_sizes": np.array([size], np.int64)})[0]

    def answer(self, ids, features):
        """Greedy ids, and the distance of the best logit to the next for each."""
        ids, margins, start = list(ids), [], len(ids)
        for _ in range(ANSWER):
            embeds = self.embedding.run(None, {"input_ids": np.array([ids]), "image_features": features})[0]
            feeds = {"inputs_embeds": embeds, "attention_mask": np.ones((1, len(ids)), np.int64)}
            for given in self.text.get_inputs():
                if given.name == "position_ids":
                    feeds[given.name] = np.arange(len(ids))[None]
                elif given.name.startswith("past_key_values"):
                    feeds[given.name] = self.empty
            last = self.text.run(["logits"], feeds)[0][0, -1].astype(np.float32)
            second, best = np.argsort(last)[-2:]
            ids.append(int(best))
            margins.append(float(last[best] - last[second]))
        return ids[start:], min(margins)


def case(model, names, seen, question, order=None):
    """One prompt about the pictures `names`, whose places follow `order`."""
    order = order or range(1, len(names) + 1)
    places = "".join(f"<|image_{n}|>\n" for n in order)
    prompt = f"<|user|>\n{places}{question}<|end|>\n<|assistant|>\n"
    tokens = [image_tokens(*seen[name][1]) for name in names]
    ids = model.ids(prompt, tokens)
    # The embedding graph fills the places in their order, whatever the pictures' numbers are.
    features = np.concatenate([model.features(*seen[names[n - 1]]) for n in order])
    answer, margin = model.answer(ids, features)
    runs = [[ids[0], 0]]
    for id in ids:
        if id != runs[-1][0]:
            runs.append([id, 0])
        runs[-1][1] += 1
    return {"images": list(names), "order": list(order), "prompt": prompt, "num_image_tokens": tokens, "input_ids_rle": runs,
            "features": {"mean": float(features.mean(dtype=np.float64)), "std": float(features.std(dtype=np.float64)),
                         "first_row": features[0, :8].astype(float).round(4).tolist(),
                         "last_row": features[-1, :8].astype(float).round(4).tolist()},
            "greedy_ids": answer, "min_margin": round(margin, 4)}


def pixels_golden(pixels, size, seed):
    used = (1 + size[0] * size[1] // SIDE**2) * 3 * SIDE**2
    samples = np.random.default_rng(seed).integers(0, used, SAMPLES)
    return {"image_size": list(size), "crop_means": [round(float(crop.mean()), 5) for crop in pixels],
            "samples_flat_index_value": [[int(i), round(float(pixels.flat[i]), 5)] for i in samples]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("model", Path), ("images", Path), ("crops", int), ("out", Path)):
        parser.add_argument(name, type=kind)
    args = parser.parse_args()
    model = Model(args.model)
    names = sorted(path.name for path in args.images.iterdir())
    seen = {name: preprocess(args.images / name, args.crops) for name in names}
    cases = [case(model, [name], seen, QUESTIONS[i % len(QUESTIONS)]) for i, name in enumerate(names)]
    cases += [case(model, names[:2], seen, QUESTIONS[1], order) for order in ((1, 2), (2, 1))]
    golden = {"num_crops": args.crops, "pixels": {name: pixels_golden(*seen[name], i) for i, name in enumerate(names)}, "cases": cases}
    args.out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(args.out, "smallest margin", min(one["min_margin"] for one in cases), "different answers",
          len({tuple(one["greedy_ids"]) for one in cases}), "of", len(cases))


if __name__ == "__main__":
    main()
