"""Drawings side by side, each with its prompt and the judge's verdict: green where it passed, red where not."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from rebus.evaluation.benchmark import Shown

_COLUMNS = 8
_MARGIN_PX = 20
_TEXT_PX = 66
_FRAME_PX = 4
_COLORS = {True: (30, 150, 60), False: (205, 40, 40), None: (120, 120, 120)}


def drawing_sheet(drawings: Sequence[Shown], columns: int = _COLUMNS) -> Image.Image:
    """Returns the drawings in rows, in their order; those that could not be judged are framed in grey."""
    side_px = max(max(one.picture.shape[:2]) for one in drawings)
    width_px, height_px = side_px + _MARGIN_PX, side_px + _MARGIN_PX + _TEXT_PX
    rows = -(-len(drawings) // columns)
    sheet = Image.new("RGB", (columns * width_px, rows * height_px), "white")
    for index, drawing in enumerate(drawings):
        row, column = divmod(index, columns)
        sheet.paste(_cell(drawing, (width_px, height_px)), (column * width_px, row * height_px))
    return sheet


def _cell(drawing: Shown, size_px: tuple[int, int]) -> Image.Image:
    """Returns one framed drawing with its prompt and what the judge saw in it."""
    color, font = _COLORS[drawing.passed], ImageFont.load_default(10)
    cell = Image.new("RGB", size_px, "white")
    picture = Image.fromarray(drawing.picture)
    pen = ImageDraw.Draw(cell)
    pen.rectangle((4, 4, 3 + picture.width + 2 * _FRAME_PX, 3 + picture.height + 2 * _FRAME_PX), fill=color)
    cell.paste(picture, (4 + _FRAME_PX, 4 + _FRAME_PX))
    below = 6 + picture.height + 2 * _FRAME_PX
    letters = size_px[0] // 5 - 1
    prompt = textwrap.wrap(drawing.prompt, letters)[:4]
    pen.multiline_text((4, below), "\n".join(prompt), fill="black", font=font, spacing=1)
    seen = textwrap.shorten(f"seen: {drawing.seen}", letters + 2, placeholder="...")
    pen.text((4, below + 13 * len(prompt)), seen, fill=color, font=font)
    return cell
