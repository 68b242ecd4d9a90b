"""A step in C++ (``native/llama_step.cpp``) of Llama, Mistral or Qwen, taken where every row of a batch reads one id.

In torch the step of a small model is spent in calling its parts, not in their arithmetic.
"""

import ctypes
import weakref
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_void_p
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rebus.model.llama_parts import LlamaParts
from rebus.model.native_library import native_library

SOURCE = Path(__file__).parent / "native" / "llama_step.cpp"


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
        *((name, c_void_p) for name in ("ids", "starts", "keys", "values", "last")),
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

    def step(
        self,
        ids: Int[Tensor, " rows"],
        starts: Int[Tensor, " rows"],
        slot: int,
        keys: Float[Tensor, "blocks rows heads slots head_dim"],
        values: Float[Tensor, "blocks rows heads slots head_dim"],
    ) -> Float[Tensor, "rows dim"]:
        """Returns the final hidden states after each row has read an id, whose key and value are put into ``slot``."""
        last = keys.new_empty(len(ids), self.embeddings.shape[1])
        assert slot < keys.shape[3] and all(one.is_contiguous() for one in (ids, starts, keys, values))
        tensors = (ids, starts, keys, values, last)
        step = _Step(len(ids), slot, keys.shape[3], *(tensor.data_ptr() for tensor in tensors))
        self._library.rebus_llama_step(self._llama, byref(step))
        return last

    def logits(self, hidden: Float[Tensor, "rows dim"], start: int, stop: int) -> Float[Tensor, "rows ids"]:
        """Returns float32 logits of the ids from ``start`` up to ``stop``."""
        hidden = hidden.contiguous()
        logits = torch.empty(len(hidden), stop - start)
        self._library.rebus_llama_logits(
            self._llama, c_void_p(hidden.data_ptr()), len(hidden), start, stop, c_void_p(logits.data_ptr())
        )
        return logits
