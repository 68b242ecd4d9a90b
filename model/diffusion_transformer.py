"""The transformer blocks of the diffusion decoder, modulated by the time.

Sources: Peebles and Xie, "Scalable Diffusion Models with Transformers", https://arxiv.org/abs/2212.09748, sec. 3.2
(adaLN-Zero); Chen et al., "PixArt-alpha", https://arxiv.org/abs/2310.00426, sec. 2.3 (attention to a context between
the two, not modulated, silent at first).
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.transformer import Attention


class TimeEmbedding(nn.Module):
    """Turns times in [0, 1] into features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        assert dim % 2 == 0
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, time: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Returns the features of float32 times; half precision would blur them into steps.

        Raises:
            ValueError: if the times are not float32.
        """
        if time.dtype != torch.float32:
            raise ValueError(f"time must be float32, got {time.dtype}")
        half = self.dim // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
        angles = 1000 * time[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class SpanEmbedding(nn.Module):
    """Turns the lengths of steps into features, all zero at first: a flow map starts as the decoder it is made from.

    Source: Frans et al., "One Step Diffusion via Shortcut Models", https://arxiv.org/abs/2410.12557, sec. 3 (a model
    that is told the length of its step).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = TimeEmbedding(dim)
        last = self.embed.mlp[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, span: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Returns the features of float32 lengths in [0, 1]."""
        return self.embed(span)


class Modulation(nn.Module):
    """Shifts, scales and gates from the time's features; all zero at first, so that a fresh block does nothing."""

    def __init__(self, dim: int, number: int) -> None:
        super().__init__()
        self.number = number
        self.project = nn.Linear(dim, number * dim)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, time_features: Float[Tensor, "batch dim"]) -> tuple[Float[Tensor, "batch 1 dim"], ...]:
        """Returns ``number`` tensors that broadcast over positions."""
        return self.project(F.silu(time_features))[:, None].chunk(self.number, dim=-1)


class SelfAttention(nn.Module):
    """Multi-head attention of a short sequence to itself."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        assert dim % num_heads == 0
        self.num_heads = num_heads
        self.query_key_value = xavier_linear(dim, 3 * dim)
        self.output = xavier_linear(dim, dim)

    def forward(self, features: Float[Tensor, "batch positions dim"]) -> Float[Tensor, "batch positions dim"]:
        """Returns what each position reads from all."""
        split = rearrange(self.query_key_value(features), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        queries, keys, values = split.unbind()
        # At 64 positions this is five times as fast, with its gradient, as the fused attention is on a processor.
        weights = (queries * queries.shape[-1] ** -0.5 @ keys.transpose(-1, -2)).softmax(dim=-1)
        return self.output(rearrange(weights.to(values.dtype) @ values, "b h n d -> b n (h d)"))


class ModulatedBlock(nn.Module):
    """Attention and MLP, each normed, shifted, scaled and gated as the time says; between them, perhaps, a context."""

    def __init__(self, dim: int, num_heads: int, *, has_context: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.attention = SelfAttention(dim, num_heads)
        self.context_norm = nn.LayerNorm(dim) if has_context else None
        self.context_attention = _silent_attention(dim, num_heads) if has_context else None
        self.mlp_norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.mlp = nn.Sequential(xavier_linear(dim, 4 * dim), nn.GELU(approximate="tanh"), xavier_linear(4 * dim, dim))
        self.modulation = Modulation(dim, 6)

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        time_features: Float[Tensor, "batch dim"],
        context: Float[Tensor, "batch context dim"] | None = None,
    ) -> Float[Tensor, "batch positions dim"]:
        """Returns the features after attention, attention to the context, and MLP."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(time_features)
        normed = modulate(self.attention_norm(features), shift, scale)
        features = features + gate * self.attention(normed)
        if self.context_attention is not None and self.context_norm is not None:
            assert context is not None
            features = features + self.context_attention(self.context_norm(features), context)
        return features + mlp_gate * self.mlp(modulate(self.mlp_norm(features), mlp_shift, mlp_scale))


def modulate(
    features: Float[Tensor, "batch positions dim"],
    shift: Float[Tensor, "batch 1 dim"],
    scale: Float[Tensor, "batch 1 dim"],
) -> Float[Tensor, "batch positions dim"]:
    """Returns the features scaled by 1 + ``scale`` and shifted."""
    return features * (1 + scale) + shift


def xavier_linear(dim_in: int, dim_out: int) -> nn.Linear:
    """Returns a linear map with Xavier's uniform weights and no bias at first."""
    linear = nn.Linear(dim_in, dim_out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _silent_attention(dim: int, num_heads: int) -> Attention:
    attention = Attention(dim, num_heads)
    nn.init.zeros_(attention.output.weight)
    nn.init.zeros_(attention.output.bias)
    return attention
