"""The nearest code of each vector: an exact search in float32 that never holds all scores of vectors and codes.

|v - e|^2 is least where v.e - |e|^2/2 is largest: one matrix product with a bias, done chunk by chunk. On a CPU it is
done in tiles that fit a core's cache, with the code book in oneDNN's layout, and the largest score is looked for in
windows of codes: torch finds the place of a maximum ten times slower than its value, so the values of all windows are
found first, and the place in the best window alone.
"""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from rebus.tokenizers.uncompiled import uncompiled

_WINDOW = 128
"""Codes of which the largest score is found before its place."""
_TILE_ROWS, _TILE_CODES = 256, 2048
"""A tile of scores, of 2 MiB: the fastest of several for 8192 and 16384 codes, by little."""
_WORTH_TILES = 256
"""Vectors from which on it pays to lay out the code book for oneDNN."""
_CPU_SCORES, _GPU_SCORES = 2**20, 2**26
"""Scores, or largest scores of windows, that are held at once; a GPU wants large products."""


def nearest_codes(
    vectors: Float[Tensor, "vectors dim"], codebook: Float[Tensor, "codes dim"]
) -> Int[Tensor, " vectors"]:
    """Returns the nearest code of each vector; of codes that are equally near in float32, the first.

    Where vectors and codes have length 1, as ``F.normalize`` makes them, it is also the code of the largest cosine.
    """
    codes = codebook.float()
    return _best_codes(vectors, codes, -codes.square().sum(dim=-1) / 2)


def best_products(
    vectors: Float[Tensor, "vectors dim"], codebook: Float[Tensor, "codes dim"]
) -> Int[Tensor, " vectors"]:
    """Returns the code with which each vector has the largest product; of equally large ones, the first."""
    return _best_codes(vectors, codebook.float(), torch.zeros(len(codebook), device=codebook.device))


def rows_at_once(num_codes: int, device: torch.device) -> int:
    """Returns for how many vectors to hold the scores of so many codes: 16, whatever the codes, or more."""
    return max((_CPU_SCORES if device.type == "cpu" else _GPU_SCORES) // num_codes, 16)


@uncompiled  # a loop over chunks, which would be unrolled
@torch.no_grad()
def _best_codes(
    vectors: Float[Tensor, "vectors dim"], codes: Float[Tensor, "codes dim"], bias: Float[Tensor, " codes"]
) -> Int[Tensor, " vectors"]:
    """Returns the code of the largest score of each vector."""
    with torch.autocast(vectors.device.type, enabled=False):
        vectors = vectors.float()
        if vectors.device.type == "cpu" and len(vectors) >= _WORTH_TILES and _has_onednn():
            return _best_codes_by_tiles(vectors, codes, bias)
        parts = vectors.split(rows_at_once(len(codes), vectors.device))
        return torch.cat([torch.addmm(bias, part, codes.T).argmax(dim=-1) for part in parts])


@cache
def _has_onednn() -> bool:
    """Whether this build of torch has the product with a matrix in oneDNN's layout."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def _best_codes_by_tiles(
    vectors: Float[Tensor, "vectors dim"], codes: Float[Tensor, "codes dim"], bias: Float[Tensor, " codes"]
) -> Int[Tensor, " vectors"]:
    missing = -len(codes) % _WINDOW
    codes, bias = F.pad(codes, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-torch.inf)
    tiles = [torch.ops.mkldnn._reorder_linear_weight(part, _TILE_ROWS) for part in codes.split(_TILE_CODES)]
    ids = torch.empty(len(vectors), dtype=torch.long)
    # All largest scores of windows are held, then all scores in one window, for all vectors may be in the same.
    rows = max(min(_CPU_SCORES * _WINDOW // len(codes), _CPU_SCORES // _WINDOW), _TILE_ROWS)
    for part, places in zip(vectors.split(rows), ids.split(rows), strict=True):
        places.copy_(_best_in_windows(part, codes, bias, _best_windows(part, tiles, bias)))
    return ids


def _best_windows(
    vectors: Float[Tensor, "vectors dim"], tiles: list[Tensor], bias: Float[Tensor, " codes"]
) -> Int[Tensor, " vectors"]:
    """Returns the window of codes in which each vector has its largest score."""
    linear = torch.ops.mkldnn._linear_pointwise.default
    largest = torch.empty(len(vectors), len(bias) // _WINDOW)
    columns = largest.split(_TILE_CODES // _WINDOW, dim=1)
    for tile, tile_bias, column in zip(tiles, bias.split(_TILE_CODES), columns, strict=True):
        for part, target in zip(vectors.split(_TILE_ROWS), column.split(_TILE_ROWS), strict=True):
            scores = linear(part, tile, tile_bias, "none", [], "")
            torch.amax(scores.unflatten(1, (-1, _WINDOW)), dim=-1, out=target)
    return largest.argmax(dim=-1)


def _best_in_windows(
    vectors: Float[Tensor, "vectors dim"],
    codes: Float[Tensor, "codes dim"],
    bias: Float[Tensor, " codes"],
    windows: Int[Tensor, " vectors"],
) -> Int[Tensor, " vectors"]:
    """Returns the code of the largest score in the window given for each vector."""
    order = windows.argsort()
    groups = vectors[order].split(windows.bincount(minlength=len(codes) // _WINDOW).tolist())
    places = [
        torch.addmm(one_bias, group, window.T).argmax(dim=-1)
        for group, window, one_bias in zip(groups, codes.split(_WINDOW), bias.split(_WINDOW), strict=True)
        if len(group)
    ]
    ids = torch.empty_like(windows)
    ids[order] = torch.cat(places)
    return windows * _WINDOW + ids
