"""Residual, product, parallel and in turn, and tables with one index: by themselves and against the library."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ, GroupedResidualVQ, ResidualFSQ, ResidualLFQ, ResidualVQ

from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.binary import BinarySphericalConfig, LookupFreeConfig
from rebus.tokenizers.quantizers.contract import Quantizer, streams_of
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.in_turn import InTurnConfig
from rebus.tokenizers.quantizers.parallel import BranchConfig, ParallelConfig
from rebus.tokenizers.quantizers.product import ProductConfig
from rebus.tokenizers.quantizers.residual import ResidualConfig
from rebus.tokenizers.quantizers.shared_index import SharedIndexConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.tokens import Stream, Tokens

VECTORS = VectorConfig(codebook_size=19, dim=6, decay=0.9, restart_below=0.5)
BITS = LookupFreeConfig(bits=3, groups=2, entropy_bits=3)
TABLES = SharedIndexConfig(quantizer=replace(VECTORS, codebook_size=23), dims=(4, 2), weights=(1.0, 0.5))
LEVELS = FiniteScalarConfig(levels=(3, 5, 4, 4, 3, 6))
RESIDUAL = ResidualConfig(quantizer=VECTORS, depth=3)
SHARED = replace(RESIDUAL, is_shared=True)
BRANCHES = (
    BranchConfig(name="semantic", quantizer=SHARED),
    BranchConfig(name="pixels", quantizer=ProductConfig(quantizer=replace(VECTORS, codebook_size=9, dim=2), groups=2)),
    BranchConfig(name="edges", quantizer=TABLES),
)
CONFIGS = {
    "vectors": VECTORS,
    "levels": LEVELS,
    "bits": BITS,
    "sphere": BinarySphericalConfig(bits=4, groups=2, entropy_bits=2, commitment=0.1),
    "tables": TABLES,
    "residual": RESIDUAL,
    "shared": SHARED,
    "residual_bits": ResidualConfig(quantizer=BITS, depth=2, shrink=2.0),
    "shared_bits": ResidualConfig(quantizer=BITS, depth=2, shrink=2.0, is_shared=True),
    "product_of_levels": ProductConfig(quantizer=LEVELS, groups=2),
    "product": ProductConfig(quantizer=VECTORS, groups=3),
    "product_of_residuals": ProductConfig(quantizer=RESIDUAL, groups=2),
    "parallel": ParallelConfig(branches=BRANCHES),
    "disentangled": ParallelConfig(branches=(BRANCHES[0], BRANCHES[2]), disentanglement=0.1),
    "in_turn": InTurnConfig(num_first=4, first=VECTORS, rest=TABLES),
}


def features(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(config, **settings):
    torch.manual_seed(0)
    return config.build().train(settings.get("training", False))


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@given(st.sampled_from(sorted(CONFIGS)), st.booleans(), st.integers(0, 1000))
def test_codes_stand_for_the_quantized_features(name, training, seed):
    quantizer = drawn(CONFIGS[name], training=training)
    assert isinstance(quantizer, Quantizer)
    before = deepcopy(quantizer)
    quantized = quantizer(features(2, 7, quantizer.dim, seed=seed))
    assert quantized.ids.shape == (2, 7, len(quantizer.codebook_sizes)) and quantized.ids.dtype == torch.int64
    assert (quantized.ids >= 0).all() and (quantized.ids < torch.tensor(quantizer.codebook_sizes)).all()
    torch.testing.assert_close(before.lookup(quantized.ids), quantized.features)


def test_gradients_pass_straight_through(config):
    quantizer = drawn(config)
    inputs = features(2, 7, quantizer.dim).requires_grad_()
    direction = features(2, 7, quantizer.dim, seed=1)
    (gradient,) = torch.autograd.grad((quantizer(inputs).features * direction).sum(), inputs)
    if config in (VECTORS, RESIDUAL, SHARED, CONFIGS["residual_bits"], CONFIGS["product"]):
        torch.testing.assert_close(gradient, direction)  # once, not once a level
    assert (gradient != 0).all()


def test_masked_positions_count_in_no_term(config):
    quantizer = drawn(config, training=True)
    points = features(3, 7, quantizer.dim)
    mask = torch.arange(7) < torch.tensor([[7], [6], [5]])
    others = torch.where(mask[..., None], points, features(3, 7, quantizer.dim, seed=1))
    one, other = deepcopy(quantizer)(points, mask), deepcopy(quantizer)(others, mask)
    assert set(one.losses) | set(one.stats)
    torch.testing.assert_close(one.losses, other.losses)
    torch.testing.assert_close(one.stats, other.stats)
    assert any(not torch.equal(value, quantizer(others).stats[name]) for name, value in one.stats.items())


def test_wrong_codes_are_codes_of_the_same_stream(config):
    quantizer = drawn(config)
    ids = quantizer(features(4, 30, quantizer.dim)).ids
    ids[:, -3:] = -1
    changed = quantizer.perturb(ids, 0.5, torch.Generator().manual_seed(1))
    assert (changed[:, -3:] == -1).all()
    assert (changed[:, :-3] >= 0).all() and (changed < torch.tensor(quantizer.codebook_sizes)).all()
    assert 0.2 < (changed != ids)[:, :-3].float().mean() < 0.6
    assert torch.equal(quantizer.perturb(ids, 0.0, torch.Generator()), ids)


def test_streams_are_named_after_branches():
    names = ["semantic_0", "semantic_1", "semantic_2", "pixels_0", "pixels_1", "edges"]
    streams = streams_of(CONFIGS["parallel"].build())
    assert [stream.name for stream in streams] == names
    assert [stream.size for stream in streams] == [19, 19, 19, 9, 9, 23]
    assert streams_of(RESIDUAL.build())[2] == Stream("codes_2", 19)


def library_book(layer, book):
    layer._codebook.embed.data.copy_(book[None])


@pytest.mark.parametrize("config", [RESIDUAL, SHARED], ids=["apart", "shared"])
def test_residual_is_that_of_the_library(config):
    ours = drawn(config, training=True)
    shared = config.is_shared
    theirs = ResidualVQ(dim=6, codebook_size=19, num_quantizers=3, shared_codebook=shared, commitment_weight=0.25)
    for index, layer in enumerate(theirs.layers):
        book = ours.books[0 if shared else index]
        book.codebook.copy_(features(19, 6, seed=0 if shared else index) / (index + 1))
        library_book(layer, book.codebook)
    points = features(2, 31, 6)
    quantized = ours(points)
    wanted, ids, losses = theirs.train()(points)
    assert torch.equal(quantized.ids, ids)
    torch.testing.assert_close(quantized.features, wanted)
    torch.testing.assert_close(quantized.losses["commitment"], losses.mean())


def test_residual_loss_is_the_distance_from_the_sum_so_far():
    quantizer = drawn(RESIDUAL, training=True)
    points = features(2, 31, 6)
    quantized = deepcopy(quantizer)(points)
    sums = [quantizer.books[0].lookup(quantized.ids[..., :1])]
    for level in (1, 2):
        sums.append(sums[-1] + quantizer.books[level].lookup(quantized.ids[..., level : level + 1]))
    wanted = torch.stack([(points - one).square().mean() for one in sums]).mean()
    torch.testing.assert_close(quantized.losses["commitment"], 0.25 * wanted)


def test_a_shared_book_moves_once_by_all_levels():
    quantizer = drawn(replace(SHARED, quantizer=replace(VECTORS, restart_below=0.0)), training=True)
    quantizer.books[0].counts.fill_(1.0)
    ids = quantizer(features(2, 31, 6)).ids
    counts = torch.bincount(ids.flatten(), minlength=19)
    torch.testing.assert_close(quantizer.books[0].counts, 0.9 + 0.1 * counts)
    assert quantizer.books[0].training


@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (7, 4, 3), (16, 11)])
def test_scalars_are_those_of_the_library(levels):
    points = features(2, 500, len(levels), scale=2.0)
    quantized = FiniteScalarConfig(levels=levels).build()(points)
    wanted, ids = FSQ(list(levels))(points)
    assert torch.equal(quantized.ids[..., 0], ids.long())
    torch.testing.assert_close(quantized.features, wanted)


def test_residual_scalars_are_those_of_the_library():
    # Odd levels, since the library has none in the middle of an even number of them.
    config = ResidualConfig(quantizer=FiniteScalarConfig(levels=(5, 5, 5)), depth=3, shrink=5.0)
    points = features(2, 500, 3, scale=0.6)
    quantized = config.build()(points)
    wanted, ids = ResidualFSQ(levels=[5, 5, 5], dim=3, num_quantizers=3, bound_hard_clamp=False)(points)
    same = (quantized.ids == ids).all(dim=-1)
    assert same.float().mean() > 0.99  # ours widens the bound by a thousandth, so that all levels can be reached
    torch.testing.assert_close(quantized.features[same], wanted[same])


def test_residual_bits_are_those_of_the_library():
    bits = LookupFreeConfig(bits=5, bit_order="most_significant_first", entropy_bits=5)
    points = features(2, 50, 5)
    quantized = ResidualConfig(quantizer=bits, depth=4, shrink=2.0).build()(points)
    wanted, ids, _ = ResidualLFQ(dim=5, codebook_size=32, num_quantizers=4)(points)
    assert torch.equal(quantized.ids, ids.long())
    torch.testing.assert_close(quantized.features, wanted)


def test_product_of_residuals_is_that_of_the_library():
    ours = drawn(CONFIGS["product_of_residuals"])
    theirs = GroupedResidualVQ(dim=12, groups=2, codebook_size=19, num_quantizers=3).eval()
    for part, group in zip(ours.parts, theirs.rvqs, strict=True):
        for index, (book, layer) in enumerate(zip(part.books, group.layers, strict=True)):
            book.codebook.copy_(features(19, 6, seed=index))
            library_book(layer, book.codebook)
    points = features(2, 31, 12)
    wanted, ids, _ = theirs(points)
    quantized = ours(points)
    assert torch.equal(quantized.ids, torch.cat(list(ids), dim=-1))
    torch.testing.assert_close(quantized.features, wanted)


def test_terms_of_a_product_are_means_and_those_of_branches_stay_apart():
    points = features(2, 31, 12)
    product, parallel = drawn(replace(CONFIGS["product"], groups=2)), drawn(CONFIGS["disentangled"])
    halves = [part(half) for part, half in zip(product.parts, points.chunk(2, dim=-1), strict=True)]
    mean = torch.stack([half.losses["commitment"] for half in halves]).mean()
    torch.testing.assert_close(product(points).losses["commitment"], mean)
    assert set(parallel(points).losses) == {"semantic_commitment", "edges_commitment", "disentanglement"}
    assert {"semantic_code_usage", "edges_code_usage"} <= set(parallel(points).stats)


def test_disentanglement_turns_branches_to_right_angles():
    quantizer = drawn(CONFIGS["disentangled"])
    points = features(1, 40, 12).requires_grad_()
    quantized = quantizer(points)
    semantic, edges = quantized.features.chunk(2, dim=-1)
    cosines = (semantic * edges).sum(-1) / (semantic.norm(dim=-1) * edges.norm(dim=-1))
    torch.testing.assert_close(quantized.losses["disentanglement"], 0.1 * cosines.square().mean())
    (gradient,) = torch.autograd.grad(quantized.losses["disentanglement"], points)
    assert gradient.abs().sum() > 0


def test_one_index_is_nearest_in_all_tables_together():
    quantizer = drawn(TABLES, training=True)
    points = features(3, 50, 6)
    rows = quantizer.lookup(torch.arange(23)[None, :, None])
    parts = [torch.nn.functional.normalize(part, dim=-1) for part in points.split((4, 2), dim=-1)]
    distances = [torch.cdist(*pair).square() for pair in zip(parts, rows.split((4, 2), dim=-1), strict=True)]
    nearest = (distances[0] + 0.5 * distances[1]).argmin(dim=-1)
    quantized = quantizer(points)
    assert torch.equal(quantized.ids[..., 0], nearest)
    assert not torch.equal(nearest, distances[0].argmin(dim=-1))
    torch.testing.assert_close(quantized.features, rows[0, nearest])


def test_positions_have_codes_of_their_own_quantizer():
    quantizer = drawn(CONFIGS["in_turn"])
    points = features(2, 9, 6)
    ids = quantizer(points).ids
    assert quantizer.codebook_sizes == (19 + 23,)
    assert torch.equal(ids[:, :4], quantizer.first(points[:, :4]).ids)
    assert torch.equal(ids[:, 4:], 19 + quantizer.rest(points[:, 4:]).ids)
    changed = quantizer.perturb(ids, 1.0, torch.Generator().manual_seed(0))
    quantizer.check_positions(changed)
    ids[0, 6:] = -1
    quantizer.check_positions(ids)
    with pytest.raises(ValueError, match=r"codes of the first positions must lie in \[0, 19\), got 20"):
        quantizer.check_positions(torch.where(torch.arange(9)[:, None] == 3, 20, ids))
    with pytest.raises(ValueError, match=r"codes of the other positions must lie in \[19, 42\), got 18"):
        quantizer.check_positions(torch.where(torch.arange(9)[:, None] == 4, 18, ids))
    with pytest.raises(ValueError, match="positions must be more than the first 4, got 4"):
        quantizer(points[:, :4])


def test_a_tokenizer_refuses_codes_at_the_wrong_position():
    config = ImageTokenizerConfig(
        image_size_px=24,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        quantizer=CONFIGS["in_turn"],
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    )
    tokenizer = config.build().eval()
    tokens = tokenizer.encode(torch.zeros(2, 3, 24, 24))
    prefix = Tokens(torch.cat([tokens.ids[:, :5], torch.full((2, 1, 1), -1)], 1), torch.tensor([5, 5]), tokens.layout)
    assert tokenizer.decode(prefix).shape == (2, 3, 24, 24)
    assert tokenizer.code_features().shape == (42, 6)
    with pytest.raises(ValueError, match="codes of the other positions must lie in"):
        tokenizer.embed(Tokens(tokens.ids % 19, tokens.lengths, tokens.layout))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(RESIDUAL, depth=0), "depth must be 1 or more, got 0"),
        (replace(RESIDUAL, shrink=0.0), "shrink must be above 0, got 0.0"),
        (ProductConfig(quantizer=VECTORS, groups=0), "groups must be 1 or more, got 0"),
        (ParallelConfig(branches=()), "branches must be one or more with distinct names"),
        (ParallelConfig(branches=(BRANCHES[0], BRANCHES[0])), "distinct names, got .'semantic', 'semantic'"),
        (ParallelConfig(branches=BRANCHES, disentanglement=1.0), "disentanglement must be 0 unless .* got .6, 4, 6"),
        (ParallelConfig(branches=BRANCHES[:1], disentanglement=1.0), "disentanglement must be 0 unless two or more"),
        (InTurnConfig(num_first=0, first=VECTORS, rest=TABLES), "num_first must be 1 or more, got 0"),
        (InTurnConfig(num_first=1, first=VECTORS, rest=LookupFreeConfig(bits=5)), "must have one width, got 6 and 5"),
        (InTurnConfig(num_first=1, first=VECTORS, rest=BITS), "one stream each, got code books of"),
        (replace(TABLES, weights=(1.0,)), "weights must be one above 0 for each of 2 tables"),
        (replace(TABLES, weights=(1.0, 0.0)), "weights must be one above 0"),
        (replace(TABLES, dims=(4, 3)), "dims must add up to the 6 of the code book, got .4, 3"),
    ],
)
def test_bad_configs_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        config.build()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tables", "residual", "shared", "product", "parallel", "in_turn"])
def test_training_uses_the_code_books(name):
    quantizer = drawn(replace(CONFIGS[name], num_first=50) if name == "in_turn" else CONFIGS[name], training=True)
    encoder, decoder = torch.nn.Linear(3, quantizer.dim), torch.nn.Linear(quantizer.dim, 3)
    parts = [*encoder.parameters(), *decoder.parameters(), *quantizer.parameters()]
    optimizer = torch.optim.Adam(parts, lr=0.02)
    errors = []
    for step in range(80):
        points = 2 * torch.rand(4, 100, 3, generator=torch.Generator().manual_seed(step)) - 1
        quantized = quantizer(encoder(points))
        error = (decoder(quantized.features) - points).square().mean()
        optimizer.zero_grad()
        (error + sum(quantized.losses.values())).backward()
        optimizer.step()
        errors.append(error.item())
    usage = [value.item() for name, value in quantized.stats.items() if name.endswith("code_usage")]
    assert min(usage) >= 0.9 and errors[-1] < 0.3 * errors[0]
