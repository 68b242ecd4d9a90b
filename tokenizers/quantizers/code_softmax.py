"""The softmax of vectors over all codes, for gradients and entropies, without anything of vectors x codes in memory.

Scores are made chunk by chunk, and made again in the backward pass; only vectors and codes are kept for it.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from rebus.tokenizers.quantizers.nearest import rows_at_once
from rebus.tokenizers.quantizers.processes import mean_over_processes
from rebus.tokenizers.uncompiled import uncompiled


@uncompiled  # a loop over chunks, which would be unrolled
def index_gradient(
    features: Float[Tensor, "vectors dim"], codes: Float[Tensor, "codes dim"], temperature: float
) -> Float[Tensor, "vectors dim"]:
    """Returns zeros that have the gradient of the expected code under ``softmax(features . codes / temperature)``.

    The softmax has the gradient, for features and for codes; the codes that the expectation is taken of have none.
    """
    return _IndexGradient.apply(features / temperature, codes)


@uncompiled  # a loop over chunks, which would be unrolled
def code_entropies(
    features: Float[Tensor, "vectors dim"],
    codes: Float[Tensor, "codes dim"],
    weights: Float[Tensor, " vectors"],
    temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns, in nats, the mean entropy of a vector's distribution over the codes and that of their mean distribution.

    The distribution is ``softmax(-|feature - code|^2 / temperature)``. All processes must call it alike, whose vectors
    are taken together.

    Args:
        features: the vectors.
        codes: the code book.
        weights: what each vector counts; 0 leaves it out.
        temperature: in units of squared distance.
    """
    scaled, bias = features * (2 / temperature), -codes.square().sum(dim=-1) / temperature
    entropy, use = _SoftUse.apply(scaled, codes, bias, weights)
    shares = mean_over_processes(use, weights.sum())
    # A code that no vector can mean has probability 0; its logarithm must not be infinite, nor must its gradient.
    of_mean = -(shares * shares.clamp_min(torch.finfo(shares.dtype).tiny).log()).sum()
    return mean_over_processes(entropy, weights.sum()), of_mean


class _IndexGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(features, codes)
        return torch.zeros_like(features)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        features, codes = ctx.saved_tensors
        rows = rows_at_once(len(codes), features.device)
        for_features, for_codes = torch.empty_like(features), torch.zeros_like(codes)
        parts = zip(features.split(rows), gradient.split(rows), for_features.split(rows), strict=True)
        with torch.autocast(features.device.type, enabled=False):
            for part, for_mix, target in parts:
                chances = (part @ codes.T).softmax(dim=-1)
                for_scores = _softmax_gradient(chances, for_mix @ codes.T)
                target.copy_(for_scores @ codes)
                for_codes += for_scores.T @ part
        return for_features, for_codes


class _SoftUse(torch.autograd.Function):
    """The sum of the entropies of ``softmax(features . codes + bias)``, and the sum of these distributions."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, codes: Tensor, bias: Tensor, known: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " codes"]]:
        ctx.save_for_backward(features, codes, bias, known)
        entropy, use = torch.zeros_like(known[:1]).squeeze(0), torch.zeros_like(bias)
        rows = rows_at_once(len(codes), features.device)
        for part, weights in zip(features.split(rows), known.split(rows), strict=True):
            logarithms = torch.addmm(bias, part, codes.T).log_softmax(dim=-1)
            chances = logarithms.exp()
            entropy -= weights @ (chances * logarithms).sum(dim=-1)
            use += weights @ chances
        return entropy, use

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, for_entropy: Tensor, for_use: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        features, codes, bias, known = ctx.saved_tensors
        rows = rows_at_once(len(codes), features.device)
        for_features, for_codes, for_bias = (torch.zeros_like(each) for each in (features, codes, bias))
        parts = zip(features.split(rows), known.split(rows), for_features.split(rows), strict=True)
        with torch.autocast(features.device.type, enabled=False):
            for part, weights, target in parts:
                logarithms = torch.addmm(bias, part, codes.T).log_softmax(dim=-1)
                for_scores = _softmax_gradient(logarithms.exp(), for_use - for_entropy * logarithms) * weights[:, None]
                target.copy_(for_scores @ codes)
                for_codes += for_scores.T @ part
                for_bias += for_scores.sum(dim=0)
        return for_features, for_codes, for_bias, None


def _softmax_gradient(
    chances: Float[Tensor, "rows codes"], gradient: Float[Tensor, "rows codes"]
) -> Float[Tensor, "rows codes"]:
    return chances * (gradient - (chances * gradient).sum(dim=-1, keepdim=True))
