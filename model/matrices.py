"""The matrices of a model as torch multiplies with them while decoding: laid out for few rows, or as 8-bit integers.

A step of decoding reads every matrix to multiply it with a few rows only. On a CPU torch's own product reads a matrix
of usual layout several times slower than memory allows; oneDNN's layout is read at full speed. What lies between the
products, a step spends in calls: so norms are made of few, and inputs of any format are taken.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int8
from torch import Tensor

from rebus.model.llama_parts import LlamaBlock

Matrix = Callable[[Float[Tensor, "*batch inputs"]], Float[Tensor, "*batch outputs"]]
"""A product with a matrix, plus a bias if there is one."""
_USUAL_ROWS = 2
"""Rows that a layout is chosen for: a prompt and its guidance twin. It serves others too."""
_INT8_BLOCK = 16
"""torch's product with 8-bit integers reads so many inputs at a time, beyond the last if they are no multiple."""


class BlockMatrices(NamedTuple):
    """The products of one block."""

    query_key_value: Matrix
    """Of the residual stream: its norm comes with it."""
    output: Matrix
    gate_up: Matrix
    """Of the residual stream: its norm comes with it."""
    down: Matrix


def block_matrices(block: LlamaBlock, norm_eps: float, make: Callable[..., Matrix]) -> BlockMatrices:
    """Returns a block's products, each made of a weight and perhaps a bias."""
    is_copied = make is not plain_matrix and block.output.device.type == "cpu"
    after_norm = partial(_folded_after_norm, make=make) if is_copied else _plain_after_norm
    return BlockMatrices(
        after_norm(block.query_key_value, block.query_key_value_bias, block.attention_norm, norm_eps),
        make(block.output),
        after_norm(block.gate_up, None, block.ffn_norm, norm_eps),
        make(block.down),
    )


def rms_norm(values: Float[Tensor, "... dim"], factors: Float[Tensor, " dim"], eps: float) -> Float[Tensor, "... dim"]:
    """Returns values over their root mean square times factors, computed in the factors' format."""
    return F.rms_norm(values.to(factors.dtype), factors.shape, factors, eps).to(values.dtype)


def _plain_after_norm(weight: Tensor, bias: Tensor | None, factors: Tensor, eps: float) -> Matrix:
    product = plain_matrix(weight, bias)
    return lambda inputs: product(rms_norm(inputs, factors, eps))


def _folded_after_norm(
    weight: Tensor, bias: Tensor | None, factors: Tensor, eps: float, *, make: Callable[..., Matrix]
) -> Matrix:
    """Returns the product with a matrix that has a norm's factors in it; ``F.rms_norm`` is nine calls on a CPU."""
    dim = weight.shape[1]
    product = make((weight.float() * factors.float() * dim**0.5).to(weight.dtype), bias)
    least = torch.tensor((eps * dim) ** 0.5, device=weight.device)

    def normed_product(inputs: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        length = torch.linalg.vector_norm(inputs, dim=-1, keepdim=True, dtype=torch.float32)
        return product(inputs / torch.hypot(length, least))

    return normed_product


def plain_matrix(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None) -> Matrix:
    """Returns the product with a matrix as it is."""
    return lambda inputs: F.linear(inputs.to(weight.dtype), weight, bias)


def packed_matrix(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None) -> Matrix:
    """Returns the product with a copy of a matrix in oneDNN's layout, or with the matrix itself where there is none."""
    if weight.device.type != "cpu" or not _packs(weight.dtype):
        return plain_matrix(weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _USUAL_ROWS)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda inputs: product(inputs.to(weight.dtype), packed, bias, "none", [], "")


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN for matrices of this format on this processor."""
    operators = torch.ops.mkldnn
    if not all(hasattr(operators, name) for name in ("_reorder_linear_weight", "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operators._is_mkldnn_bf16_supported())


def int8_matrix(weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None) -> Matrix:
    """Returns the product with a matrix rounded to 8 bits, each row on a scale of its own; inputs keep their format.

    Raises:
        ValueError: if the matrix is not on a CPU.
    """
    if weight.device.type != "cpu":
        raise ValueError(f"int8 must be on a CPU, got {weight.device}")
    rounded, scales = _rounded(weight)
    missing = -weight.shape[1] % _INT8_BLOCK
    rounded = F.pad(rounded, (0, missing))

    def product(inputs: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        rows = rearrange(inputs.to(weight.dtype), "... inputs -> (...) inputs")
        outputs = torch.ops.aten._weight_int8pack_mm(F.pad(rows, (0, missing)) if missing else rows, rounded, scales)
        outputs = outputs.unflatten(0, inputs.shape[:-1])
        return outputs if bias is None else outputs + bias

    return product


def _rounded(
    weight: Float[Tensor, "outputs inputs"],
) -> tuple[Int8[Tensor, "outputs inputs"], Float[Tensor, " outputs"]]:
    largest = weight.float().abs().amax(dim=1).clamp_min(1e-12)
    scales = (largest / 127).to(weight.dtype)
    return (weight.float() / scales.float().unsqueeze(1)).round().clamp(-127, 127).to(torch.int8), scales
