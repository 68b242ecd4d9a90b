"""Where to move codes that no feature is near, so that they come into use: to features, of all processes alike."""

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from rebus.tokenizers.quantizers.nearest import nearest_codes
from rebus.tokenizers.quantizers.processes import add_over_processes, num_processes


def worst_served(
    features: Float[Tensor, "vectors dim"],
    errors: Float[Tensor, " vectors"],
    known: Bool[Tensor, " vectors"],
    number: int,
) -> Float[Tensor, "number dim"]:
    """Returns so many features with the largest errors of all processes, in turn again if there are fewer.

    All processes must call it alike, and one of them know a feature.

    Args:
        features: those of this process.
        errors: of their codes, not negative.
        known: which of them count.
        number: how many to return.
    """
    ranked = torch.where(known, errors, -1)  # sorts those that do not count to the end
    order = ranked.argsort(descending=True, stable=True)[:number]
    ranked, features = ranked[order], features[order]
    if num_processes() > 1:
        missing = number - len(order)  # so that all processes send as many
        ranked = _gathered(F.pad(ranked, (0, missing), value=-1))
        features = _gathered(F.pad(features, (0, 0, 0, missing)))
        order = ranked.argsort(descending=True, stable=True)
        ranked, features = ranked[order], features[order]
    return features[torch.arange(number, device=features.device) % (ranked >= 0).sum()]


def nearest_features(
    codebook: Float[Tensor, "codes dim"], features: Float[Tensor, "vectors dim"], known: Bool[Tensor, " vectors"]
) -> Float[Tensor, "codes dim"]:
    """Returns the feature of all processes that is nearest to each code.

    All processes must call it alike, and one of them know a feature. Where processes know different features that are
    equally near, it is their mean.
    """
    candidates = features[known]
    if len(candidates):
        found = candidates[nearest_codes(codebook, candidates)]
        distances = (found - codebook).square().sum(dim=-1)
    else:
        found, distances = torch.zeros_like(codebook), torch.full_like(codebook[:, 0], torch.inf)
    if num_processes() > 1:
        least = distances.clone()
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        is_nearest = (distances == least).float()[:, None]
        found = found * is_nearest
        add_over_processes(found, is_nearest)
        found = found / is_nearest
    return found


def _gathered(values: Tensor) -> Tensor:
    parts = [torch.empty_like(values) for _ in range(num_processes())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
