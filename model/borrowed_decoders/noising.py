"""How a borrowed scheduler spoils latents in training and leads back from noise in painting.

Training asks the scheduler for nothing but its levels of noise, so that any scheduler of a family will do: those that
go back in few steps have the same levels as the one the base was trained with.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models", https://arxiv.org/abs/2006.11239, sec. 2; Salimans and
Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", https://arxiv.org/abs/2202.00512, app. D (v);
Esser et al., "Scaling Rectified Flow Transformers", https://arxiv.org/abs/2403.03206, sec. 3.1 and 5.3.2 (shift).
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rebus.model.flow import interpolate, logit_normal_times, velocity_target

NUM_TIMESTEPS = 1000
"""Timesteps of all families; at this one there is nothing but noise."""


@dataclass(frozen=True, eq=False)
class DiffusionNoise:
    """Noise whose share grows over discrete steps, as in Stable Diffusion 1.5, 2.1 and XL."""

    kept: Float[Tensor, " steps"]
    """Share of the picture's variance that is left at each timestep."""
    prediction: Literal["epsilon", "v_prediction"]
    """What the base gives: the noise, or the velocity along the arc from picture to noise."""

    def draw(self, number: int, generator: torch.Generator) -> Float[Tensor, " number"]:
        """Returns timesteps, each as likely as any other."""
        return torch.randint(len(self.kept), (number,), generator=generator).float()

    def noisy(
        self, clean: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], timesteps: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Returns latents with the noise of timesteps."""
        picture, added = self._shares(timesteps, clean.ndim)
        return picture * clean + added * noise

    def target(
        self, clean: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], timesteps: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Returns what the base should give for those latents."""
        if self.prediction == "epsilon":
            return noise
        picture, added = self._shares(timesteps, clean.ndim)
        return picture * noise - added * clean

    def _shares(self, timesteps: Tensor, num_dims: int) -> tuple[Tensor, Tensor]:
        kept = self.kept.to(timesteps.device)[timesteps.long()].reshape(-1, *[1] * (num_dims - 1))
        return kept.sqrt(), (1 - kept).sqrt()


@dataclass(frozen=True, eq=False)
class FlowNoise:
    """Noise along straight lines, as in Stable Diffusion 3, FLUX, Lumina 2 and Sana."""

    shift: float
    """By how much noisy times are preferred; 1 is not at all."""

    def draw(self, number: int, generator: torch.Generator) -> Float[Tensor, " number"]:
        """Returns timesteps with Gaussian logits before the shift."""
        time = logit_normal_times(number, mean=0.0, std=1.0, generator=generator)
        return NUM_TIMESTEPS * self.shift * time / (1 + (self.shift - 1) * time)

    def noisy(
        self, clean: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], timesteps: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Returns latents with the noise of timesteps."""
        return interpolate(clean, noise, timesteps / NUM_TIMESTEPS)

    def target(
        self, clean: Float[Tensor, "batch ..."], noise: Float[Tensor, "batch ..."], timesteps: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch ..."]:
        """Returns what the base should give for those latents: the same at all times."""
        return velocity_target(clean, noise)


Noising = DiffusionNoise | FlowNoise


def noising_of(scheduler: Any) -> Noising:
    """Returns how a scheduler of diffusers spoils latents.

    Raises:
        ValueError: if it wants something else of a model than noise or a velocity, or counts other timesteps.
    """
    config = scheduler.config
    if config["num_train_timesteps"] != NUM_TIMESTEPS:
        raise ValueError(f"num_train_timesteps must be {NUM_TIMESTEPS}, got {config['num_train_timesteps']}")
    prediction = config.get("prediction_type", "flow_prediction")  # schedulers of flows alone do not say it
    if prediction == "flow_prediction":
        return FlowNoise(config.get("flow_shift", config.get("shift", 1.0)))
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"prediction_type must be epsilon, v_prediction or flow_prediction, got {prediction}")
    return DiffusionNoise(scheduler.alphas_cumprod, prediction)


def set_timesteps(scheduler: Any, steps: int, *, even_noise: bool, num_patches: int, device: torch.device) -> None:
    """Prepares a scheduler as the family's own pipeline does.

    Args:
        scheduler: one of diffusers.
        steps: evaluations of the base.
        even_noise: whether levels of noise start out evenly spread, 1 to 1 / steps.
        num_patches: tokens of a picture in the base, on which a dynamic shift depends.
        device: of the timesteps.
    """
    options: dict[str, Any] = {}
    if even_noise:
        options["sigmas"] = torch.linspace(1, 1 / steps, steps).tolist()
    if scheduler.config.get("use_dynamic_shifting"):
        options["mu"] = dynamic_shift(scheduler.config, num_patches)
    if even_noise:
        scheduler.set_timesteps(device=device, **options)
    else:
        scheduler.set_timesteps(steps, device=device, **options)


def dynamic_shift(config: Any, num_patches: int) -> float:
    """Returns the logarithm of the shift for a picture of so many patches: on a line through the config's two points.

    Source: ``calculate_shift`` in the FLUX pipeline of diffusers.
    """
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (high - low)
    return config["base_shift"] + slope * (num_patches - low)


def generator_option(scheduler: Any, generator: Any) -> dict[str, Any]:
    """Returns the generator as an option of the scheduler's step, if that draws anything."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
