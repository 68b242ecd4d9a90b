"""The search against brute force, in numbers for which float32 is exact; and wrong codes near the right ones."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rebus.tokenizers.quantizers import nearest, neighbours
from rebus.tokenizers.quantizers.nearest import best_products, nearest_codes
from rebus.tokenizers.quantizers.neighbours import replace_by_neighbours


def whole_numbers(*shape, seed, most=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).float()


@given(
    st.sampled_from([1, 5, 300]),
    st.sampled_from([1, 2, 127, 128, 130, 400]),
    st.integers(1, 5),
    st.sampled_from([0, 9]),
    st.integers(0, 99),
)
def test_it_is_the_first_of_the_nearest_codes(num_vectors, num_codes, dim, away, seed):
    vectors, codes = whole_numbers(num_vectors, dim, seed=seed), whole_numbers(num_codes, dim, seed=seed + 1) + away
    distances = (vectors[:, None] - codes).square().sum(dim=-1)
    assert torch.equal(nearest_codes(vectors, codes), distances.argmin(dim=-1))
    assert torch.equal(best_products(vectors, codes), (vectors @ codes.T).argmax(dim=-1))


def test_chunks_tiles_and_builds_change_nothing(monkeypatch):
    vectors, codes = whole_numbers(333, 3, seed=0), whole_numbers(700, 3, seed=1)
    expected = (vectors[:, None] - codes).square().sum(dim=-1).argmin(dim=-1)
    for name, value in {"_CPU_SCORES": 400, "_TILE_ROWS": 20, "_TILE_CODES": 256}.items():
        monkeypatch.setattr(nearest, name, value)
    assert torch.equal(nearest_codes(vectors, codes), expected)
    monkeypatch.setattr(nearest, "_has_onednn", lambda: False)
    assert torch.equal(nearest_codes(vectors, codes), expected)


@pytest.mark.parametrize("has_onednn, most", [(True, 2**13), (False, 16 * 4096)])
def test_no_more_scores_are_held_than_a_chunk_has(monkeypatch, has_onednn, most):
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            outcome = func(*args, **(kwargs or {}))
            tensors = [each for each in tree_leaves(outcome) if isinstance(each, torch.Tensor) and not each.is_mkldnn]
            self.numbers = max([self.numbers, *(tensor.numel() for tensor in tensors)])
            return outcome

    monkeypatch.setattr(nearest, "_has_onednn", lambda: has_onednn)
    for name, value in {"_CPU_SCORES": 2**13, "_TILE_ROWS": 32, "_TILE_CODES": 256}.items():
        monkeypatch.setattr(nearest, name, value)
    vectors, codes = torch.zeros(3000, 2), torch.zeros(4096, 2)
    with Largest() as largest:
        nearest_codes(vectors, codes)
    assert largest.numbers == most, "neither 3000 x 4096 scores nor, of windows, 3000 x 32"


@pytest.mark.parametrize("num_vectors", [100, 400])
def test_arithmetic_of_half_precision_changes_nothing(num_vectors):
    generator = torch.Generator().manual_seed(0)
    vectors, codes = torch.randn(num_vectors, 8, generator=generator), torch.randn(900, 8, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        ids = nearest_codes(vectors, codes)
    assert torch.equal(ids, torch.cdist(vectors.double(), codes.double()).argmin(dim=-1))


def test_neighbours_are_the_nearest_others(monkeypatch):
    monkeypatch.setattr(neighbours, "rows_at_once", lambda *_: 2)  # so that there are several chunks
    codes = torch.tensor([[0.0], [1.0], [2.5], [2.5], [9.0], [10.0]])
    near = [{1.0, 2.5}, {0.0, 2.5}, {2.5, 1.0}, {2.5, 1.0}, {10.0, 2.5}, {9.0, 2.5}]
    ids = torch.arange(6).repeat(500)
    changed = replace_by_neighbours(ids, codes, 1.0, 2, torch.Generator().manual_seed(0))
    assert [set(codes[changed[ids == code], 0].tolist()) for code in range(6)] == near
    assert not (changed == ids).any(), "a code is no neighbour of itself"


def test_neighbours_replace_the_asked_share_and_keep_missing_codes():
    codes = torch.randn(31, 4, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(31, (40, 50, 1), generator=torch.Generator().manual_seed(2))
    ids[:, -5:] = -1
    changed = replace_by_neighbours(ids, codes, 0.3, 5, torch.Generator().manual_seed(3))
    assert torch.equal(changed[:, -5:], ids[:, -5:])
    assert abs((changed != ids)[:, :-5].float().mean().item() - 0.3) < 0.04
    assert torch.equal(replace_by_neighbours(ids, codes, 0.0, 5, torch.Generator()), ids)
    with pytest.raises(ValueError, match=r"neighbours must be in \[1, 31\) for 31 codes, got 31"):
        replace_by_neighbours(ids, codes, 0.3, 31, torch.Generator())
