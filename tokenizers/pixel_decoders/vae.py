"""From code features to latents, which the decoder of a continuous auto-encoder paints."""

from dataclasses import dataclass, replace

from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.autoencoder import AutoencoderConfig, LatentPainter, downsampling
from rebus.tokenizers.patch_transform import plane_basis
from rebus.tokenizers.pixel_decoders.cell_reader import CellReader
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.tokens import Grid


@dataclass(frozen=True, kw_only=True)
class VaePixelDecoderConfig:
    """An auto-encoder's decoder, after a transformer if there is one."""

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The auto-encoder."""
    frozen: bool = True
    """Whether its weights stay as they are."""
    dim: int | None = None
    """Width of the transformer; by default the number of latent values of a cell."""
    depth: int = 0
    """Transformer blocks; codes that lie on no grid need one."""
    num_heads: int = 4
    """Attention heads."""

    def build(self, canvas: Canvas) -> "VaePixelDecoder":
        """Builds the decoder for features; the grids may be any.

        Raises:
            ValueError: if the auto-encoder cannot be read, or the canvas's patch is no multiple of its downsampling.
        """
        return VaePixelDecoder(canvas, self)


class VaePixelDecoder(nn.Module):
    """Turns the features of each cell into a square of latents, the inverse of `VaeLatentsEncoder`, and paints these.

    Source: Wang et al., "Bridging Continuous and Discrete Tokens" (TokenBridge), https://arxiv.org/abs/2503.16430,
    sec. 3 (no transformer); Duggal et al., "Single-pass Adaptive Image Tokenization" (KARL),
    https://arxiv.org/abs/2507.07995, sec. 3 (with one).
    Differs: features are the cosine transform of a square, low frequencies first.
    """

    planes: Tensor

    def __init__(self, canvas: Canvas, config: VaePixelDecoderConfig) -> None:
        super().__init__()
        vae, kept = config.autoencoder.build()
        self.config = replace(config, autoencoder=kept)
        if canvas.patch_px % downsampling(vae):
            raise ValueError(
                f"pixel decoder must have a downsampling that divides patches of {canvas.patch_px} px, "
                f"got {downsampling(vae)}"
            )
        side = canvas.patch_px // downsampling(vae)
        num_values = side**2 * vae.config["latent_channels"]
        dim = config.dim or num_values
        self.reader = CellReader(canvas, dim, config.depth, config.num_heads)
        self.to_latents = nn.Linear(dim, num_values)
        nn.init.eye_(self.to_latents.weight)
        nn.init.zeros_(self.to_latents.bias)
        self.register_buffer("planes", plane_basis(side) * side, persistent=False)
        self.painter = LatentPainter(vae).requires_grad_(not config.frozen)

    def forward(
        self, features: Float[Tensor, "batch features dim"], mask: Bool[Tensor, "batch features"], grid: Grid
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns pictures of about [0, 1]; see `contract.PixelDecoder`."""
        values = self.to_latents(self.reader(features, mask, grid))
        values = rearrange(values, "b n (k c) -> b n k c", k=len(self.planes))
        patches = einsum(values, self.planes, "b n k c, k p q -> b n c p q")
        latents = rearrange(patches, "b (h w) c p q -> b c (h p) (w q)", h=grid[0])
        return self.painter(latents).float()
