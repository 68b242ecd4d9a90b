"""Samples of shards among those that are made, each folder's as often as its share says.

They are drawn with replacement by the generator that draws what is made, so that a batch stays a pure function of its
number, and there is nothing to be saved of where a run stands.
"""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np

from rebus.data.rendering import parse
from rebus.data.samples import Sample
from rebus.data.shards import Shards
from rebus.tokenizers.text_tokenizer import TextTokenizer


class MixedSamples:
    """Makes samples, and now and then takes one from a folder of shards instead."""

    def __init__(
        self,
        make_sample: Callable[[Random], Sample],
        folders: Sequence[Shards],
        shares: Sequence[float],
        text_tokenizer: TextTokenizer,
    ):
        """Takes what makes a sample, and folders of shards with the share of all samples that is taken from each.

        Raises:
            ValueError: if a share is not positive, they add up to more than 1, or a folder holds no samples.
        """
        if not all(share > 0 for share in shares) or sum(shares) > 1:
            raise ValueError(f"shares must be positive and add up to at most 1, got {list(shares)}")
        for shards in folders:
            if not len(shards):
                raise ValueError(f"{shards.folder} must hold at least 1 sample, got none")
        self.make_sample, self.folders, self.shares = make_sample, list(folders), list(shares)
        self.text_tokenizer = text_tokenizer

    def __call__(self, random: Random) -> Sample:
        """Returns a sample drawn with the given generator alone."""
        place = random.random()
        for shards, share in zip(self.folders, self.shares, strict=True):
            if place < share:
                (marked,) = shards.marked(np.array([random.randrange(len(shards))]))
                return parse((marked ^ (marked >> 31)).tolist(), self.text_tokenizer, shards.vocabulary)
            place -= share
        return self.make_sample(random)
