"""Cross entropy of a linear head, tile by tile over its vocabulary: no matrix of all logits is ever stored.

With tens of thousands of ids the logits and their gradient are by far the largest tensors of a training step, and in a
small model most of its work. Here a tile of them is made, used and dropped; the backward pass makes it once more. On a
CPU that is also faster, since a tile stays in the cache.

Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models", https://arxiv.org/abs/2411.09009.
Differs: tiles of the vocabulary only, so that each row of the weight's gradient is written once; plain torch; no part
of the gradient is left out for being small.
"""

import math
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from rebus.tokenizers.uncompiled import uncompiled

TILE_SIZE = 1024
"""Ids of a tile: the fastest of 256 to 2048 on a CPU, by little."""

_LOG2_E = math.log2(math.e)


@uncompiled  # a loop over tiles, which would be unrolled
def linear_cross_entropy(
    hidden: Float[Tensor, "targets dim"], weight: Float[Tensor, "vocabulary dim"], ids: Int[Tensor, " targets"]
) -> tuple[Float[Tensor, " targets"], Bool[Tensor, " targets"]]:
    """Returns the negative log-likelihood of each id in nats, in float32, and whether none is likelier.

    Equal to ``F.cross_entropy(F.linear(hidden, weight).float(), ids, reduction="none")``, but that an id outside the
    vocabulary gives NaN. Matrices are multiplied in the dtype that autocast asks for, or else that of ``hidden``; all
    else is float32.
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    return _TiledCrossEntropy.apply(hidden, weight, ids, dtype)


class _TiledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        small = hidden.to(dtype)
        best = hidden.new_full(ids.shape, float("-inf"), dtype=torch.float32)
        sum_of_exp, of_target = torch.zeros_like(best), torch.full_like(best, float("nan"))
        for start, rows in _tiles(weight):
            logits = (small @ rows.to(dtype).T).float()
            column, inside = _columns(ids, start, len(rows))
            of_target = torch.where(inside, logits.gather(1, column).squeeze(1), of_target)
            before, best = best, torch.maximum(best, logits.amax(dim=1))
            sum_of_exp = sum_of_exp * (before - best).exp() + _exp_of_difference_(logits, best).sum(dim=1)
        log_normalizer = best + sum_of_exp.log()
        right = of_target >= best
        ctx.save_for_backward(hidden, weight, ids, log_normalizer)
        ctx.dtype = dtype
        ctx.mark_non_differentiable(right)
        return log_normalizer - of_target, right

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, factors: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, weight, ids, log_normalizer = ctx.saved_tensors
        small = hidden.to(ctx.dtype)
        scaled = (hidden * factors.unsqueeze(1)).to(ctx.dtype)
        hidden_gradient = torch.zeros_like(hidden, dtype=torch.float32)
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for start, rows in _tiles(weight):
            rows = rows.to(ctx.dtype)
            errors = _exp_of_difference_((small @ rows.T).float(), log_normalizer)
            column, inside = _columns(ids, start, len(rows))
            errors.scatter_add_(1, column, -inside.float().unsqueeze(1))
            errors = errors.to(ctx.dtype)
            hidden_gradient += errors @ rows
            if weight_gradient is not None:
                weight_gradient[start : start + len(rows)] = errors.T @ scaled
        return hidden_gradient.mul_(factors.unsqueeze(1)).to(hidden.dtype), weight_gradient, None, None


def _tiles(weight: Tensor) -> list[tuple[int, Tensor]]:
    """Returns the tiles of a head, each with its first id."""
    return [(index * TILE_SIZE, rows) for index, rows in enumerate(weight.split(TILE_SIZE))]


def _exp_of_difference_(logits: Tensor, subtrahend: Tensor) -> Tensor:
    """Turns logits into exp(logits - subtrahend)."""
    # On a CPU torch computes powers of 2 three times as fast as those of e.
    return logits.sub_(subtrahend.unsqueeze(1)).mul_(_LOG2_E).exp2_()


def _columns(ids: Tensor, start: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns for each id some column of a tile, its own if it has one there, and whether it has."""
    column = ids - start
    return column.clamp(0, size - 1).unsqueeze(1), (column >= 0) & (column < size)
