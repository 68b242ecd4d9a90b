"""The blocks of Llama and its kin over a batch of rows with a static key-value cache: the arithmetic of decoding.

Rows of any length share one batch: each ends at the same slot of the cache, starts where its own text starts, and
counts its positions from there.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rebus.model.llama_parts import LlamaBlock, LlamaParts
from rebus.model.matrices import BlockMatrices, rms_norm
from rebus.model.native_llama import NativeCache, NativeLlama
from rebus.model.sampling import Sampling
from rebus.model.token_reduction import AttendedCodes


class Drop(NamedTuple):
    """What is dropped while prompts are read."""

    reduction: AttendedCodes
    pictures: Sequence[Sequence[slice]]
    """Where each row has codes that may go, counted from its own start."""


class BlockCache(NamedTuple):
    """Keys and values of one block, as a reading sees them: views of those of all blocks, made for all at once."""

    new_keys: Float[Tensor, "rows kv_heads length dim"]
    """To be filled in."""
    new_values: Float[Tensor, "rows kv_heads length dim"]
    keys: Float[Tensor, "rows kv_heads slots dim"]
    """Up to and with the new ones."""
    values: Float[Tensor, "rows kv_heads slots dim"]


class CachedRows:
    """Rows that a model has read so far.

    Args:
        parts: the model.
        matrices: those of its blocks.
        native: the same in C++, where that can be.
        lengths: of the prompts that it is going to read.
        num_slots: ids that the longest row will have at most.
    """

    ids: list[list[int]]
    """What each row has read, if known."""
    hidden: Float[Tensor, "rows length dim"]
    """The final hidden states of the ids read last."""

    @property
    def last(self) -> Float[Tensor, "rows dim"]:
        """The final hidden state of each row's last id: what predicts the next."""
        return self.hidden[:, -1]

    @property
    def is_native(self) -> bool:
        """Whether C++ can read on."""
        return self.native is not None and self.dropped is None

    def __init__(
        self,
        parts: LlamaParts,
        matrices: Sequence[BlockMatrices],
        native: NativeLlama | None,
        lengths: Sequence[int],
        num_slots: int,
    ):
        self.parts, self.matrices, self.native = parts, matrices, native
        self.ids = [[] for _ in lengths]
        self.num_read = 0
        self.starts = max(lengths) - torch.tensor(lengths, device=parts.embeddings.device).unsqueeze(1)
        self.offsets = torch.zeros_like(self.starts)
        """What the position of an id is beyond its distance from the start of its row."""
        self.dropped: Bool[Tensor, "rows slots"] | None = None
        """Slots that only the first blocks look at."""
        self.num_blocks_that_see_all = 0
        self._allocate(num_slots)

    def _allocate(self, num_slots: int) -> None:
        parts, device, dtype = self.parts, self.starts.device, cache_dtype(self.parts, self.native)
        shape = (len(parts.blocks), len(self.starts), parts.num_kv_heads, num_slots, parts.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.readable = torch.arange(num_slots, device=device) >= self.starts

    def take_over(self, known: "CachedRows") -> None:
        """Copies what the rows have in common with known ones, so that the first slots need not be read again."""
        ready = []
        for row, ids in enumerate(self.ids):
            common = [_num_common(ids[:-1], other) for other in known.ids]
            source = max(range(len(common)), key=common.__getitem__)
            length, start, first = common[source], int(self.starts[row]), int(known.starts[source])
            for own, others in ((self.keys, known.keys), (self.values, known.values)):
                own[:, row, :, start : start + length] = others[:, source, :, first : first + length]
            ready.append(start + length)
        self.num_read = min(ready)

    def spread(self, sources: Sequence[int], num_slots: int) -> "CachedRows":
        """Returns a batch of as many rows as there are sources, each a copy of that row."""
        copied = copy(self)
        copied.ids = [list(self.ids[source]) for source in sources]
        copied.starts, copied.hidden = self.starts[list(sources)], self.hidden[list(sources)]
        copied.offsets = self.offsets[list(sources)]
        copied._allocate(num_slots)
        for own, others in ((copied.keys, self.keys), (copied.values, self.values)):
            own[:, :, :, : self.num_read] = others[:, list(sources), :, : self.num_read]
        return copied

    def read(self, ids: Int[Tensor, "rows length"]) -> None:
        """Lets every row read its next ids."""
        if ids.shape[1] == 1 and self.is_native and self.native is not None:
            self.hidden = self.native.step(ids[:, 0].contiguous(), self._as_native()).unsqueeze(1)
            self.num_read += 1
            return
        slots = torch.arange(self.num_read, self.num_read + ids.shape[1], device=ids.device)
        self.read_embeddings(F.embedding(ids, self.parts.embeddings), slots - self.starts + self.offsets)

    @torch.no_grad()
    def read_embeddings(
        self,
        embeddings: Float[Tensor, "rows length dim"],
        positions: Int[Tensor, "rows length"],
        drop: Drop | None = None,
        is_vision: Bool[Tensor, "rows length"] | None = None,
    ) -> None:
        """Lets every row read what may be no ids; dropped codes are seen by the first blocks only.

        Args:
            embeddings: of what is read.
            positions: of each.
            drop: what is dropped on the way.
            is_vision: which are positions of pictures, for a model that treats them otherwise; none by default.
        """
        parts, stop = self.parts, self.num_read + embeddings.shape[1]
        slots = torch.arange(self.num_read, stop, device=embeddings.device)
        positions = positions.clamp(0, parts.max_positions - 1)  # padding and finished rows lie beyond
        turns = {rotary: rotary.turns(positions) for rotary in set(parts.rotary)}
        masks = {window: self._mask(slots, stop, window) for window in set(parts.windows)}
        hidden = embeddings.to(self.keys.dtype)
        if parts.embedding_scale != 1:
            hidden = hidden * torch.tensor(parts.embedding_scale, dtype=hidden.dtype)
        if is_vision is None:
            is_vision = torch.zeros_like(positions, dtype=torch.bool)
        blocks = zip(parts.blocks, self.matrices, self._block_caches(stop), strict=True)
        for index, (block, matrices, cache) in enumerate(blocks):
            before = hidden
            if self.dropped is not None and index == self.num_blocks_that_see_all:
                hidden_slots = self.dropped[:, None, None, :stop]
                masks = {window: mask.masked_fill(hidden_slots, -torch.inf) for window, mask in masks.items()}
            projected = matrices.query_key_value(hidden).to(hidden.dtype)
            heads = self._heads(block, projected, turns[parts.rotary[index]])
            attended = self._attend(cache, *heads, masks[parts.windows[index]])
            if drop is not None and index + 1 == drop.reduction.num_blocks:
                self._drop(drop, self._looked_at(index, heads[0][:, :, -1]))
            hidden = hidden + self._normed(matrices.output(attended), block.attended_norm)
            gate, up = matrices.gate_up(hidden).chunk(2, dim=-1)
            gate = F.silu(gate) if parts.activation == "silu" else F.gelu(gate, approximate="tanh")
            hidden = hidden + self._normed(matrices.down(gate * up), block.ffn_output_norm)
            if index in parts.vision_blocks:
                hidden = hidden.where(is_vision.unsqueeze(-1), before)
        self.num_read = stop
        hidden = hidden.to(parts.embeddings.dtype)
        self.hidden = self._normed(hidden, parts.norm)
        if parts.vision_norm is not None:
            self.hidden = self._normed(hidden, parts.vision_norm).where(is_vision.unsqueeze(-1), self.hidden)

    def forget(self, number: int) -> None:
        """Unreads the newest ids; ``hidden`` stays as it is."""
        self.num_read -= number

    def draw(
        self,
        ranges: Sequence[tuple[int, int]],
        weights: Float[Tensor, "codes branches"],
        sampling: Sampling,
        uniforms: Float[Tensor, "codes branch_rows"],
    ) -> Int[Tensor, "codes branch_rows"]:
        """Returns a code of each range for all rows, which have read it; in C++ only. See ``NativeLlama.draw``."""
        assert self.is_native and self.native is not None
        codes, last = self.native.draw(self.last, self._as_native(), ranges, weights, sampling, uniforms)
        self.hidden = last.unsqueeze(1)
        self.num_read += len(ranges)
        return codes

    def _as_native(self) -> NativeCache:
        return NativeCache(self.starts[:, 0], self.offsets[:, 0], self.num_read, self.keys, self.values)

    def _normed(self, values: Float[Tensor, "... dim"], factors: Float[Tensor, " dim"] | None) -> Tensor:
        """Returns values over their root mean square times factors; as they are without any."""
        return values if factors is None else rms_norm(values, factors, self.parts.norm_eps)

    def _heads(
        self, block: LlamaBlock, projected: Float[Tensor, "rows length width"], turns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values as rows x heads x length x dim."""
        parts = self.parts
        num_turned = parts.num_heads + parts.num_kv_heads
        heads = rearrange(
            projected, "rows length (heads dim) -> rows heads length dim", heads=num_turned + parts.num_kv_heads
        )
        turning, values = heads.split((num_turned, parts.num_kv_heads), dim=1)
        sizes = (parts.num_heads, parts.num_kv_heads)
        if block.query_norm is not None:
            queries, keys = turning.split(sizes, dim=1)
            normed = self._normed(queries, block.query_norm), self._normed(keys, block.key_norm)
            turning = torch.cat(normed, dim=1)
        queries, keys = _turn(turning, *turns).split(sizes, dim=1)
        return queries, keys, values

    def _block_caches(self, stop: int) -> Iterator[BlockCache]:
        """Returns the cache of each block for a reading that ends at a slot."""
        whole = (self.keys, self.values)
        new = [one[:, :, :, self.num_read : stop].unbind() for one in whole]
        return map(BlockCache, *new, *(one[:, :, :, :stop].unbind() for one in whole))

    def _attend(
        self,
        cache: BlockCache,
        queries: Float[Tensor, "rows heads length dim"],
        keys: Float[Tensor, "rows kv_heads length dim"],
        values: Float[Tensor, "rows kv_heads length dim"],
        mask: Float[Tensor, "rows 1 length slots"],
    ) -> Float[Tensor, "rows length attended"]:
        """Stores keys and values, and returns what the queries find among all there are."""
        cache.new_keys.copy_(keys)
        cache.new_values.copy_(values)
        attended = F.scaled_dot_product_attention(
            queries,
            cache.keys,
            cache.values,
            attn_mask=mask,
            scale=self.parts.attention_scale,
            enable_gqa=self.parts.num_kv_heads < self.parts.num_heads,
        )
        return rearrange(attended, "rows heads length dim -> rows length (heads dim)")

    def _looked_at(self, layer: int, query: Float[Tensor, "rows heads dim"]) -> Float[Tensor, "rows slots"]:
        """Returns how much the last id of each row looks at each slot in a block, as the mean over heads."""
        keys = self.keys[layer].repeat_interleave(self.parts.num_heads // self.parts.num_kv_heads, dim=1)
        scores = einsum(query, keys, "rows heads dim, rows heads slots dim -> rows heads slots")
        scores = (scores.float() * self.parts.attention_scale).masked_fill(~self.readable[:, None], float("-inf"))
        return scores.softmax(dim=-1).mean(dim=1)

    def _drop(self, drop: Drop, looked_at: Float[Tensor, "rows slots"]) -> None:
        """Hides codes from the blocks to come."""
        self.dropped = torch.zeros_like(self.readable)
        self.num_blocks_that_see_all = drop.reduction.num_blocks
        for row, pictures in enumerate(drop.pictures):
            for codes in pictures:
                first = int(self.starts[row]) + codes.start
                attention = looked_at[row, first : first + codes.stop - codes.start]
                self.dropped[row, first + drop.reduction.drop(attention)] = True

    def _mask(
        self, slots: Int[Tensor, " length"], stop: int, window: int | None
    ) -> Float[Tensor, "rows 1 length slots"]:
        """Returns 0 where a new slot may look: at those of its row and window up to itself, and itself; else -inf."""
        if len(slots) == 1 and window is None:
            seen = self.readable[:, None, None, :stop]
        else:
            back = slots.unsqueeze(1) - torch.arange(stop, device=slots.device)
            near = (back >= 0) if window is None else (back >= 0) & (back < window)
            seen = ((self.readable[:, None, :stop] & near) | (back == 0)).unsqueeze(1)
        # Attention would make these numbers of a mask of truth values, in every block anew.
        return torch.zeros_like(seen, dtype=self.keys.dtype).masked_fill_(~seen, -torch.inf)


def cache_dtype(parts: LlamaParts, native: NativeLlama | None) -> torch.dtype:
    """Returns the format of keys and values: on a CPU, torch attends in bfloat16 four times slower than in float32."""
    by_torch = native is None and parts.embeddings.device.type == "cpu"
    return torch.float32 if by_torch else parts.embeddings.dtype


def _num_common(ids: Sequence[int], others: Sequence[int]) -> int:
    """Returns how many ids two rows have in common from the first on."""
    pairs = enumerate(zip(ids, others, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(ids), len(others)))


def _turn(
    heads: Float[Tensor, "rows heads length dim"],
    cosine: Float[Tensor, "rows 1 length dim"],
    signed_sine: Float[Tensor, "rows 1 length dim"],
) -> Float[Tensor, "rows heads length dim"]:
    """Returns heads turned by their positions (rotary embedding, halves as in ``transformers``)."""
    swapped = heads.roll(heads.shape[-1] // 2, dims=-1)
    return torch.addcmul(heads * cosine, swapped, signed_sine)
