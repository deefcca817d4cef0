"""Writes tests/fixtures/vision: a small random vision model in its forms for CPU, CUDA and DirectML, pictures, and goldens.

    python vision_forms.py [FOLDER]

With FOLDER, a folder of the three graphs with a folder `images`, it also writes `golden-NAME.json` of that model at 4 crops.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "tests/fixtures/vision"
SHAPE = ("--layers 2 --hidden 64 --inner 96 --heads 4 --vocab 704 --context 2048 --original 1024 --block 32 --accuracy 1 "
         "--vision-layers 3 --vision-hidden 16 --vision-inner 32 --vision-heads 2").split()
# The last one's seed is one of those by which no two logits are nearly the same, as 16 bits would make ties of them.
FORMS = {"cpu": [], "cuda": ["--precision", "f16"], "directml": ["--precision", "f16", "--positions", "--seed", "14"]}


def draw(name, mode, size, colours):
    """A picture of a gradient in bands with shapes on it, small as a file."""
    width, height = size
    picture = Image.new("RGB", size)
    pen = ImageDraw.Draw(picture)
    for band in range(16):
        level = band * 16
        pen.rectangle((0, height * band // 16, width, height * (band + 1) // 16), (level, 255 - level, 128))
    for n, colour in enumerate(colours):
        left, top = width * (2 * n + 1) // (2 * len(colours) + 1), height // 5 + n * height // 9
        box = (left, top, left + max(1, width // 6), top + max(1, height // 4))
        (pen.ellipse if n % 2 else pen.rectangle)(box, colour)
    picture = picture.convert(mode)
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(size))
    picture.save(OUT / "images" / name, optimize=True)


def main():
    (OUT / "images").mkdir(parents=True, exist_ok=True)
    draw("dot.png", "RGB", (1, 1), ["red"])
    draw("gate.png", "RGB", (1300, 876), ["red", "white", "navy"])
    draw("grey.png", "L", (320, 240), ["black", "white"])
    draw("mast.png", "RGB", (90, 700), ["yellow"])
    draw("seal.png", "RGBA", (256, 192), ["red", "lime"])
    draw("yard.png", "RGB", (4000, 3000), ["orange", "cyan", "brown", "black"])
    for form, options in FORMS.items():
        folder = OUT / form
        subprocess.run([sys.executable, HERE / "random_vision.py", folder, *SHAPE, *options], check=True)
        # The goldens need it; the tests take the demonstration's.
        shutil.copyfile(HERE.parent / "demo/tokenizer.json", folder / "tokenizer.json")
        subprocess.run([sys.executable, HERE / "vision_goldens.py", folder, OUT / "images", "4", OUT / f"golden-{form}.json"], check=True)
        (folder / "tokenizer.json").unlink()
    for given in map(Path, sys.argv[1:]):
        golden = OUT / f"golden-{given.name}.json"
        subprocess.run([sys.executable, HERE / "vision_goldens.py", given, given / "images", "4", golden], check=True)


if __name__ == "__main__":
    main()
