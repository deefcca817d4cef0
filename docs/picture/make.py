"""Draws a terminal session as an SVG.

    cargo xtask demo 2>/dev/null | python3 docs/picture/make.py 'cargo xtask demo' > docs/picture/demo.svg
"""

import sys
import textwrap
from html import escape

COLUMNS, LINE, LETTER, MARGIN, BAR = 110, 19, 8.43, 18, 34
BACK, FRAME, TEXT, DIM, ASKED, FACT = "#11151c", "#1d2430", "#d7dee8", "#7d8998", "#7cc4ff", "#e6c07b"

lines = [(f"$ {sys.argv[1]}", "#8fd694")]
for line in sys.stdin.read().splitlines():
    if line.startswith("> "):
        colour = ASKED
    elif line.startswith(("  plant/", "  facts:")):
        colour = FACT
    elif line.startswith("  [") or line.startswith("This is a demonstration"):
        colour = DIM
    else:
        colour = TEXT
    pieces = textwrap.wrap(line, COLUMNS, drop_whitespace=False, subsequent_indent="") or [""]
    lines.extend((piece, colour) for piece in pieces)

width = int(COLUMNS * LETTER + 2 * MARGIN)
height = BAR + len(lines) * LINE + 2 * MARGIN
print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">')
print(f"<title>{escape(sys.argv[1])}</title>")
print(f'<rect width="{width}" height="{height}" rx="8" fill="{BACK}"/>')
print(f'<path d="M0 {BAR}V8a8 8 0 0 1 8-8H{width - 8}a8 8 0 0 1 8 8V{BAR}z" fill="{FRAME}"/>')
for n, colour in enumerate(("#ff5f57", "#febc2e", "#28c840")):
    print(f'<circle cx="{20 + 20 * n}" cy="{BAR // 2}" r="6" fill="{colour}"/>')
print('<g font-family="ui-monospace,SFMono-Regular,Menlo,Consolas,\'DejaVu Sans Mono\',monospace" font-size="14" xml:space="preserve">')
for n, (line, colour) in enumerate(lines):
    if line:
        print(f'<text x="{MARGIN}" y="{BAR + MARGIN + LINE * n + 13}" fill="{colour}">{escape(line)}</text>')
print("</g>\n</svg>")
