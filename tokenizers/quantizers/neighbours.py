"""Wrong codes near the right ones, as a language model that samples a little wrong would give them to a decoder."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rebus.tokenizers.quantizers.contract import replace_by_random_codes
from rebus.tokenizers.quantizers.nearest import rows_at_once


def replace_codes(
    ids: Int[Tensor, "batch positions 1"],
    codebook: Float[Tensor, "codes dim"],
    rate: float,
    neighbours: int,
    generator: torch.Generator,
) -> Int[Tensor, "batch positions 1"]:
    """Replaces each code with probability ``rate`` by one of so many neighbours, or by any code if that is 0."""
    if neighbours:
        return replace_by_neighbours(ids, codebook, rate, neighbours, generator)
    return replace_by_random_codes(ids, (len(codebook),), rate, generator)


@torch.no_grad()
def replace_by_neighbours(
    ids: Int[Tensor, "*batch"],
    codebook: Float[Tensor, "codes dim"],
    rate: float,
    neighbours: int,
    generator: torch.Generator,
) -> Int[Tensor, "*batch"]:
    """Replaces each code with probability ``rate`` by one of its nearest others; missing codes (-1) stay missing.

    Source: Qiu et al., "Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis",
    https://arxiv.org/abs/2503.08354, sec. 3.2.
    Differs: the neighbours are those of the code, not of the feature that it stands for, so that codes alone are
    needed; a code is no neighbour of itself, so that ``rate`` is the share of wrong codes.

    Raises:
        ValueError: if there are not so many other codes.
    """
    if not 1 <= neighbours < len(codebook):
        raise ValueError(f"neighbours must be in [1, {len(codebook)}) for {len(codebook)} codes, got {neighbours}")
    drawn = torch.rand(ids.shape, generator=generator) < rate
    places = torch.randint(neighbours, ids.shape, generator=generator)
    chosen = drawn.to(ids.device) & (ids >= 0)
    distinct, rows = ids[chosen].unique(return_inverse=True)
    near = torch.cat(
        [
            _nearest_others(part, codebook, neighbours)
            for part in distinct.split(rows_at_once(len(codebook), ids.device))
        ]
    )
    replaced = ids.clone()
    replaced[chosen] = near[rows, places.to(ids.device)[chosen]]
    return replaced


def _nearest_others(
    ids: Int[Tensor, " some"], codebook: Float[Tensor, "codes dim"], number: int
) -> Int[Tensor, "some number"]:
    with torch.autocast(codebook.device.type, enabled=False):
        codes = codebook.float()
        scores = torch.addmm(-codes.square().sum(dim=-1) / 2, codes[ids], codes.T)
    # Itself left out by name: a copy of it elsewhere in the code book is as near.
    scores.scatter_(1, ids[:, None], -torch.inf)
    return scores.topk(number, dim=-1).indices
