"""The contact sheet: twelve names in the nine styles, drawn by the exported model.

python -m tools.demo_model.sheet FOLDER sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers import QwenImagePipeline
from PIL import Image, ImageDraw, ImageFont

from tools.demo_model.captions import shipped, style_texts
from tools.demo_model.evaluate import draw
from tools.demo_model.export import load_pipeline
from tools.demo_model.looks import LOOKS, SIDE

NAMES = (
    "dragon", "cat", "rocket", "rose", "penguin", "castle", "pizza", "guitar", "owl", "robot", "palm tree", "sailboat",
)  # fmt: skip
MARGIN = 64


def make_sheet(pipe: QwenImagePipeline, *, seed: int = 1) -> Image.Image:
    """Draw all of them, a row a name, a column a style, with both written beside."""
    font = ImageFont.load_default(14)
    sheet = Image.new("RGB", (MARGIN * 2 + SIDE * len(LOOKS), MARGIN // 2 + SIDE * len(NAMES)), "white")
    pen = ImageDraw.Draw(sheet)
    for column, look in enumerate(LOOKS):
        pen.text((MARGIN * 2 + SIDE * (column + 0.5), MARGIN // 4), look, "black", font, anchor="mm")
    for row, name in enumerate(NAMES):
        top = MARGIN // 2 + SIDE * row
        pen.text((MARGIN, top + SIDE / 2), name, "black", font, anchor="mm")
        for column, look in enumerate(LOOKS):
            _, negative = style_texts()[look]
            drawn = draw(pipe, shipped(name, look), negative, seed + row)
            sheet.paste(Image.fromarray(drawn.permute(1, 2, 0).numpy()), (MARGIN * 2 + SIDE * column, top))
    return sheet


def main() -> None:
    """Do what is asked for on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the exported pipeline")
    parser.add_argument("output", type=Path, help="the PNG to write")
    arguments = parser.parse_args()
    pipe = load_pipeline(arguments.folder)
    make_sheet(pipe).save(arguments.output)


if __name__ == "__main__":
    main()
