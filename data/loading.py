"""Batches for training without any state: a row depends on the seed, the step and its number, and on nothing else.

So a run that is resumed at a step sees what it would have seen, and any number of ranks reads the same global batch.
"""

from collections.abc import Callable, Iterator
from random import Random

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from rebus.data.packing import PackedBatch, pack_row
from rebus.data.rendering import NOT_TRAINED, Rendered, render, whole_picture
from rebus.data.samples import Picture, Sample, pictures, with_tokens
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.tokenizers.tokens import Tokens
from rebus.tokenizers.vocabulary import Vocabulary


class PackedLoader:
    """Draws samples, turns their pictures into codes and packs them into rows."""

    def __init__(
        self,
        *,
        make_sample: Callable[[Random], Sample],
        encode: Callable[[UInt8[Tensor, "batch 3 height width"]], Tokens],
        text_tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        rows: int,
        length: int,
        seed: int,
    ):
        """Takes what makes a sample, what makes the codes of pictures, and the size of a batch.

        Args:
            make_sample: Draws a sample with the given generator alone.
            encode: Returns the codes of pictures of one size; each row must depend on its picture alone.
            text_tokenizer: Encodes the texts.
            vocabulary: Places text and codes in one id space.
            rows: Rows of a batch over all ranks.
            length: Ids of a row.
            seed: Another seed gives other samples.

        Raises:
            ValueError: if pictures may have several sizes: their number of codes must be known before they are encoded.
        """
        vocabulary.layout.check_one_size("a loader")
        self.make_sample = make_sample
        self.encode = encode
        self.text_tokenizer = text_tokenizer
        self.vocabulary = vocabulary
        self.rows = rows
        self.length = length
        self.seed = seed
        positions, streams = vocabulary.layout.num_positions, len(vocabulary.layout.streams)
        codes = torch.zeros(1, positions, streams, dtype=torch.int64)
        self._placeholder = Tokens(codes, torch.tensor([positions]), vocabulary.layout)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> PackedBatch:
        """Returns rows ``rank``, ``rank + world``, ... of the global batch of ``step``; encodes all pictures at once.

        Raises:
            ValueError: if the rows cannot be shared equally, or a sample is longer than a row.
        """
        drawn = [self._row(step, row) for row in shared_rows(self.rows, rank, world)]
        batch = PackedBatch.cat([row for row, _ in drawn])
        self._fill_codes(batch, [picture for _, row_pictures in drawn for picture in row_pictures])
        return batch

    def _row(self, step: int, row: int) -> tuple[PackedBatch, list[Picture]]:
        # The codes of a picture are always as many, so rows can be packed before any picture is encoded.
        random = Random(f"{self.seed}/{step}/{row}")
        samples: list[Sample] = []

        def rendered() -> Iterator[Rendered]:
            while True:
                sample = self.make_sample(random)
                samples.append(sample)
                rows = [picture.tokens or self._placeholder for picture in pictures(sample)]
                yield render(with_tokens(sample, rows), self.text_tokenizer, self.vocabulary)

        packed = pack_row(rendered(), self.length, self.vocabulary.pad)
        taken = samples[: int(packed.documents.max()) + 1]
        return packed, [picture for sample in taken for picture in pictures(sample)]

    def _fill_codes(self, batch: PackedBatch, row_pictures: list[Picture]):
        pixels = [picture.pixels for picture in row_pictures if picture.tokens is None]
        encoded = iter(self._encode([array for array in pixels if array is not None]))
        codes: list[int] = []
        for picture in row_pictures:
            codes += whole_picture(picture.tokens or next(encoded), self.vocabulary)[1:-1]
        is_code = batch.modality == 1
        is_target = batch.targets != NOT_TRAINED
        batch.ids[is_code] = torch.tensor(codes, dtype=torch.int64)
        batch.targets[is_target] = batch.ids[is_target]

    def _encode(self, pixels: list[np.ndarray]) -> list[Tokens]:
        if not pixels:
            return []
        images = rearrange(np.stack(pixels), "batch height width channels -> batch channels height width")
        tokens = self.encode(torch.from_numpy(np.ascontiguousarray(images))).to("cpu")
        return [tokens.row(index) for index in range(len(pixels))]


def shared_rows(rows: int, rank: int, world: int) -> range:
    """Returns the rows of a batch that are a rank's.

    Raises:
        ValueError: if the rows cannot be shared equally.
    """
    if not 0 <= rank < world or rows % world:
        raise ValueError(f"rows must be a multiple of world > rank, got {rows} rows, rank {rank} of {world}")
    return range(rank, rows, world)
