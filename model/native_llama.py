"""Llama, Mistral and Qwen in C++ (``native/llama.cpp``): steps in which every row of a batch reads one id.

In torch the step of a small model is spent in calling its parts, not in their arithmetic. Where all rows are in a
picture, its codes are drawn and read without coming back to Python in between.
"""

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rebus.model.llama_parts import LlamaParts
from rebus.model.native_library import native_library
from rebus.model.sampling import Sampling

SOURCE = Path(__file__).parent / "native" / "llama.cpp"


class _Shape(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("dim", "num_blocks", "num_heads", "num_kv_heads", "head_dim", "ffn_dim")),
        *((name, c_int32) for name in ("vocabulary", "max_positions")),
        ("norm_eps", c_float),
    ]


_MATRICES = ("attention_norm", "query_key_value", "output", "ffn_norm", "gate_up", "down")
_OPTIONAL = ("query_key_value_bias", "query_norm", "key_norm")


class _Block(Structure):
    _fields_ = [(name, c_void_p) for name in (*_MATRICES, *_OPTIONAL)]


class _Weights(Structure):
    _fields_ = [
        ("embeddings", c_void_p),
        ("blocks", POINTER(_Block)),
        *((name, c_void_p) for name in ("norm", "head", "cosine", "sine")),
    ]


class _Step(Structure):
    _fields_ = [
        *((name, c_int32) for name in ("num_rows", "slot", "num_slots")),
        *((name, c_void_p) for name in ("ids", "starts", "offsets", "keys", "values", "last")),
    ]


class _Sampling(Structure):
    _fields_ = [*((name, c_float) for name in ("temperature", "top_p", "min_p")), ("top_k", c_int32)]


class _Span(Structure):
    _fields_ = [
        ("step", _Step),
        ("num_codes", c_int32),
        ("num_branches", c_int32),
        ("sampling", _Sampling),
        *((name, c_void_p) for name in ("code_starts", "code_stops", "weights", "uniforms", "chosen")),
    ]


class NativeLlama:
    """The weights of a model, packed for the step, and as many threads as torch uses."""

    def __init__(self, library: ctypes.CDLL, parts: LlamaParts):
        self.embeddings = parts.embeddings.contiguous()  # all else is copied
        head, norm = parts.head.contiguous(), parts.norm.contiguous()
        cosine, sine = (one.float().contiguous() for one in (parts.rotary[0].cosine, parts.rotary[0].sine))
        tensors = [
            [tensor if tensor is None else tensor.contiguous() for tensor in (getattr(block, name) for name in names)]
            for block in parts.blocks
            for names in [(*_MATRICES, *_OPTIONAL)]
        ]
        pointers = ([tensor if tensor is None else tensor.data_ptr() for tensor in block] for block in tensors)
        blocks = (_Block * len(tensors))(*(_Block(*block) for block in pointers))
        shape = _Shape(
            dim=self.embeddings.shape[1],
            num_blocks=len(blocks),
            num_heads=parts.num_heads,
            num_kv_heads=parts.num_kv_heads,
            head_dim=cosine.shape[1],
            ffn_dim=parts.blocks[0].down.shape[1],
            vocabulary=head.shape[0],
            max_positions=cosine.shape[0],
            norm_eps=parts.norm_eps,
        )
        pointers = (tensor.data_ptr() for tensor in (norm, head, cosine, sine))
        weights = _Weights(self.embeddings.data_ptr(), blocks, *pointers)
        library.rebus_llama_new.restype = c_void_p
        is_bfloat16 = self.embeddings.dtype == torch.bfloat16
        llama = library.rebus_llama_new(byref(shape), byref(weights), is_bfloat16, torch.get_num_threads())
        self._library, self._llama = library, c_void_p(llama)
        weakref.finalize(self, library.rebus_llama_free, self._llama)

    @staticmethod
    def of(parts: LlamaParts) -> "NativeLlama | None":
        """Returns the step of a model in float32 or bfloat16 on a CPU, where it can be compiled.

        Gemma's other constants and norms, and windows, are left to torch.
        """
        is_covered = (
            parts.head.device.type == "cpu"
            and parts.head.dtype in (torch.float32, torch.bfloat16)
            and parts.activation == "silu"
            and parts.embedding_scale == 1
            and not any(parts.windows)
        )
        library = native_library(SOURCE) if is_covered else None
        return None if library is None else NativeLlama(library, parts)

    def step(self, ids: Int[Tensor, " rows"], cache: "NativeCache") -> Float[Tensor, "rows dim"]:
        """Returns the final hidden states after each row has read an id, whose key and value are put into the cache."""
        last = cache.keys.new_empty(len(ids), self.embeddings.shape[1])
        assert ids.is_contiguous()
        self._library.rebus_llama_step(self._llama, byref(cache.step(ids, last)))
        return last

    def draw(
        self,
        last: Float[Tensor, "rows dim"],
        cache: "NativeCache",
        ranges: Sequence[tuple[int, int]],
        weights: Float[Tensor, "codes branches"],
        sampling: Sampling,
        uniforms: Float[Tensor, "codes branch_rows"],
    ) -> tuple[Int[Tensor, "codes branch_rows"], Float[Tensor, "rows dim"]]:
        """Draws a code of each range for all rows, which read it; returns the codes and the final hidden states then.

        A row whose logits are not all numbers has the code -1.

        Args:
            last: final hidden states before the first code.
            cache: of all rows, branch by branch; the branches of a row read the same code.
            ranges: ids that each code is one of.
            weights: of each branch's logits.
            sampling: how each code is drawn.
            uniforms: numbers in [0, 1) that decide.
        """
        last, weights, uniforms = last.clone(), weights.contiguous(), uniforms.contiguous()
        starts, stops = torch.tensor(ranges, dtype=torch.int32).T.contiguous()
        chosen = torch.empty(uniforms.shape, dtype=torch.int64)
        pointers = (tensor.data_ptr() for tensor in (starts, stops, weights, uniforms, chosen))
        span = _Span(cache.step(None, last), *weights.shape, _as_c(sampling), *pointers)
        self._library.rebus_llama_draw(self._llama, byref(span))
        return chosen, last

    def choose(
        self, logits: Float[Tensor, "rows ids"], sampling: Sampling, uniform: Float[Tensor, " rows"]
    ) -> Int[Tensor, " rows"]:
        """Returns what ``sampling.choose`` returns, but for rounding; -1 for a row that is not all numbers."""
        logits, chosen = logits.contiguous(), torch.empty(len(logits), dtype=torch.int64)
        pointers = [c_void_p(tensor.data_ptr()) for tensor in (logits, uniform, chosen)]
        self._library.rebus_choose(pointers[0], *logits.shape, byref(_as_c(sampling)), *pointers[1:])
        return chosen

    def logits(self, hidden: Float[Tensor, "rows dim"], start: int, stop: int) -> Float[Tensor, "rows ids"]:
        """Returns float32 logits of the ids from ``start`` up to ``stop``."""
        hidden = hidden.contiguous()
        logits = torch.empty(len(hidden), stop - start)
        self._library.rebus_llama_logits(
            self._llama, c_void_p(hidden.data_ptr()), len(hidden), start, stop, c_void_p(logits.data_ptr())
        )
        return logits


@dataclass
class NativeCache:
    """What rows have read, as C++ sees it: ``CachedRows`` without torch's part."""

    starts: Int[Tensor, " rows"]
    """The slot at which each row begins."""
    offsets: Int[Tensor, " rows"]
    """What the position of an id is beyond its distance from there."""
    slot: int
    """The next one to be filled."""
    keys: Float[Tensor, "blocks rows heads slots head_dim"]
    values: Float[Tensor, "blocks rows heads slots head_dim"]

    def step(self, ids: Int[Tensor, " rows"] | None, last: Float[Tensor, "rows dim"]) -> _Step:
        """Returns the next step, which reads ids and writes final hidden states."""
        assert self.slot < self.keys.shape[3]
        tensors = (self.starts, self.offsets, self.keys, self.values, last)
        assert all(tensor.is_contiguous() for tensor in tensors)
        pointers = (tensor.data_ptr() for tensor in tensors)
        return _Step(len(last), self.slot, self.keys.shape[3], None if ids is None else ids.data_ptr(), *pointers)


def _as_c(sampling: Sampling) -> _Sampling:
    top_p = 1.0 if sampling.top_p is None else sampling.top_p
    return _Sampling(sampling.temperature, top_p, sampling.min_p or 0.0, sampling.top_k or 0)
