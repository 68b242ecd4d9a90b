"""Drawings side by side, each with its prompt and the judge's verdict: green where it passed, red where not."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from rebus.evaluation.benchmarks import JudgedDrawing

_COLUMNS = 8
_CELL_PX = (148, 214)
_FRAME_PX = 4
_COLORS = {True: (30, 150, 60), False: (205, 40, 40)}


def drawing_sheet(drawings: Sequence[JudgedDrawing]) -> Image.Image:
    """Returns the drawings in rows of eight, in their order."""
    rows = -(-len(drawings) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * _CELL_PX[0], rows * _CELL_PX[1]), "white")
    for index, drawing in enumerate(drawings):
        row, column = divmod(index, _COLUMNS)
        sheet.paste(_cell(drawing), (column * _CELL_PX[0], row * _CELL_PX[1]))
    return sheet


def _cell(drawing: JudgedDrawing) -> Image.Image:
    """Returns one framed drawing with its prompt and what the judge saw in it."""
    color, font = _COLORS[drawing.verdict.passed], ImageFont.load_default(10)
    cell = Image.new("RGB", _CELL_PX, "white")
    picture = Image.fromarray(drawing.picture)
    pen = ImageDraw.Draw(cell)
    pen.rectangle((4, 4, 3 + picture.width + 2 * _FRAME_PX, 3 + picture.height + 2 * _FRAME_PX), fill=color)
    cell.paste(picture, (4 + _FRAME_PX, 4 + _FRAME_PX))
    below = 6 + picture.height + 2 * _FRAME_PX
    prompt = textwrap.wrap(drawing.prompt, 28)[:4]
    pen.multiline_text((4, below), "\n".join(prompt), fill="black", font=font, spacing=1)
    seen = textwrap.shorten(f"seen: {drawing.verdict.seen}", 30, placeholder="...")
    pen.text((4, below + 13 * len(prompt)), seen, fill=color, font=font)
    return cell
