"""Slots that compete for the patches, so that each comes to stand for a thing of its own."""

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import (
    NO_EXTRAS,
    Extras,
    Layout,
    Positions,
    all_positions,
    one_grid,
    with_context,
)
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream
from rebus.tokenizers.transformer import Transformer


@dataclass(frozen=True, kw_only=True)
class SlotsConfig:
    """Slots that compete for the patches, and look at one another in between."""

    num_slots: int = 32
    """Codes of a picture."""
    depth: int = 2
    """Rounds: in each the slots compete for the patches, then a transformer block lets them see one another."""
    num_iterations: int = 3
    """Times that the slots compete in a round."""
    num_heads: int = 4
    """Attention heads; all heads of all slots compete."""

    def build(self, dim: int, code_dim: int, grids: tuple[tuple[Grid, ...], ...]) -> "Slots":
        """Builds the layout for features of a width.

        Raises:
            ValueError: if a number is out of range, or pictures have several sizes.
        """
        del code_dim
        one_grid(grids)
        return Slots(dim, self)


class Slots(Layout):
    """Slots with learned starts, so that a picture always has the same ones.

    Source: Chi et al., "Slot-MLLM: Object-Centric Visual Tokenization for Multimodal LLM",
    https://arxiv.org/abs/2505.17726, sec. 3; Locatello et al., "Object-Centric Learning with Slot Attention",
    https://arxiv.org/abs/2006.15055, algorithm 1.
    Differs: the slots see one another both ways; there is no text branch.
    """

    reads_context = True

    def __init__(self, dim: int, config: SlotsConfig) -> None:
        super().__init__()
        for name in ("num_slots", "depth", "num_iterations"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
        self.num_slots = config.num_slots
        self.starts = nn.Parameter(torch.randn(config.num_slots, dim))
        self.competing = nn.ModuleList(
            _SlotAttention(dim, config.num_heads, config.num_iterations) for _ in range(config.depth)
        )
        self.among_slots = Transformer(dim, config.depth, config.num_heads, has_norm=False)

    def code_layout(self, streams: tuple[Stream, ...]) -> CodeLayout:
        """Returns the contract that the codes of this layout meet."""
        return CodeLayout("sequence", self.num_slots, streams)

    def forward(self, patches: Patches, extras: Extras = NO_EXTRAS) -> Positions:
        """Returns the features of each slot."""
        assert extras.lengths is None, "slots have no shorter form"
        cells = with_context(patches)
        slots = self.starts.expand(len(cells), -1, -1)
        for attention, block in zip(self.competing, self.among_slots.blocks, strict=True):
            slots = block(attention(slots, cells))
        return Positions(slots, all_positions(slots))


class _SlotAttention(nn.Module):
    """Shares the inputs out among the slots, then moves each slot towards the mean of its share."""

    def __init__(self, dim: int, num_heads: int, num_iterations: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads = {num_heads}, got {dim}")
        self.num_heads = num_heads
        self.num_iterations = num_iterations
        self.input_norm = nn.LayerNorm(dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.slot_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.update = nn.GRUCell(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(
        self, slots: Float[Tensor, "batch slots dim"], inputs: Float[Tensor, "batch inputs dim"]
    ) -> Float[Tensor, "batch slots dim"]:
        """Returns the slots after all iterations."""
        with torch.autocast(inputs.device.type, enabled=False):  # the recurrence adds up what rounding loses
            slots = slots.float()
            key_value = self.key_value(self.input_norm(inputs.float()))
            keys, values = rearrange(key_value, "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
            for _ in range(self.num_iterations):
                read = self._read(slots, keys, values)
                slots = self.update(read.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
                slots = slots + self.mlp(self.mlp_norm(slots))
        return slots

    def _read(self, slots: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = rearrange(self.query(self.slot_norm(slots)), "b s (h d) -> b h s d", h=self.num_heads)
        scores = einsum(queries, keys, "b h s d, b h n d -> b n h s") * queries.shape[-1] ** -0.5
        shares = scores.flatten(2).softmax(dim=-1).view_as(scores)  # over slots, not over inputs: they compete
        means = shares / (shares.sum(dim=1, keepdim=True) + 1e-6)
        return rearrange(einsum(means, values, "b n h s, b h n d -> b s h d"), "b s h d -> b s (h d)")
