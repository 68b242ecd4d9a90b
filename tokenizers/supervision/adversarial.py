"""Rebuilt pictures shall pass for true ones before a discriminator that learns beside the tokenizer.

Source: Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (VQGAN),
https://arxiv.org/abs/2012.09841, eqs. 5-7; Tseng et al., "Regularizing Generative Adversarial Networks under Limited
Data" (LeCAM), https://arxiv.org/abs/2104.03310, sec. 3.
Differs: tokenizer and discriminator move in the same step, by one optimizer and one backward pass. The tokenizer's term
goes through a discriminator whose weights are held, the discriminator's term looks at pictures that are held. Each of
LeCAM's distances counts on one side only, as in its code.
"""

from dataclasses import dataclass

import torch
import torch.distributed as distributed
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from rebus.tokenizers.supervision.contract import Taught, Term
from rebus.tokenizers.supervision.discriminator import PatchDiscriminator, hinge


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """The discriminator, when it starts, and how much it says."""

    weight: float = 0.5
    """Weight of the tokenizer's term; if adaptive, the share of what rebuilds the picture."""
    start: int = 20_000
    """First step in which the discriminator runs."""
    dim: int = 64
    """Channels of its first layer."""
    depth: int = 3
    """Layers that halve the picture."""
    adaptive: bool = False
    """Whether the weight is multiplied so that both terms pull the decoder's last layer alike."""
    last_layer: str = "pixel_decoder.to_pixels"
    """That layer of the tokenizer."""
    lecam: float = 0.0
    """Weight that keeps the scores of true and rebuilt patches from drifting apart, such as 0.001."""
    lecam_decay: float = 0.999
    """Share of the moving averages of scores that a step keeps."""

    def build(self) -> "Adversarial":
        """Builds the term with a fresh discriminator."""
        return Adversarial(self)


class Adversarial(Term):
    """What a discriminator thinks of rebuilt pictures, and what it still has to learn."""

    compiles_whole = False
    mean_true: Tensor
    mean_rebuilt: Tensor

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = PatchDiscriminator(config.dim, config.depth)
        self.last_layer = config.last_layer if config.adaptive else None
        self.register_buffer("mean_true", torch.zeros(()))
        self.register_buffer("mean_rebuilt", torch.zeros(()))

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns ``adversarial``, ``discriminator`` and, if it weighs, ``lecam``; all zero before the start."""
        names = ["adversarial", "discriminator", *(["lecam"] if self.config.lecam else [])]
        if taught.step < self.config.start:
            return {name: taught.rebuilt.new_zeros(()) for name in names}
        true_scores, rebuilt_scores = self.discriminator(torch.cat([taught.images, taught.rebuilt.detach()])).chunk(2)
        losses = [self._fooling(taught), hinge(true_scores, rebuilt_scores)]
        if self.config.lecam:
            losses.append(self.config.lecam * lecam(true_scores, rebuilt_scores, self.mean_true, self.mean_rebuilt))
            if self.training:
                self._follow(true_scores, rebuilt_scores)
        return dict(zip(names, losses, strict=True))

    def _fooling(self, taught: Taught) -> Tensor:
        held = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        loss = -functional_call(self.discriminator, held, (taught.rebuilt,)).mean()
        weight = self.config.weight
        if self.config.adaptive:
            assert taught.last_weight is not None
            weight = weight * balance(torch.stack([*taught.earlier.values()]).sum(), loss, taught.last_weight)
        return weight * loss

    @torch.no_grad()
    def _follow(self, true_scores: Tensor, rebuilt_scores: Tensor) -> None:
        means = torch.stack([true_scores.mean(), rebuilt_scores.mean()])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(means)
            means /= distributed.get_world_size()
        for average, mean in zip((self.mean_true, self.mean_rebuilt), means, strict=True):
            average.mul_(self.config.lecam_decay).add_(mean, alpha=1 - self.config.lecam_decay)


def balance(
    rebuilding: Float[Tensor, ""], fooling: Float[Tensor, ""], last_weight: Float[Tensor, "..."]
) -> Float[Tensor, ""]:
    """Returns how much longer the gradient of one loss is than that of the other, at the decoder's last layer.

    Of ``rebuilding`` only what depends on that layer counts.

    Source: Esser et al., https://arxiv.org/abs/2012.09841, eq. 7, and its code for the bounds.

    Raises:
        ValueError: if the layer does not learn.
    """
    if not last_weight.requires_grad:
        raise ValueError("supervision.adversarial.adaptive must be false where the last layer is frozen, got true")
    norms = [torch.autograd.grad(loss, last_weight, retain_graph=True)[0].norm() for loss in (rebuilding, fooling)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def lecam(
    true_scores: Float[Tensor, "batch rows columns"],
    rebuilt_scores: Float[Tensor, "batch rows columns"],
    mean_true: Float[Tensor, ""],
    mean_rebuilt: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Returns how far true patches score above the usual rebuilt one, and rebuilt ones below the usual true one."""
    above, below = torch.relu(true_scores - mean_rebuilt), torch.relu(mean_true - rebuilt_scores)
    return above.square().mean() + below.square().mean()
