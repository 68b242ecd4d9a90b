"""Binary quantization: each channel becomes its sign, so that a code is a number in bits and no code book is learned.

Sources: lookup-free quantization, Yu et al., "Language Model Beats Diffusion: Tokenizer is Key to Visual Generation",
https://arxiv.org/abs/2310.05737, sec. 3.1; in groups, Zhuang et al., "WeTok", https://arxiv.org/abs/2508.05599,
sec. 3; binary spherical quantization, Zhao et al., "Image and Video Tokenization with Binary Spherical
Quantization", https://arxiv.org/abs/2406.07548, sec. 3.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.bit_entropy import batch_entropy, sample_entropy
from rebus.tokenizers.quantizers.bit_ids import MOST_BITS, BitOrder, bits_of_ids, ids_of_bits
from rebus.tokenizers.quantizers.contract import (
    Quantized,
    masked_mean,
    replace_by_random_codes,
    usage_stats_of_streams,
)
from rebus.tokenizers.quantizers.processes import mean_over_processes

LARGEST_TABLE_BITS = 24
"""Bits over whose codes a distribution is counted at most: 64 MiB of float32."""


@dataclass(frozen=True, kw_only=True)
class LookupFreeConfig:
    """Signs of the features as they are (LFQ); the weights are those of Open-MAGVIT2."""

    bits: int = 18
    """Bits of a stream: its code book has 2^bits codes."""
    groups: int = 1
    """Streams; a feature has groups x bits channels, the bits of a stream side by side."""
    bit_order: BitOrder = "least_significant_first"
    """Which bit of a code the first channel of its stream is."""
    commitment: float = 0.25
    """Weight of the term that pulls features to their code."""
    entropy: float = 0.1
    """Weight of both entropy terms: each feature shall be sure of its code, all together shall use all codes."""
    diversity: float = 1.0
    """Weight of the second of them, relative to the first."""
    inverse_temperature: float = 100.0
    """How sharp the distribution over codes is of which the entropy is taken."""
    entropy_bits: int = 18
    """Bits of a stream whose codes are counted together in the second term; more are shared out in sub-groups."""

    def build(self) -> "BinaryQuantizer":
        """Builds the quantizer."""
        return BinaryQuantizer(self, is_spherical=False)


@dataclass(frozen=True, kw_only=True)
class BinarySphericalConfig:
    """Signs of features on the unit sphere (BSQ); the weights are the published ones."""

    bits: int = 18
    """Bits of a stream: its code book has 2^bits codes."""
    groups: int = 1
    """Streams; a feature has groups x bits channels, the bits of a stream side by side."""
    bit_order: BitOrder = "most_significant_first"
    """Which bit of a code the first channel of its stream is."""
    commitment: float = 0.0
    """Weight of the term that pulls features to their code."""
    entropy: float = 0.1
    """Weight of both entropy terms: each feature shall be sure of its code, all together shall use all codes."""
    diversity: float = 1.0
    """Weight of the second of them, relative to the first."""
    inverse_temperature: float = 1.0
    """How sharp the distribution over codes is of which the entropy is taken."""
    entropy_bits: int = 9
    """Bits of a stream whose codes are counted together in the second term; more are shared out in sub-groups."""

    def build(self) -> "BinaryQuantizer":
        """Builds the quantizer."""
        return BinaryQuantizer(self, is_spherical=True)


class BinaryQuantizer(nn.Module):
    """Replaces each channel by its sign, or by its sign over the root of the number of channels on the sphere.

    Features count as 0 bits where they are 0. The entropy terms are taken in training alone: a picture that is encoded
    is no sample of the data.

    Differs: the entropy of a batch is exact up to ``entropy_bits`` bits and beyond is the sum over sub-groups of so
    many, as in BSQ, where WeTok's code counts the codes of all its groups as one; both terms are means over streams,
    so that their weight does not depend on ``groups``; both are taken over all processes, where Open-MAGVIT2, WeTok and
    BSQ know their own batch only. The weights do not rise and fall in training.

    Raises:
        ValueError: if the bits of a stream or of a sub-group are too few, too many or do not divide.
    """

    def __init__(self, config: LookupFreeConfig | BinarySphericalConfig, is_spherical: bool) -> None:
        super().__init__()
        if not 1 <= config.bits <= MOST_BITS:
            raise ValueError(f"bits must be in 1..{MOST_BITS} for one stream, got {config.bits}; raise groups instead")
        if config.groups < 1:
            raise ValueError(f"groups must be 1 or more, got {config.groups}")
        self.config = config
        self.is_spherical = is_spherical
        self.dim = config.groups * config.bits
        self.codebook_sizes = (2**config.bits,) * config.groups
        self.magnitude = self.dim**-0.5 if is_spherical else 1.0
        self.table_bits = min(config.bits, config.entropy_bits)
        if not 1 <= self.table_bits <= LARGEST_TABLE_BITS or config.bits % self.table_bits:
            limits = f"1..{LARGEST_TABLE_BITS} and divide the {config.bits} bits of a stream"
            raise ValueError(f"entropy_bits must be in {limits}, got {config.entropy_bits}")

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features; see `Quantizer`."""
        with torch.autocast(features.device.type, enabled=False):
            points = features.float()
            if self.is_spherical:
                points = F.normalize(points, dim=-1)
            signs = points > 0
            codes = self._codes(signs)
            losses, stats = self._losses(points, codes, mask)
        groups = rearrange(signs, "batch positions (groups bits) -> batch positions groups bits", bits=self.config.bits)
        ids = ids_of_bits(groups, self.config.bit_order)
        # The codes to the last digit, with the gradient of the points.
        quantized = codes + (points - points.detach())
        return Quantized(quantized, ids, losses, usage_stats_of_streams(ids, self.codebook_sizes, mask) | stats)

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the signs, or the point on the sphere, that codes stand for."""
        bits = bits_of_ids(ids, self.config.bits, self.config.bit_order)
        return self._codes(rearrange(bits, "batch positions groups bits -> batch positions (groups bits)"))

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one."""
        return replace_by_random_codes(ids, self.codebook_sizes, rate, generator)

    def _codes(self, signs: Bool[Tensor, "batch positions dim"]) -> Float[Tensor, "batch positions dim"]:
        return (2 * signs.float() - 1) * self.magnitude

    def _losses(
        self, points: Tensor, codes: Tensor, mask: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        losses, stats = {}, {}
        if self.config.commitment:
            errors = (points - codes).square().mean(dim=-1)
            losses["commitment"] = self.config.commitment * masked_mean(errors, mask)
        if self.config.entropy and self.training:
            sure, even = self._entropies(points, mask)
            losses["entropy"] = self.config.entropy * (sure - self.config.diversity * even)
            stats = {"sample_entropy": sure.detach(), "batch_entropy": even.detach()}
        return losses, stats

    def _entropies(self, points: Tensor, mask: Tensor | None) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns the mean entropy of a feature and the entropy of their mean, in nats a stream."""
        # softmax(2 x point . code): a bit more or less changes the product by twice the magnitude of a channel.
        logits = 4 * self.magnitude * self.config.inverse_temperature * points.flatten(0, 1)
        weights = torch.ones_like(logits[:, 0]) if mask is None else mask.flatten().float()
        each = mean_over_processes((sample_entropy(logits) * weights).sum(), weights.sum())
        tables = rearrange(logits, "vectors (groups bits) -> vectors groups bits", bits=self.table_bits)
        return each / self.config.groups, batch_entropy(tables, weights).sum() / self.config.groups
