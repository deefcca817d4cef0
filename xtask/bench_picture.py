"""Writes a PNG of 1300 x 876 pixels, a gradient with noise: python bench_picture.py FILE."""

import random
import struct
import sys
import zlib

WIDTH, HEIGHT = 1300, 876


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


noise = random.Random(1)
rows = bytearray()
for y in range(HEIGHT):
    # Filter 0: the bytes as they are.
    rows.append(0)
    grain = noise.randbytes(WIDTH * 3)
    for x in range(WIDTH):
        for channel, base in enumerate((x * 191 // WIDTH, y * 191 // HEIGHT, (x + y) * 191 // (WIDTH + HEIGHT))):
            rows.append(base + (grain[x * 3 + channel] >> 2))
with open(sys.argv[1], "wb") as file:
    file.write(b"\x89PNG\r\n\x1a\n")
    file.write(chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0)))
    file.write(chunk(b"IDAT", zlib.compress(bytes(rows), 6)))
    file.write(chunk(b"IEND", b""))
