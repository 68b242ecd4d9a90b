"""A base with its adapter: what trains, and what a step of painting asks."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.model.borrowed_decoders.adapter import CodeAdapter
from rebus.model.borrowed_decoders.contract import Condition


class BorrowedDecoder(nn.Module):
    """Predicts noise or velocity from noisy latents, a timestep and codes."""

    supports_gradient_checkpointing = True
    """Said as models of transformers say it."""

    def __init__(self, adapter: CodeAdapter, base: Any) -> None:
        super().__init__()
        self.adapter = adapter
        self.base = base

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        ids: Int[Tensor, "batch positions streams"],
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns what the scheduler expects, in float32.

        Args:
            noisy: latents between picture and noise.
            timesteps: 0 to 1000, where there is nothing but noise.
            ids: codes of all positions; -1 is a missing one.
        """
        return predict(self.adapter, self.base, noisy, timesteps, self.adapter(ids))

    def activation_checkpointing_enable(self, options: dict[str, bool]) -> None:
        """Lets the base keep only the inputs of its blocks while it trains; the options are what diffusers does."""
        assert options == {"use_reentrant": False}
        self.base.enable_gradient_checkpointing()


def predict(
    adapter: CodeAdapter,
    base: Any,
    noisy: Float[Tensor, "batch channels height width"],
    timesteps: Float[Tensor, " batch"],
    condition: Condition,
) -> Float[Tensor, "batch channels height width"]:
    """Returns what the base makes of a condition, in float32, whatever its own type is."""
    cast = {name: value.to(base.dtype) for name, value in condition.items()}
    return adapter.family.predict(base, noisy.to(base.dtype), timesteps, cast).float()


def predict_guided(
    adapter: CodeAdapter,
    base: Any,
    noisy: Float[Tensor, "batch channels height width"],
    timesteps: Float[Tensor, " batch"],
    conditions: tuple[Condition, Condition],
    guidance: float,
) -> Float[Tensor, "batch channels height width"]:
    """Returns the prediction without codes, moved towards that with codes; both are rows of one batch.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", https://arxiv.org/abs/2207.12598, sec. 3.2.

    Args:
        adapter: what made the conditions.
        base: the base.
        noisy: latents.
        timesteps: one for each picture.
        conditions: with codes, and with all of them missing.
        guidance: 1 is plain, more is stricter.
    """
    with_codes, without = conditions
    if guidance == 1:
        return predict(adapter, base, noisy, timesteps, with_codes)
    both = {name: torch.cat([value, without[name]]) for name, value in with_codes.items()}
    predicted = predict(adapter, base, torch.cat([noisy, noisy]), torch.cat([timesteps, timesteps]), both)
    towards, away = predicted.chunk(2)
    return away + guidance * (towards - away)
