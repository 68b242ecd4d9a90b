"""What predicts the codes of one position of a picture: all streams of it after one pass of the language model.

Each head is a distribution over vectors of codes: ``loss`` scores with it and ``draw`` draws from it. With guidance the
logits of each stream are those of the branches, each times its weight, added up, as ``engine.py`` does it for ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.model.cross_entropy import linear_cross_entropy
from rebus.model.sampling import Sampling
from rebus.tokenizers.tokens import CodeLayout
from rebus.tokenizers.transformer import Transformer


class CodeHead(Protocol):
    """Predicts the codes of a position from the hidden state before it."""

    def loss(
        self, hidden: Float[Tensor, "positions dim"], codes: Int[Tensor, "positions streams"]
    ) -> Float[Tensor, " positions"]:
        """Returns the negative log-likelihood of the codes of each position in nats, in float32."""
        ...

    def draw(
        self,
        hidden: Float[Tensor, "branches rows dim"],
        weights: Sequence[float],
        sampling: Sampling,
        uniforms: Float[Tensor, "rows streams"],
    ) -> Int[Tensor, "rows streams"]:
        """Returns codes for each row, drawn by a number in [0, 1) for each; -1 where logits are no numbers.

        Args:
            hidden: states of all guidance branches.
            weights: of the branches; those of weight 0 are not computed.
            sampling: how each code is drawn. A repetition penalty does not apply.
            uniforms: numbers to draw by.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ParallelHeadsConfig:
    """One softmax for each stream."""

    def build(self, dim: int, layout: CodeLayout) -> "ParallelHeads":
        """Builds the heads for hidden states of a width."""
        return ParallelHeads(dim, tuple(stream.size for stream in layout.streams))


class ParallelHeads(nn.Module):
    """One softmax for each stream: the streams of a position do not know of one another.

    Source: Bai et al., "Factorized Visual Tokenization and Generation", https://arxiv.org/abs/2411.16681 (FQGAN); Song
    et al., "DualToken", https://arxiv.org/abs/2503.14324.
    """

    def __init__(self, dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        self.to_logits = nn.Linear(dim, sum(sizes), bias=False)

    def loss(
        self, hidden: Float[Tensor, "positions dim"], codes: Int[Tensor, "positions streams"]
    ) -> Float[Tensor, " positions"]:
        """Returns the negative log-likelihood of the codes of each position; see `CodeHead`."""
        return _cross_entropy([hidden] * len(self.sizes), self.to_logits.weight.split(self.sizes), codes)

    def draw(
        self,
        hidden: Float[Tensor, "branches rows dim"],
        weights: Sequence[float],
        sampling: Sampling,
        uniforms: Float[Tensor, "rows streams"],
    ) -> Int[Tensor, "rows streams"]:
        """Returns codes for each row; see `CodeHead`."""
        hidden, factors = _used(hidden, weights)
        logits = self.to_logits(hidden).split(self.sizes, dim=-1)
        columns = zip(logits, uniforms.unbind(dim=1), strict=True)
        return torch.stack([_drawn(one, factors, sampling, uniform) for one, uniform in columns], dim=1)


@dataclass(frozen=True, kw_only=True)
class DepthTransformerConfig:
    """A small causal transformer over the streams of a position."""

    dim: int = 256
    """Its width."""
    num_layers: int = 2
    """Its blocks."""
    num_heads: int = 4
    """Its attention heads."""

    def build(self, dim: int, layout: CodeLayout) -> "DepthTransformer":
        """Builds the head for hidden states of a width."""
        sizes = tuple(stream.size for stream in layout.streams)
        return DepthTransformer(dim, sizes, self.dim, self.num_layers, self.num_heads)


class DepthTransformer(nn.Module):
    """A small causal transformer over the streams: each code is predicted from those before it at its position.

    Source: Lee et al., "Autoregressive Image Generation using Residual Quantization",
    https://arxiv.org/abs/2203.01941, sec. 3.2; for the channels of one feature Wang et al., "Bridging Continuous and
    Discrete Tokens for Autoregressive Visual Generation", https://arxiv.org/abs/2503.16430 (TokenBridge).
    Differs: every stream sees the hidden state and the embedding of the code before it, not the sum of all before it.
    """

    def __init__(self, dim: int, sizes: tuple[int, ...], depth_dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.sizes = sizes
        self.starts = tuple(accumulate(sizes[:-1], initial=0))
        self.from_hidden = nn.Linear(dim, depth_dim, bias=False)
        self.streams = nn.Embedding(len(sizes), depth_dim)
        self.codes = nn.Embedding(sum(sizes[:-1]) or 1, depth_dim)  # nothing follows a code of the last stream
        self.transformer = Transformer(depth_dim, num_layers, num_heads)
        self.to_logits = nn.Linear(depth_dim, sum(sizes), bias=False)

    def loss(
        self, hidden: Float[Tensor, "positions dim"], codes: Int[Tensor, "positions streams"]
    ) -> Float[Tensor, " positions"]:
        """Returns the negative log-likelihood of the codes of each position; see `CodeHead`."""
        states = self._states(hidden, codes[:, :-1])
        return _cross_entropy(states.unbind(dim=1), self.to_logits.weight.split(self.sizes), codes)

    def draw(
        self,
        hidden: Float[Tensor, "branches rows dim"],
        weights: Sequence[float],
        sampling: Sampling,
        uniforms: Float[Tensor, "rows streams"],
    ) -> Int[Tensor, "rows streams"]:
        """Returns codes for each row, which all branches read; see `CodeHead`."""
        hidden, factors = _used(hidden, weights)
        branches, flat = len(hidden), rearrange(hidden, "branches rows dim -> (branches rows) dim")
        codes = torch.zeros(len(uniforms), 0, dtype=torch.long, device=hidden.device)
        for stream, uniform in enumerate(uniforms.unbind(dim=1)):
            # A failed row goes on with some code: its first -1 is what tells of it.
            last = self._states(flat, codes.clamp_min(0).repeat(branches, 1))[:, -1]
            logits = rearrange(
                self._logits(last, stream), "(branches rows) codes -> branches rows codes", branches=branches
            )
            codes = torch.cat([codes, _drawn(logits, factors, sampling, uniform).unsqueeze(1)], dim=1)
        return codes

    def _states(
        self, hidden: Float[Tensor, "positions dim"], codes: Int[Tensor, "positions before"]
    ) -> Float[Tensor, "positions before+1 depth_dim"]:
        """Returns what predicts the first stream, and each that follows one of the codes."""
        number = codes.shape[1] + 1
        starts = torch.tensor(self.starts[: codes.shape[1]], dtype=torch.long, device=codes.device)
        before = F.pad(self.codes(codes + starts), (0, 0, 1, 0))
        features = self.from_hidden(hidden).unsqueeze(1) + self.streams.weight[:number] + before
        mask = torch.ones(1, number, number, dtype=torch.bool, device=codes.device).tril()
        return self.transformer(features, mask)

    def _logits(self, states: Float[Tensor, "positions depth_dim"], stream: int) -> Float[Tensor, "positions codes"]:
        start = self.starts[stream]
        return F.linear(states, self.to_logits.weight[start : start + self.sizes[stream]])


@dataclass(frozen=True, kw_only=True)
class BitHeadConfig:
    """Each code is as many independent bits as write its number."""

    def build(self, dim: int, layout: CodeLayout) -> "BitHead":
        """Builds the head for hidden states of a width.

        Raises:
            ValueError: if the size of a stream is no power of 2.
        """
        return BitHead(dim, tuple(stream.size for stream in layout.streams))


class BitHead(nn.Module):
    """A code of 2^n is n independent bits, so that n rows of weights predict what a softmax needs 2^n for.

    Codes are binary vectors then, as those of a quantizer by signs are; bit 0 is the lowest.

    Source: Wang et al., "Instella-T2I", https://arxiv.org/abs/2506.21022; groups of bits as streams: Zhuang et al.,
    "WeTok", https://arxiv.org/abs/2508.05599.
    Differs: a code is drawn from the distribution over all 2^n that its bits make, so that top-k, top-p and min-p mean
    what they mean elsewhere.

    Raises:
        ValueError: if the size of a stream is no power of 2.
    """

    def __init__(self, dim: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        if any(size & (size - 1) for size in sizes):
            raise ValueError(f"sizes of streams must be powers of 2 for a head of bits, got {sizes}")
        self.sizes = sizes
        self.num_bits = tuple(size.bit_length() - 1 for size in sizes)
        self.to_logits = nn.Linear(dim, sum(self.num_bits), bias=False)

    def loss(
        self, hidden: Float[Tensor, "positions dim"], codes: Int[Tensor, "positions streams"]
    ) -> Float[Tensor, " positions"]:
        """Returns the negative log-likelihood of the codes of each position; see `CodeHead`."""
        columns = zip(codes.unbind(dim=1), self.num_bits, strict=True)
        bits = torch.cat([_bits(column, number) for column, number in columns], dim=1)
        return F.binary_cross_entropy_with_logits(self.to_logits(hidden).float(), bits, reduction="none").sum(dim=1)

    def draw(
        self,
        hidden: Float[Tensor, "branches rows dim"],
        weights: Sequence[float],
        sampling: Sampling,
        uniforms: Float[Tensor, "rows streams"],
    ) -> Int[Tensor, "rows streams"]:
        """Returns codes for each row; see `CodeHead`."""
        hidden, factors = _used(hidden, weights)
        drawn = []
        parts = self.to_logits(hidden).float().split(self.num_bits, dim=-1)
        for part, size, uniform in zip(parts, self.sizes, uniforms.unbind(dim=1), strict=True):
            codes = _bits(torch.arange(size, device=hidden.device), part.shape[-1])
            drawn.append(_drawn(part @ codes.T, factors, sampling, uniform))
        return torch.stack(drawn, dim=1)


HeadConfig = ParallelHeadsConfig | DepthTransformerConfig | BitHeadConfig


def _bits(codes: Int[Tensor, " codes"], number: int) -> Float[Tensor, "codes bits"]:
    """Returns 1 and 0 for the bits of codes, the lowest first."""
    return ((codes.unsqueeze(1) >> torch.arange(number, device=codes.device)) & 1).float()


def _cross_entropy(
    states: Sequence[Tensor], weights: Sequence[Tensor], codes: Int[Tensor, "positions streams"]
) -> Float[Tensor, " positions"]:
    """Returns the negative log-likelihood of the codes of each position, from a state and a weight for each stream."""
    streams = zip(states, weights, codes.unbind(dim=1), strict=True)
    return torch.stack([linear_cross_entropy(*stream)[0] for stream in streams]).sum(dim=0)


def _used(
    hidden: Float[Tensor, "branches rows dim"], weights: Sequence[float]
) -> tuple[Float[Tensor, "used rows dim"], Float[Tensor, " used"]]:
    """Returns the branches whose weight is not 0, and their weights."""
    used = [branch for branch, weight in enumerate(weights) if weight]
    return hidden[used], torch.tensor([weights[branch] for branch in used], device=hidden.device)


def _drawn(
    logits: Float[Tensor, "branches rows codes"],
    factors: Float[Tensor, " branches"],
    sampling: Sampling,
    uniform: Float[Tensor, " rows"],
) -> Int[Tensor, " rows"]:
    """Returns a code for each row from the mixed logits of the branches; -1 where they are no numbers."""
    mixed = einsum(logits.float(), factors, "branches rows codes, branches -> rows codes")
    return sampling.choose(mixed, uniform.to(mixed)).where((mixed < float("inf")).all(dim=-1), -1)
