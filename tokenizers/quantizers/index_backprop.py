"""Index backpropagation quantization: every code learns from every feature, through a softmax over all codes.

Source: Shi et al., "Scalable Image Tokenization with Index Backpropagation Quantization",
https://arxiv.org/abs/2412.02692, sec. 3.2. With codes of length 1 and skipped pictures: Geng et al., "X-Omni:
Reinforcement Learning Makes Discrete Autoregressive Image Generative Models Great Again",
https://arxiv.org/abs/2507.22058, whose released tokenizer it is.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.code_softmax import code_entropies, index_gradient
from rebus.tokenizers.quantizers.contract import Quantized, usage_stats
from rebus.tokenizers.quantizers.known_positions import known_positions
from rebus.tokenizers.quantizers.nearest import best_products
from rebus.tokenizers.quantizers.neighbours import replace_codes


@dataclass(frozen=True, kw_only=True)
class IndexBackpropConfig:
    """A code book of which all codes get a gradient from all features."""

    codebook_size: int = 16384
    """Number of codes."""
    dim: int = 256
    """Width of a code; features are projected to it."""
    codebook: float = 0.25
    """Weight of the term that pulls codes to their features, the published beta; the other terms have the weight 1."""
    normalized: bool = False
    """Whether features and codes are scaled to length 1."""
    temperature: float = 1.0
    """Of the softmax over products of features and codes."""
    skipped: float = 0.0
    """Share of pictures that training leaves as they are, for a decoder that is to know features, too."""
    entropy: float = 0.0
    """Weight of a term for features that are sure of their code and codes that are all used."""
    entropy_temperature: float = 0.01
    """Squared distance over which a feature is unsure of its code in that term."""
    neighbours: int = 0
    """Wrong codes for a decoder to learn from are drawn among so many nearest codes of the right one; 0: among all."""

    def __post_init__(self) -> None:
        if not 0 <= self.skipped <= 1:
            raise ValueError(f"skipped must be in [0, 1], got {self.skipped}")
        if not 0 <= self.neighbours < self.codebook_size:
            raise ValueError(f"neighbours must be in [0, codebook_size = {self.codebook_size}), got {self.neighbours}")

    def build(self) -> "IndexBackprop":
        """Builds the quantizer."""
        return IndexBackprop(self)


class IndexBackprop(nn.Module):
    """Replaces each feature by the code with which it has the largest product.

    Differs: nothing of features x codes is kept, and the softmax is made in the backward pass only. With codes of
    length 1 the published code of X-Omni looks codes up as they are learned, but scales them to length 1 to find and to
    encode; here they have length 1 throughout. Its softmax of squared distances over 2 is that of products over 1.
    """

    def __init__(self, config: IndexBackpropConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_sizes = (config.codebook_size,)
        vectors = torch.randn(config.codebook_size, config.dim, generator=torch.Generator().manual_seed(0))
        self.codes = nn.Embedding(config.codebook_size, config.dim, _weight=self._scaled(vectors))

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "batch positions"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Quantized:
        """Quantizes features; see `Quantizer`.

        Args:
            features: of each position.
            mask: which of them count.
            generator: says which pictures training leaves as they are; torch's own by default.
        """
        known = known_positions(features, mask, shared=self.training)
        with torch.autocast(features.device.type, enabled=False):
            features = self._scaled(features.float())
            points, vectors = features.flatten(0, 1), self.vectors()
            ids = best_products(points, vectors).view(features.shape[:-1])
            codes = self.lookup(ids[..., None])
            quantized = codes + index_gradient(points, vectors, self.config.temperature).view_as(features)
            losses = {
                "index": known.mean_square(features, quantized),
                "commitment": known.mean_square(features, codes.detach()),
                "codebook": self.config.codebook * known.mean_square(features.detach(), codes),
            }
            if self.config.entropy and self.training:
                sure, even = code_entropies(points, vectors, known.weights.flatten(), self.config.entropy_temperature)
                losses["entropy"] = self.config.entropy * (sure - even)
        if self.config.skipped and self.training:
            is_skipped = torch.rand(len(features), 1, 1, generator=generator) < self.config.skipped
            quantized = torch.where(is_skipped.to(features.device), features, quantized)
        return Quantized(quantized, ids[..., None], losses, usage_stats(ids, self.codebook_sizes[0], mask))

    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the vectors that codes stand for."""
        return self._scaled(self.codes(ids[..., 0]).float())

    def vectors(self) -> Float[Tensor, "codes dim"]:
        """Returns the code book."""
        return self._scaled(self.codes.weight.float())

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one, or by one of its neighbours."""
        return replace_codes(ids, self.vectors(), rate, self.config.neighbours, generator)

    def _scaled(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.normalize(vectors, dim=-1) if self.config.normalized else vectors
