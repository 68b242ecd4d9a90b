"""Draws a sheet to look at: scenes of every task with their captions, edits, a story, and questions.

python -m rebus.data.contact_sheet --output sheet.png
"""

import argparse
import random
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rebus.data.captions import caption
from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_edits import EDIT_TASKS, story
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import SCENE_SIZE_PX, TASKS, Scene, draw

Row = list[tuple[Scene, str]]
_NUM_COLUMNS = 8
_MARGIN_PX = 12
_TEXT_PX = 112
_LETTERS_A_LINE = 22


def contact_sheet(samples: SceneSamples, rng: random.Random) -> Image.Image:
    """Returns the sheet: a row for each task, a row of edits in pairs, and a row with a story and questions."""
    rows = [_task_row(samples, rng, task) for task in TASKS]
    rows.append(_edit_row(samples, rng))
    told = [(scene, sentence) for sentence, scene in story(rng, samples.sampler)]
    rows.append([*told, *_question_row(samples, rng), *_question_row(samples, rng)])
    return _lay_out(rows, samples.pack)


def _task_row(samples: SceneSamples, rng: random.Random, task: str) -> Row:
    scenes = [samples.sampler.scene(rng, task) for _ in range(_NUM_COLUMNS)]
    return [(scene, caption(scene, rng, samples.pack)) for scene in scenes]


def _edit_row(samples: SceneSamples, rng: random.Random) -> Row:
    row: Row = []
    for kind in rng.sample(tuple(EDIT_TASKS), _NUM_COLUMNS // 2):
        scene, change = samples.edit(rng, kind)
        row += [(scene, f"{change.instruction} ->"), (change.scene, "-> edited")]
    return row


def _question_row(samples: SceneSamples, rng: random.Random) -> Row:
    scene, asked = samples.questions(rng)
    return [(scene, "\n".join(f"{one.question} {one.answer}" for one in asked[:3]))]


def _lay_out(rows: Sequence[Row], pack: EmojiPack) -> Image.Image:
    column_px = SCENE_SIZE_PX + _MARGIN_PX
    row_px = SCENE_SIZE_PX + _TEXT_PX
    sheet = Image.new("RGB", (_NUM_COLUMNS * column_px + _MARGIN_PX, len(rows) * row_px + _MARGIN_PX), "lightgray")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for row_index, row in enumerate(rows):
        for column, (scene, text) in enumerate(row):
            left, top = _MARGIN_PX + column * column_px, _MARGIN_PX + row_index * row_px
            sheet.paste(Image.fromarray(draw(scene, pack)), (left, top))
            lines = [line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, _LETTERS_A_LINE)]
            pen.text((left, top + SCENE_SIZE_PX + 2), "\n".join(lines), fill="black", font=font)
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the sheet that the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m rebus.data.contact_sheet", description="Draws a sheet of scenes with what is said about them."
    )
    parser.add_argument(
        "--output", type=Path, default=Path("sheet.png"), help="picture to write (default: %(default)s)"
    )
    parser.add_argument("--concepts", choices=("mini", "all"), default="mini", help="of the small model, or all 1,564")
    parser.add_argument("--split", choices=("train", "held_out"), default="train", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another number, other scenes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    pack = EmojiPack.open()
    concepts = mini_concepts(pack) if arguments.concepts == "mini" else tuple(pack.concepts)
    samples = SceneSamples(SceneSampler(pack, concepts, arguments.split))
    contact_sheet(samples, random.Random(arguments.seed)).save(arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
