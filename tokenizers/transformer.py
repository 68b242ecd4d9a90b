"""The plain transformer that encoders, layouts, pixel decoders and text heads of the image tokenizer share.

Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929, sec. 3.1.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from rebus.tokenizers.rotary import Rotation, rotate


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to a context."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        context: Float[Tensor, "batch context dim"],
        mask: Bool[Tensor, "#batch #positions context"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "batch positions dim"]:
        """Returns what each position reads from the context where ``mask`` is True.

        Args:
            features: what asks.
            context: what is read.
            mask: what may be read; all by default.
            rotation: places of features that read themselves, see `rotary`; without it they have none.
        """
        queries = rearrange(self.query(features), "b n (h d) -> b h n d", h=self.num_heads)
        keys, values = rearrange(self.key_value(context), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        attn_mask = None if mask is None else mask[:, None]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        return self.output(rearrange(mixed, "b h n d -> b n (h d)"))


class Block(nn.Module):
    """A pre-norm transformer block, with attention to a context where it has one."""

    def __init__(self, dim: int, num_heads: int, *, has_context: bool = False) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, num_heads)
        self.context_norm = nn.LayerNorm(dim) if has_context else None
        self.context_attention = Attention(dim, num_heads) if has_context else None
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "#batch #positions positions"] | None = None,
        context: Float[Tensor, "batch context dim"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "batch positions dim"]:
        """Returns the features after attention, attention to the context, and the MLP."""
        normed = self.attention_norm(features)
        features = features + self.attention(normed, normed, mask, rotation)
        if self.context_attention is not None and self.context_norm is not None:
            assert context is not None
            features = features + self.context_attention(self.context_norm(features), context)
        return features + self.mlp(self.mlp_norm(features))


class Transformer(nn.Module):
    """A stack of blocks, with a final norm or without; fresh blocks pass on what comes in."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, *, has_context: bool = False, has_norm: bool = True
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, has_context=has_context) for _ in range(depth))
        self.norm = nn.LayerNorm(dim) if has_norm else nn.Identity()
        self.apply(_initialize)
        for block in self.blocks:
            _silence(block)

    def forward(
        self,
        features: Float[Tensor, "batch positions dim"],
        mask: Bool[Tensor, "#batch #positions positions"] | None = None,
        context: Float[Tensor, "batch context dim"] | None = None,
        rotation: Rotation | None = None,
    ) -> Float[Tensor, "batch positions dim"]:
        """Returns the features of the last block."""
        for block in self.blocks:
            features = block(features, mask, context, rotation)
        return self.norm(features)


def sincos_positions(rows: int, columns: int, dim: int) -> Float[Tensor, "positions dim"]:
    """Returns fixed 2-D position features of a grid in raster order: half the channels for rows, half for columns."""
    assert dim % 4 == 0
    frequencies = 10000 ** -(torch.arange(dim // 4) / (dim // 4))
    row_angles = torch.arange(rows)[:, None] * frequencies
    column_angles = torch.arange(columns)[:, None] * frequencies
    row_features = torch.cat([row_angles.sin(), row_angles.cos()], dim=-1)[:, None].expand(-1, columns, -1)
    column_features = torch.cat([column_angles.sin(), column_angles.cos()], dim=-1)[None].expand(rows, -1, -1)
    return torch.cat([row_features, column_features], dim=-1).flatten(0, 1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _silence(block: nn.Module) -> None:
    assert isinstance(block, Block)
    outputs = [block.attention.output, block.mlp[-1]]
    if block.context_attention is not None:
        outputs.append(block.context_attention.output)
    for output in outputs:
        assert isinstance(output, nn.Linear)
        nn.init.zeros_(output.weight)
