"""What the config of a family of borrowed decoders must say, so that one adapter, stage and pipeline serve them all.

A borrowed decoder is a diffusion model of the ``diffusers`` library, its base, which somebody else trained to follow a
text. An adapter reads codes and gives the base what it takes for that text. The base itself stays as it is.
"""

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from rebus.model.borrowed_decoders.code_features import FeaturesConfig
from rebus.tokenizers.tokens import CodeLayout

if TYPE_CHECKING:
    from diffusers.models.modeling_utils import ModelMixin

Condition = dict[str, Tensor]
"""What a base reads beside noisy latents and times, by names of the family."""


@runtime_checkable
class Head(Protocol):
    """The learned way from features of codes to what a base reads."""

    def __call__(
        self, features: Float[Tensor, "batch positions dim"], held: Bool[Tensor, "batch positions"]
    ) -> Condition:
        """Returns the condition of a batch; ``held`` is False where a code is missing."""
        ...


@runtime_checkable
class Family(Protocol):
    """A frozen config of one kind of base, and of how codes get into it."""

    @property
    def part(self) -> str:
        """Folder of the base in a pipeline of diffusers: ``"unet"`` or ``"transformer"``."""
        ...

    @property
    def even_noise(self) -> bool:
        """Whether its own pipeline starts from evenly spread levels of noise, 1 to 1 / steps, before it shifts them."""
        ...

    @property
    def features(self) -> FeaturesConfig:
        """Codes to features."""
        ...

    @property
    def architecture(self) -> dict[str, Any]:
        """Options of the base's class: those of the published model, or what a folder of weights says."""
        ...

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width of the painted pictures."""
        ...

    def base_class(self) -> "type[ModelMixin]":
        """Returns the class of the base."""
        ...

    def build_head(self, dim: int, layout: CodeLayout) -> Head:
        """Builds the head, an ``nn.Module``, with fresh weights.

        Raises:
            ValueError: if the base cannot read codes of that layout.
        """
        ...

    def predict(
        self,
        base: Any,
        noisy: Float[Tensor, "batch channels height width"],
        timesteps: Float[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch channels height width"]:
        """Returns what the family's scheduler expects of the base: noise, velocity, or velocity of the flow.

        Args:
            base: what ``base_class`` builds, maybe with adapters inside it.
            noisy: latents as the scheduler scales them, in the type of the base.
            timesteps: those of the scheduler, from 0 to 1000, where there is nothing but noise.
            condition: what the head returned, in the type of the base.
        """
        ...
