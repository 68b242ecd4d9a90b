"""Speculative Jacobi decoding: several codes a pass, with the distribution of those drawn one by one.

A window of guesses for the next codes is read in one pass. From the left, each guess is held against what the model
says after the codes before it, and kept or drawn anew as in speculative sampling, so that what is kept is distributed
as if it had been drawn alone. Guesses behind the first that fell are drawn anew from what this pass says: whoever
guesses need not guess well, only the distribution that a guess was drawn from must be known.

Source: Teng et al., "Accelerating Auto-regressive Text-to-Image Generation with Training-free Speculative Jacobi
Decoding", https://arxiv.org/abs/2410.01699, sec. 3.2; the rule is that of Leviathan et al., "Fast Inference from
Transformers via Speculative Decoding", https://arxiv.org/abs/2211.17192, sec. 2.3.
Differs: a new guess at the end of the window is drawn from what the place before it says, not from all codes alike.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.cached_rows import CachedRows
from rebus.model.sampling import Sampling

Logits = Callable[[Float[Tensor, "rows codes dim"], int], Float[Tensor, "codes ids"]]
"""Returns the logits of codes in a row from hidden states of all branches; the first has this place in the picture."""
Guess = tuple[int, Float[Tensor, " ids"]]
"""A code, counted from the first of its range, and the distribution that it was drawn from."""


class Speculation:
    """Draws the codes of one row, whose branches are the rows of a cache.

    Args:
        cache: has read all that comes before the codes.
        logits: mixes the branches.
        sampling: how each code is drawn.
        generator: of all random draws.
        window: most guesses of a pass.
    """

    def __init__(
        self, cache: CachedRows, logits: Logits, sampling: Sampling, generator: torch.Generator, window: int
    ) -> None:
        self.cache, self.logits, self.sampling = cache, logits, sampling
        self.generator, self.window = generator, window
        self.num_passes = 0

    def draw(self, starts: Sequence[int], first: int) -> list[int]:
        """Returns as many codes as there are starts, each counted from its own; the cache has read them then.

        Args:
            starts: first id of the range of each code.
            first: place of the first code in its picture.
        """
        last = self._said(self.cache.last.unsqueeze(1), first)[0]
        codes, num_read, guesses = [self._drawn(last)], 0, []
        while num_read < len(starts):
            guesses = self._filled(guesses, last, min(self.window, len(starts) - len(codes)))
            ids = [*codes[num_read:], *(guess for guess, _ in guesses)]
            ids = [code + start for code, start in zip(ids, starts[num_read:], strict=False)]
            self.cache.read(torch.tensor(ids, device=self.cache.last.device).expand(len(self.cache.last), -1))
            self.num_passes += 1
            said = self._said(self.cache.hidden, first + num_read + 1)
            kept = self._kept(guesses, said)
            codes += kept[: len(starts) - len(codes)]
            num_accepted = min(len(kept) - 1, len(guesses))
            self.cache.forget(len(guesses) - num_accepted)
            num_read += 1 + num_accepted
            last = said[num_accepted]
            guesses = [(self._drawn(one), one) for one in said[num_accepted + 1 :]]
        return codes

    def _filled(self, guesses: list[Guess], last: Float[Tensor, " ids"], number: int) -> list[Guess]:
        """Returns so many guesses: those there are, and new ones of what the last place says."""
        source = guesses[-1][1] if guesses else last
        return [*guesses[:number], *((self._drawn(source), source) for _ in range(number - len(guesses)))]

    def _kept(self, guesses: list[Guess], said: Float[Tensor, "codes ids"]) -> list[int]:
        """Returns the guesses from the left that stand, and one code more."""
        kept = []
        for (guess, guessed), now in zip(guesses, said, strict=False):
            if torch.rand((), generator=self.generator) * guessed[guess] >= now[guess]:
                missing = (now - guessed).clamp_min(0)
                return [*kept, self._drawn(missing if missing.any() else now)]
            kept.append(guess)
        return [*kept, self._drawn(said[len(guesses)])]

    def _said(self, hidden: Float[Tensor, "rows codes dim"], first: int) -> Float[Tensor, "codes ids"]:
        """Returns the probabilities of each code.

        Raises:
            ArithmeticError: if logits are no numbers.
        """
        logits = self.logits(hidden, first)
        if not (logits < float("inf")).all():
            raise ArithmeticError("logits must be numbers, got others")
        return self.sampling.probabilities(logits).cpu()

    def _drawn(self, weights: Float[Tensor, " ids"]) -> int:
        cumulative = weights.double().cumsum(dim=0)
        uniform = torch.rand((), generator=self.generator, dtype=torch.float64) * cumulative[-1]
        return int((cumulative <= uniform).sum().clamp_max(len(weights) - 1))
