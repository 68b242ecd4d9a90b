"""How many of the first positions a training step keeps, so that any prefix learns to decode.

Source: Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
https://arxiv.org/abs/2502.13967, sec. 3.1 (nested dropout, a length for each picture); Miwa et al., "One-D-Piece: Image
Tokenizer Meets Quality-Controllable Compression", https://arxiv.org/abs/2501.10064, sec. 3 (one length a batch).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LengthsConfig:
    """How training draws lengths."""

    draw: Literal["uniform", "powers_of_two", "uniform_powers_of_two"] = "powers_of_two"
    """``"uniform"``: any length alike. ``"powers_of_two"``: those and the whole length, all alike.
    ``"uniform_powers_of_two"``: any length alike, raised to the next of those."""
    scope: Literal["picture", "batch"] = "picture"
    """Whether each picture has a length of its own or all of a batch have the same."""
    shortest_prefix: int = 1
    """Fewest positions kept."""

    def build(self, num_positions: int) -> "Lengths":
        """Builds what draws lengths of up to a number of positions.

        Raises:
            ValueError: if not even the shortest is among them.
        """
        return Lengths(self, num_positions)


class Lengths:
    """Draws how many positions each picture of a batch keeps."""

    def __init__(self, config: LengthsConfig, num_positions: int) -> None:
        if not 1 <= config.shortest_prefix <= num_positions:
            raise ValueError(f"shortest_prefix must be in 1..{num_positions}, got {config.shortest_prefix}")
        self.config = config
        self.num_positions = num_positions
        powers = [2**power for power in range(num_positions.bit_length()) if 2**power >= config.shortest_prefix]
        self.cuts = (*(power for power in powers if power < num_positions), num_positions)

    @property
    def levels(self) -> tuple[int, ...]:
        """Positions between one length and the next, where training cuts at few; none where it cuts anywhere."""
        if self.config.draw == "uniform":
            return ()
        return tuple(stop - start for start, stop in pairwise((0, *self.cuts)))

    def draw(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Returns the positions that each picture keeps."""
        number = 1 if self.config.scope == "batch" else batch
        return self._drawn(number, generator).expand(batch)

    def _drawn(self, number: int, generator: torch.Generator) -> Int[Tensor, " number"]:
        cuts = torch.tensor(self.cuts)
        if self.config.draw == "powers_of_two":
            return cuts[torch.randint(len(cuts), (number,), generator=generator)]
        lengths = torch.randint(self.config.shortest_prefix, self.num_positions + 1, (number,), generator=generator)
        return lengths if self.config.draw == "uniform" else cuts[torch.searchsorted(cuts, lengths)]
