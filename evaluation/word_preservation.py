"""How well written words outlive a tokenizer: signs read in rebuilt pictures, by the height of their letters.

``words`` is the share of signs that are read without a mistake, ``letters`` 1 less the edits that what is read needs
to become the word, as a share of the longer of both. The same is said of the true pictures: what cannot be read there
tells nothing of a tokenizer.

Source: Wu et al., "TokBench: Evaluating Your Visual Tokenizer before Visual Generation",
https://arxiv.org/abs/2505.18142 (T-ACC and T-NED by the scale of text).
Differs: signs of composed scenes instead of photographs, words that no sign of training says, and RapidOCR, which finds
the line itself; of several lines the best counts.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import LATTICE_PX, SCENE_SIZE_PX, SIGN_HEIGHT_PX, Scene, draw, letter_shape
from rebus.evaluation.benchmark import Marks, Outcome, Workbench, attempted
from rebus.evaluation.judges import WordReader

LETTER_HEIGHTS_PX = (8, 12, 16, 20, 24)
"""Letters of scenes are 20 px high."""
_OWN_HEIGHT_PX = 20
_LONGEST = 6
"""Letters of the longest word that fits at every height."""
Rebuild = Callable[[Sequence[Image.Image]], Sequence[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class WordBenchmark:
    """Signs whose letters have several heights, as the model keeps them; a mark is how well one can be read."""

    number: int = 30
    """Signs of each height, the same scenes and words at each."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "words_kept"

    @property
    def is_judged(self) -> bool:
        """The judge's reader reads the signs."""
        return True

    def check(self) -> None:
        """Needs no more than the judges."""

    def run(self, bench: Workbench) -> Outcome:
        """Has all signs encoded and painted again, and reads them."""
        bench.say("reading signs")

        def rebuild(pictures: Sequence[Image.Image]) -> list[Image.Image]:
            return [one.image for one in bench.model.rebuild(pictures)]

        reader = bench.judges[0].reader
        return Outcome(marks=word_marks(rebuild, reader, bench.samples.sampler, self.number, bench.batch_size))


def sign_picture(scene: Scene, height_px: int, pack: EmojiPack) -> UInt8[np.ndarray, "height width 3"]:
    """Returns a scene whose sign has letters of another height; one of 20 px is that of the scene itself."""
    assert scene.sign is not None
    canvas = Image.fromarray(draw(replace(scene, sign=None), pack))
    board, cell = (round(size * height_px / _OWN_HEIGHT_PX) for size in (SIGN_HEIGHT_PX, LATTICE_PX))
    top = 0 if scene.sign_on_top else SCENE_SIZE_PX - board
    canvas.paste("black", (0, top, canvas.width, top + board))
    canvas.paste("white", (0, top + 2, canvas.width, top + board - 2))
    left = (SCENE_SIZE_PX - len(scene.sign) * cell) // 2 // LATTICE_PX * LATTICE_PX
    for index, letter in enumerate(scene.sign):
        shape = letter_shape(letter)
        if height_px != _OWN_HEIGHT_PX:
            shape = letter_shape(letter, 2).resize((cell, board), Image.Resampling.LANCZOS)
        canvas.paste("black", (left + index * cell, top), shape)
    return np.asarray(canvas)


def word_marks(
    rebuild: Rebuild, reader: WordReader, sampler: SceneSampler, number: int, batch_size: int
) -> dict[str, Marks]:
    """Returns marks by score: ``words/12`` and ``letters/12`` by height of letters, ``true_words/12`` of true pictures.

    Args:
        rebuild: encodes pictures and paints them again.
        reader: reads them.
        sampler: of the scenes, whose words should be held out.
        number: signs of each height.
        batch_size: pictures given to ``rebuild`` at a time.
    """
    scenes = {f"{index}": _short(sampler, random.Random(f"words/{index}")) for index in range(number)}

    def read(part: Sequence[Scene], change: Rebuild, height: int) -> list[float]:
        pictures = change([Image.fromarray(sign_picture(scene, height, sampler.pack)) for scene in part])
        return [read_likeness(reader, *each) for each in zip(pictures, part, strict=True)]

    marks = {}
    for height in LETTER_HEIGHTS_PX:
        for group, change in (("", rebuild), ("true_", list)):
            found, failed = attempted(partial(read, change=change, height=height), scenes, batch_size)
            whole = {item: float(one == 1) for item, one in found.items()}
            marks[f"{group}words/{height}"] = Marks(each=whole, failed=failed)
            marks[f"{group}letters/{height}"] = Marks(each=found, failed=failed)
    return marks


def read_likeness(reader: WordReader, picture: Image.Image, scene: Scene) -> float:
    """Returns how like the word of a scene's sign is to the line of a picture that is most like it; 0 without lines."""
    lines = ("".join(filter(str.isalnum, line.upper())) for line in reader.read(np.asarray(picture)))
    return max((likeness(line, scene.sign or "") for line in lines), default=0.0)


def likeness(one: str, other: str) -> float:
    """Returns 1 less the fewest letters to insert, delete or replace, as a share of the longer text."""
    return 1 - edit_distance(one, other) / max(len(one), len(other), 1)


def edit_distance(one: str, other: str) -> int:
    """Returns the fewest letters to insert, delete or replace to make one text of another.

    Source: Levenshtein, "Binary Codes Capable of Correcting Deletions, Insertions, and Reversals", 1966.
    """
    row = list(range(len(other) + 1))
    for letter in one:
        above, row = row, [row[0] + 1]
        for index, wanted in enumerate(other):
            row.append(min(above[index] + (letter != wanted), above[index + 1] + 1, row[-1] + 1))
    return row[-1]


def _short(sampler: SceneSampler, rng: random.Random) -> Scene:
    """Returns a scene with a sign whose word fits at every height."""
    while True:
        scene = sampler.scene(rng, "sign")
        if len(scene.sign or "") <= _LONGEST:
            return scene
