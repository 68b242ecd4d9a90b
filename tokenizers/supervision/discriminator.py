"""A network that tells true patches from rebuilt ones.

Source: Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks" (PatchGAN),
https://arxiv.org/abs/1611.07004, sec. 3.2 and appendix 6.1.2, as in Sun et al., "LlamaGen",
https://arxiv.org/abs/2406.06525, sec. 2.
Differs: normalized by groups of channels within a picture instead of over the batch, so that what one picture scores
depends on no other, and in no way on the number of processes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

NUM_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Convolutions that score overlapping patches: large where they look true."""

    def __init__(self, dim: int, depth: int) -> None:
        """Builds ``depth`` convolutions that halve the picture, the first to ``dim`` channels, and two that do not."""
        super().__init__()
        if dim < 1 or dim % NUM_GROUPS:
            raise ValueError(f"supervision.adversarial.dim must be a multiple of {NUM_GROUPS}, got {dim}")
        widths = [dim * min(2**level, 8) for level in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, dim, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level, width in enumerate(widths[1:], start=1):
            stride = 2 if level < depth else 1
            layers += [
                nn.Conv2d(widths[level - 1], width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(NUM_GROUPS, width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch rows columns"]:
        """Returns the scores of the patches of pictures in [0, 1], in float32."""
        return self.layers(images * 2 - 1)[:, 0].float()


def hinge(
    true_scores: Float[Tensor, "batch rows columns"], rebuilt_scores: Float[Tensor, "batch rows columns"]
) -> Float[Tensor, ""]:
    """Returns how far true patches score below 1, and rebuilt ones above -1.

    Source: Lim and Ye, "Geometric GAN", https://arxiv.org/abs/1705.02894, sec. 3.
    """
    return (torch.relu(1 - true_scores).mean() + torch.relu(1 + rebuilt_scores).mean()) / 2
