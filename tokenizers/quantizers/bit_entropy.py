"""Entropies of soft bits: how sure each vector is of its code, and how evenly a batch uses the codes.

A vector's distribution over all 2^bits codes is a product of its bits' distributions, since the softmax over the
products of a vector with codes of signs factorizes. So the entropy of a vector is a sum over bits, and the mean
distribution of a batch is one matrix product of the two halves of the bits: neither needs vectors x codes of memory.

Source: Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation",
https://arxiv.org/abs/2310.05737, sec. 3.1 (both terms); Zhao et al., "Image and Video Tokenization with Binary
Spherical Quantization", https://arxiv.org/abs/2406.07548, sec. 3 (the factorized first term, the second by sub-groups).
Differs: the second term is exact within a sub-group of any size, and over all processes.
"""

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from rebus.tokenizers.quantizers.processes import mean_over_processes


def sample_entropy(logits: Float[Tensor, "*batch bits"]) -> Float[Tensor, "*batch"]:
    """Returns the entropy, in nats, of the codes whose bits are 1 with probability ``sigmoid(logits)``."""
    sizes = logits.abs()  # the entropy is even, and this half of it has no large terms that cancel
    return (F.softplus(-sizes) + sizes * torch.sigmoid(-sizes)).sum(dim=-1)


def batch_entropy(
    logits: Float[Tensor, "vectors groups bits"], weights: Float[Tensor, " vectors"]
) -> Float[Tensor, " groups"]:
    """Returns the entropy, in nats, of each group's mean distribution over all vectors of all processes.

    Args:
        logits: of each bit; a group's distribution has 2^bits entries.
        weights: what each vector counts; 0 leaves it out.
    """
    middle = logits.shape[-1] // 2
    first, second = _distributions(logits[..., :middle]), _distributions(logits[..., middle:])
    # Two factors at a time: of three, the product of two might be taken first that has all vectors and codes.
    sums = einsum(first * weights[:, None, None], second, "vectors groups a, vectors groups b -> groups a b")
    mean = mean_over_processes(sums, weights.sum()).flatten(1)
    # A code that no vector can mean has probability 0; its logarithm must not be infinite, nor must its gradient.
    return -(mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum(dim=-1)


def _distributions(logits: Float[Tensor, "vectors groups bits"]) -> Float[Tensor, "vectors groups codes"]:
    """Returns the probabilities of the 2^bits codes of each group, in some fixed order."""
    codes = logits.new_ones(*logits.shape[:-1], 1)
    for one, zero in zip(torch.sigmoid(logits).unbind(-1), torch.sigmoid(-logits).unbind(-1), strict=True):
        codes = torch.cat([codes * one[..., None], codes * zero[..., None]], dim=-1)
    return codes
