import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.evaluation import prefix_lengths
from rebus.evaluation.judges import Verdict
from rebus.evaluation.painted_scenes import PaintedScenes
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

LAYOUT = CodeLayout("sequence", 6, (Stream("coarse", 8), Stream("fine", 4)), prefix_decodable=True)


class Blind:
    def verdicts(self, scenes, pictures):
        return [Verdict(False, "") for _ in scenes]


class Growing:
    """Paints as many rows of the true picture as it has codes."""

    def __init__(self, images):
        self.images, self.lengths = images, []

    def decode(self, tokens):
        self.lengths.append(tokens.lengths.tolist())
        pictures = torch.zeros_like(self.images)
        shown = self.images.shape[2] * tokens.ids.shape[1] // LAYOUT.num_positions
        pictures[:, :, :shown] = self.images[:, :, :shown]
        return pictures


def test_more_codes_are_more_bits_and_better_pictures():
    pack = EmojiPack.open()
    rows = scene_rows(SceneSampler(pack, [*pack.concepts][:5], "train"), 3, seed=0, step=0)
    images = pictures_of(rows, pack)
    tokens = Tokens(torch.zeros(3, 6, 2, dtype=torch.long), torch.full((3,), 6), LAYOUT)
    scenes = PaintedScenes(rows, images, [tokens], lambda images: [images], Blind())
    painter = Growing(images / 255)
    points = prefix_lengths.curve(scenes, LAYOUT, painter.decode)
    assert [*points] == [5, 10, 20, 30] and [one["positions"] for one in points.values()] == [1, 2, 4, 6]
    assert painter.lengths == [[1] * 3, [2] * 3, [4] * 3, [6] * 3]
    likeness = [one["ssim"] for one in points.values()]
    assert likeness == sorted(likeness) and likeness[-1] == pytest.approx(1, abs=1e-3) and likeness[0] < 0.9


def test_lengths_double_up_to_the_whole():
    def lengths(number):
        return prefix_lengths.prefix_lengths(CodeLayout("sequence", number, LAYOUT.streams, prefix_decodable=True))

    assert lengths(1) == [1] and lengths(8) == [1, 2, 4, 8] and lengths(9) == [1, 2, 4, 8, 9]


def test_tokenizers_without_prefixes_are_one_line_and_exit_2(square_tokenizer, capsys):
    with pytest.raises(SystemExit, match="2"):
        prefix_lengths.main(["--image_tokenizer", str(square_tokenizer)])
    assert "image_tokenizer must decode any first codes, got a grid" in capsys.readouterr().err.splitlines()[-1]
