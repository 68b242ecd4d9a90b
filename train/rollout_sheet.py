"""Pictures of a rollout side by side, a row for each prompt, each with what it was worth."""

import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

_SIDE_PX = 128
_MARGIN_PX = 6
_TITLE_PX = 16
_LINE_PX = 12


def rollout_sheet(
    prompts: Sequence[str],
    pictures: Sequence[Sequence[Image.Image]],
    rewards: Sequence[Mapping[str, Sequence[float | None]]],
) -> Image.Image:
    """Returns the sheet.

    Args:
        prompts: one for each group.
        pictures: of each group.
        rewards: of each group by name; None is shown as a dash.
    """
    cell = (_SIDE_PX + _MARGIN_PX, _TITLE_PX + _SIDE_PX + _LINE_PX * len(rewards[0]) + _MARGIN_PX)
    sheet = Image.new("RGB", (cell[0] * max(map(len, pictures)) + _MARGIN_PX, cell[1] * len(prompts)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for row, (prompt, group, marks) in enumerate(zip(prompts, pictures, rewards, strict=True)):
        top, letters = row * cell[1], sheet.width // 6
        pen.text((_MARGIN_PX, top + 2), textwrap.shorten(prompt, letters, placeholder="..."), fill="black", font=font)
        for column, picture in enumerate(group):
            place = (_MARGIN_PX + column * cell[0], top + _TITLE_PX)
            sheet.paste(picture.resize((_SIDE_PX, _SIDE_PX)), place)
            told = [f"{name} {_shown(values[column])}" for name, values in marks.items()]
            below = (place[0], place[1] + _SIDE_PX)
            pen.multiline_text(below, "\n".join(told), fill="black", font=font, spacing=1)
    return sheet


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
