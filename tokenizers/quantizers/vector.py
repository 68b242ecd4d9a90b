"""Vector quantization: each feature is replaced by the nearest vector of a code book that follows the features.

Source: van den Oord et al., "Neural Discrete Representation Learning", https://arxiv.org/abs/1711.00937, sec. 3.1
and appendix A.1 (moving averages).
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rebus.tokenizers.quantizers.code_softmax import code_entropies
from rebus.tokenizers.quantizers.contract import Quantized, usage_stats
from rebus.tokenizers.quantizers.dead_codes import nearest_features, worst_served
from rebus.tokenizers.quantizers.gradient_estimators import GradientEstimator, check_estimator, pass_gradients
from rebus.tokenizers.quantizers.known_positions import KnownPositions, known_positions
from rebus.tokenizers.quantizers.nearest import nearest_codes
from rebus.tokenizers.quantizers.neighbours import replace_codes
from rebus.tokenizers.quantizers.processes import add_over_processes
from rebus.tokenizers.uncompiled import uncompiled

Update = Literal["averages", "gradient"]
DeadCodes = Literal["restart", "cluster"]
_LEAST_COUNT = 1e-6
"""Moving count below which an average of features is not worth the name."""


@dataclass(frozen=True, kw_only=True)
class VectorConfig:
    """A code book kept by moving averages or by gradients."""

    codebook_size: int = 2048
    """Number of codes."""
    dim: int = 32
    """Width of a code; features are projected to it."""
    decay: float = 0.99
    """Share of the moving averages that a step keeps; those of counts are kept with gradients, too."""
    commitment: float = 0.25
    """Weight of the term that pulls features to their code."""
    restart_below: float = 0.01
    """A code with a smaller moving count of features per step is moved to a feature that the code book serves badly; 0
    moves none."""
    normalized: bool = False
    """Whether features and codes are scaled to length 1, so that the nearest code is that of the largest cosine."""
    update: Update = "averages"
    """Whether codes are the moving averages of their features, or learn by a term of weight 1 that pulls at them."""
    estimator: GradientEstimator = "straight_through"
    """How the gradient passes from a code to its feature."""
    dead_codes: DeadCodes = "restart"
    """``restart``: see ``restart_below``. ``cluster``: each code moves to its nearest feature, the less it is used the
    more so (CVQ)."""
    entropy: float = 0.0
    """Weight of a term for features that are sure of their code and codes that are all used."""
    entropy_temperature: float = 0.01
    """Squared distance over which a feature is unsure of its code in that term."""
    neighbours: int = 0
    """Wrong codes for a decoder to learn from are drawn among so many nearest codes of the right one; 0: among all."""

    def __post_init__(self) -> None:
        check_estimator(self.estimator, self.dim)
        if not 0 <= self.neighbours < self.codebook_size:
            raise ValueError(f"neighbours must be in [0, codebook_size = {self.codebook_size}), got {self.neighbours}")

    def build(self) -> "VectorQuantizer":
        """Builds the quantizer."""
        return VectorQuantizer(self)


class VectorQuantizer(nn.Module):
    """Replaces each feature by the nearest code.

    All codes count as dead at first, so the first batches of a training place them on features of real pictures. The
    code book and its moving averages are float32 buffers: bf16 would never move an average of decay 0.99. Several
    processes keep one code book: all learn from the features of all.

    Sources: CVQ: Zheng and Vedaldi, "Online Clustered Codebook", https://arxiv.org/abs/2307.15139, sec. 3.3, with its
    anchors "closest". Normalized codes and the entropy term: Yu et al., "Vector-quantized Image Modeling with Improved
    VQGAN", https://arxiv.org/abs/2110.04627, sec. 3.2; Sun et al., "Autoregressive Model Beats Diffusion: Llama for
    Scalable Image Generation", https://arxiv.org/abs/2406.06525, sec. 3.1.
    Differs: a dead code moves to the features with the largest error rather than to random ones, so that most do not
    pile up on the plain ground that fills most of a picture. There is no Laplace smoothing: it changes the average of a
    code by more than rounding only where its count is about 0, and such codes are moved. The commitment has the weight
    of the paper's beta and the codebook term weight 1, which much published code has the other way round.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    moves: Tensor

    def __init__(self, config: VectorConfig) -> None:
        super().__init__()
        self.config = config
        self.dim = config.dim
        self.codebook_sizes = (config.codebook_size,)
        vectors = torch.randn(config.codebook_size, config.dim, generator=torch.Generator().manual_seed(0))
        vectors = F.normalize(vectors, dim=-1) if config.normalized else vectors
        self.register_buffer("counts", torch.zeros(config.codebook_size))
        self.codes = None
        if config.update == "gradient":
            self.codes = nn.Embedding(config.codebook_size, config.dim, _weight=vectors)
            # Beside the learned part, for an optimizer that shards or rounds weights puts its own copy over them.
            self.register_buffer("moves", torch.zeros(config.codebook_size, config.dim))
        else:
            self.register_buffer("codebook", vectors)
            self.register_buffer("sums", torch.zeros(config.codebook_size, config.dim))

    def forward(
        self, features: Float[Tensor, "batch positions dim"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Quantizes features and, in training, moves the code book; see `Quantizer`."""
        known = known_positions(features, mask, shared=self.training)
        with torch.autocast(features.device.type, enabled=False):
            features = self._scaled(features.float())
            ids = nearest_codes(features.flatten(0, 1), self.vectors()).view(features.shape[:-1])
            codes = self.lookup(ids[..., None])
            losses = self._losses(features, codes, known)
            quantized = pass_gradients(features, codes, self.config.estimator)
            if self.training:
                self._follow(features.detach(), codes.detach(), ids, known.weights)
        return Quantized(quantized, ids[..., None], losses, usage_stats(ids, self.codebook_sizes[0], mask))

    # A compiled pass would keep the code book for its backward pass, before which it is moved in place.
    @uncompiled
    def lookup(self, ids: Int[Tensor, "batch positions streams"]) -> Float[Tensor, "batch positions dim"]:
        """Returns the vectors that codes stand for."""
        ids = ids[..., 0]
        return self.codebook[ids] if self.codes is None else self._scaled(self.codes(ids).float() + self.moves[ids])

    @uncompiled
    def vectors(self) -> Float[Tensor, "codes dim"]:
        """Returns the code book."""
        return self.codebook if self.codes is None else self._scaled(self.codes.weight.float() + self.moves)

    def perturb(
        self, ids: Int[Tensor, "batch positions streams"], rate: float, generator: torch.Generator
    ) -> Int[Tensor, "batch positions streams"]:
        """Replaces each code with probability ``rate`` by a random one, or by one of its neighbours."""
        return replace_codes(ids, self.vectors(), rate, self.config.neighbours, generator)

    def _scaled(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return F.normalize(vectors, dim=-1) if self.config.normalized else vectors

    def _losses(
        self, features: Float[Tensor, "batch positions dim"], codes: Tensor, known: KnownPositions
    ) -> dict[str, Tensor]:
        losses = {"commitment": self.config.commitment * known.mean_square(features, codes.detach())}
        if self.codes is not None:
            losses["codebook"] = known.mean_square(features.detach(), codes)
        if self.config.entropy and self.training:
            vectors = self.vectors().clone()  # the averages move in place before the backward pass
            sure, even = code_entropies(
                features.flatten(0, 1), vectors, known.weights.flatten(), self.config.entropy_temperature
            )
            losses["entropy"] = self.config.entropy * (sure - even)
        return losses

    @uncompiled  # how many codes are dead decides what is done
    @torch.no_grad()
    def _follow(
        self,
        features: Float[Tensor, "batch positions dim"],
        codes: Float[Tensor, "batch positions dim"],
        ids: Int[Tensor, "batch positions"],
        weights: Float[Tensor, "batch positions"],
    ) -> None:
        errors = (features - codes).square().mean(dim=-1).flatten()
        features, ids, weights = features.flatten(0, 1), ids.flatten(), weights.flatten()
        counts = torch.zeros_like(self.counts).index_add_(0, ids, weights)
        add_over_processes(counts)
        if not counts.any():
            return
        self.counts.mul_(self.config.decay).add_(counts, alpha=1 - self.config.decay)
        if self.codes is None:
            self._average(features * weights[:, None], ids)
        if self.config.dead_codes == "cluster":
            use = self.counts / counts.sum()
            share = torch.exp(-10 * len(use) * use / (1 - self.config.decay) - 1e-3)
            self._move(share, nearest_features(self.vectors(), features, weights > 0))
            return
        dead = self.counts < self.config.restart_below
        if self.codes is not None:
            dead &= counts == 0  # the others have just been given a gradient
        if number := int(dead.sum()):
            targets = torch.zeros_like(self.vectors())
            targets[dead] = worst_served(features, errors, weights > 0, number)
            # Twice the limit: at a decay of 0.99 a moved code has 70 steps to gather a feature of its own.
            self.counts[dead] = 2 * self.config.restart_below
            self._move(dead.float(), targets)

    def _average(self, features: Float[Tensor, "vectors dim"], ids: Int[Tensor, " vectors"]) -> None:
        sums = torch.zeros_like(self.sums).index_add_(0, ids, features)
        add_over_processes(sums)
        self.sums.mul_(self.config.decay).add_(sums, alpha=1 - self.config.decay)
        counts = self.counts[:, None]
        self.codebook.copy_(torch.where(counts > _LEAST_COUNT, self._scaled(self.sums / counts), self.codebook))

    def _move(self, share: Float[Tensor, " codes"], targets: Float[Tensor, "codes dim"]) -> None:
        """Moves each code by a share of the way to its target."""
        vectors, moves = self._scaled(torch.lerp(self.vectors(), targets, share[:, None])), share[:, None] > 0
        if self.codes is not None:
            self.moves.copy_(torch.where(moves, vectors - self.codes.weight, self.moves))
            return
        self.codebook.copy_(torch.where(moves, vectors, self.codebook))
        self.sums.copy_(torch.where(moves, vectors * self.counts[:, None], self.sums))
