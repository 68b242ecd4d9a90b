"""The latents of a frozen continuous auto-encoder as features, with a vision transformer over them or without."""

from dataclasses import dataclass, replace

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.autoencoder import AutoencoderConfig, LatentReader, downsampling
from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.encoders.vit import whole_patches
from rebus.tokenizers.patch_transform import plane_basis
from rebus.tokenizers.rotary import check_head, grid_rotation
from rebus.tokenizers.tokens import Grid
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class VaeLatentsEncoderConfig:
    """Latents in square patches, and a transformer over them."""

    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The auto-encoder; its weights never change."""
    patch: int = 1
    """Latents of a side that a feature stands for."""
    dim: int | None = None
    """Width of the features; by default the number of values of a patch, as they are."""
    depth: int = 0
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads."""

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise ValueError(f"patch must be at least 1, got {self.patch}")

    def build(self, sizes_px: tuple[Grid, ...]) -> "VaeLatentsEncoder":
        """Builds the encoder; it has the same weights whatever the sizes are.

        Raises:
            ValueError: if the auto-encoder cannot be read, a size is no multiple of what a feature stands for, or the
                width is less than a patch has values.
        """
        encoder = VaeLatentsEncoder(self)
        for size_px in sizes_px:
            encoder.grids(size_px)
        return encoder


class VaeLatentsEncoder(nn.Module):
    """Encodes pictures as patches of latents: the mean of what the auto-encoder says, so the same for the same picture.

    Source: Bachmann et al., "FlexTok", https://arxiv.org/abs/2502.13967, sec. 3 (patches of 2 x 2 latents, then a
    transformer).
    Differs: a patch is given as its cosine transform, low frequencies first: its first values are its mean latents, and
    tell most of it.
    """

    planes: Tensor

    def __init__(self, config: VaeLatentsEncoderConfig) -> None:
        super().__init__()
        vae, kept = config.autoencoder.build()
        self.config = replace(config, autoencoder=kept)
        self.latents = LatentReader(vae)
        self.patch_px = config.patch * downsampling(vae)
        num_values = config.patch**2 * vae.config["latent_channels"]
        self.dim = config.dim or num_values
        if self.dim < num_values:
            raise ValueError(f"dim must be at least {num_values} (the values of a patch), got {self.dim}")
        self.register_buffer("planes", plane_basis(config.patch) / config.patch, persistent=False)
        self.embed = None
        if config.dim:
            self.embed = nn.Linear(num_values, self.dim)
            nn.init.eye_(self.embed.weight)
            nn.init.zeros_(self.embed.bias)
        self.transformer = None
        if config.depth:
            check_head(self.dim, config.num_heads)
            self.transformer = Transformer(self.dim, config.depth, config.num_heads, has_norm=False)

    def grids(self, size_px: Grid) -> tuple[Grid, ...]:
        """Returns the one grid; see `Encoder`."""
        return (whole_patches(size_px, self.patch_px),)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Patches:
        """Returns the features of pictures with values in [0, 1]."""
        (grid,) = self.grids((images.shape[-2], images.shape[-1]))
        patches = rearrange(
            self.latents(images), "b c (h p) (w q) -> b (h w) c p q", p=self.config.patch, q=self.config.patch
        )
        features = rearrange(einsum(patches, self.planes, "b n c p q, k p q -> b n k c"), "b n k c -> b n (k c)")
        if self.embed is not None:
            features = self.embed(features)
        if self.transformer is not None:
            rotation = grid_rotation(*grid, self.dim // self.config.num_heads, images.device)
            features = self.transformer(features, rotation=rotation)
        return Patches(features, (grid,))
