"""What single layouts promise beyond the contract: who sees whom, what is kept, how long a picture is."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import Extras
from rebus.tokenizers.layouts.holistic_grid import HolisticGridConfig
from rebus.tokenizers.layouts.lengths import LengthsConfig
from rebus.tokenizers.layouts.levels import ResidualLevelsConfig
from rebus.tokenizers.layouts.queries import QueriesConfig
from rebus.tokenizers.layouts.recurrent_crops import RecurrentCropsConfig
from rebus.tokenizers.layouts.slots import SlotsConfig
from rebus.tokenizers.layouts.two_grids import TwoGridsConfig
from rebus.tokenizers.tokens import CodeLayout, Stream

CODE = (Stream("code", 5),)
GRIDS = (((3, 3),),)
SMALL = {"depth": 1, "num_heads": 2}


def built(config, grids=GRIDS):
    """A layout of width 16 with codes of width 4, none of whose blocks is silent."""
    torch.manual_seed(0)
    layout = config.build(16, 4, grids)
    with torch.no_grad():
        for parameter in layout.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return layout.eval()


def patches(number=3, grid=(3, 3), seed=0):
    cells = torch.randn(number, grid[0] * grid[1], 16, generator=torch.Generator().manual_seed(seed))
    return Patches(cells, (grid,))


def changed(given, *cells):
    features = given.features.clone()
    features[:, list(cells)] += torch.randn(len(cells), features.shape[-1])
    return replace(given, features=features)


# Lengths


@pytest.mark.parametrize(
    ("draw", "shares"),
    [
        ("uniform", {length: 1 / 10 for length in range(2, 12)}),
        ("powers_of_two", {2: 1 / 4, 4: 1 / 4, 8: 1 / 4, 11: 1 / 4}),
        ("uniform_powers_of_two", {2: 0.1, 4: 0.2, 8: 0.4, 11: 0.3}),
    ],
)
def test_lengths_are_drawn_as_often_as_they_should(draw, shares):
    lengths = LengthsConfig(draw=draw, shortest_prefix=2).build(11).draw(8000, torch.Generator().manual_seed(0))
    counted = Counter(lengths.tolist())
    assert counted.keys() == shares.keys()
    assert all(abs(counted[length] / 8000 - share) < 0.02 for length, share in shares.items())


@given(st.sampled_from(["uniform", "powers_of_two", "uniform_powers_of_two"]), st.integers(1, 40), st.integers(1, 40))
def test_a_batch_has_one_length_in_range_where_that_is_asked(draw, one, other):
    shortest, num_positions = sorted((one, other))
    lengths = LengthsConfig(draw=draw, scope="batch", shortest_prefix=shortest).build(num_positions)
    drawn = lengths.draw(7, torch.Generator().manual_seed(one + other))
    assert drawn.shape == (7,) and len(set(drawn.tolist())) == 1
    assert shortest <= int(drawn[0]) <= num_positions
    assert sum(lengths.levels) == (0 if draw == "uniform" else num_positions)


@pytest.mark.parametrize("shortest", [0, 8])
def test_a_shortest_prefix_out_of_range_is_refused(shortest):
    with pytest.raises(ValueError, match=f"shortest_prefix must be in 1..7, got {shortest}"):
        QueriesConfig(num_queries=7, lengths=LengthsConfig(shortest_prefix=shortest)).build(16, 4, GRIDS)


def test_dropping_says_whether_a_prefix_decodes():
    def layout(lengths):
        return QueriesConfig(num_queries=7, lengths=lengths, **SMALL).build(16, 4, GRIDS).code_layout(CODE)

    assert not layout(None).prefix_decodable and layout(None).levels == ()
    uniform, powers = layout(LengthsConfig(draw="uniform")), layout(LengthsConfig(draw="uniform_powers_of_two"))
    assert uniform.prefix_decodable and uniform.levels == ()
    assert powers.prefix_decodable and powers.levels == (1, 1, 2, 3)


# Who sees whom


@pytest.mark.parametrize(("order", "is_causal"), [("causal", True), ("free", False)])
def test_causal_queries_see_no_later_ones_and_free_ones_do(order, is_causal):
    queries = built(QueriesConfig(num_queries=7, order=order, start="learned", **SMALL))
    before = queries(patches()).features
    with torch.no_grad():
        queries.queries[5:] += torch.randn(2, 16)
    after = queries(patches()).features
    assert torch.allclose(after[:, :5], before[:, :5], atol=1e-6) == is_causal
    assert not torch.allclose(after[:, 5:], before[:, 5:], atol=1e-3)


def test_behind_holistic_codes_a_cell_is_read_some_positions_before_its_own():
    layout = built(HolisticGridConfig(num_holistic=5, shift=2, **SMALL))
    codes, mask = torch.randn(2, 14, 4), torch.ones(2, 14, dtype=torch.bool)
    before, _ = layout.arrange(codes, mask)
    codes[:, 9] += torch.randn(2, 4)  # of the fifth cell
    after, _ = layout.arrange(codes, mask)
    moved = (after - before).abs().amax(dim=(0, 2)) > 1e-5
    assert moved.tolist() == [False] * 6 + [True] * 3
    assert layout.code_layout(CODE).levels == (5, 9)


def test_a_level_sees_no_later_one_and_merged_patches_no_finer_ones():
    levels = built(ResidualLevelsConfig(num_queries=8, shortest_prefix=2, depth=2, num_stages=2, num_heads=2))
    before = levels(patches()).features
    with torch.no_grad():
        levels.query_levels[2] += torch.randn(16)  # of the third and fourth query
    after = levels(patches()).features
    assert torch.allclose(after[:, :2], before[:, :2], atol=1e-6)
    assert not torch.allclose(after[:, 2:4], before[:, 2:4], atol=1e-3)
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-3)
    mask = levels._mask([2, 3], torch.device("cpu"))[0].int()
    assert mask.sum(dim=1).tolist() == [2, 2, 5, 5, 5, 6, 7, 9, 9, 13, 13, 13, 13]


def test_levels_start_from_what_the_levels_before_them_leave():
    levels = ResidualLevelsConfig(num_queries=32, num_stages=1, **SMALL).build(16, 4, (((4, 4),),))
    cells = torch.randn(2, 16, 4, 4)
    starts = levels._starts(cells) - torch.cat(
        [level.expand(size, -1) for level, size in zip(levels.query_levels, levels.sizes, strict=True)]
    )
    total, parts = 0, starts.mT.split(levels.sizes, dim=2)
    for part, shape in zip(parts, ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4)), strict=True):
        total = total + torch.nn.functional.interpolate(part.unflatten(2, shape), size=(4, 4))
    torch.testing.assert_close(total, cells, atol=1e-5, rtol=1e-5)


def test_levels_of_128_codes_take_the_nine_steps_of_the_paper():
    levels = ResidualLevelsConfig(num_queries=128).build(16, 4, GRIDS)
    layout = levels.code_layout(CODE)
    assert layout.levels == (1, 1, 1, 1, 4, 8, 16, 32, 64) and CodeLayout.from_dict(layout.to_dict()) == layout
    counted = Counter(levels.draw_lengths(8000, torch.Generator().manual_seed(0)).tolist())
    shares = {length: 0.2 * length / 124 for length in (4, 8, 16, 32, 64)} | {128: 0.8}
    assert all(abs(counted[length] / 8000 - share) < 0.02 for length, share in shares.items())


# Slots


def test_slots_know_no_order_of_patches_and_have_none_of_their_own():
    slots = built(SlotsConfig(num_slots=5, num_iterations=3, **SMALL))
    before = slots(patches()).features
    shuffled = replace(patches(), features=patches().features[:, torch.randperm(9)])
    torch.testing.assert_close(slots(shuffled).features, before, atol=1e-4, rtol=1e-4)
    order = torch.randperm(5)
    with torch.no_grad():
        slots.starts.copy_(slots.starts[order])
    torch.testing.assert_close(slots(patches()).features, before[:, order], atol=1e-4, rtol=1e-4)


def test_a_slot_is_the_mean_of_its_share():
    attention = built(SlotsConfig(num_slots=5, num_iterations=1, **SMALL)).competing[0]
    keys, values = torch.randn(2, 1, 2, 9, 8)
    slots = torch.randn(1, 5, 16)
    queries = attention.query(attention.slot_norm(slots)).view(5, 2, 8)
    scores = torch.einsum("shd,hnd->nhs", queries, keys[0]) / 8**0.5
    shares = scores.flatten(1).exp() / scores.flatten(1).exp().sum(dim=1, keepdim=True)
    means = shares.view(9, 2, 5) / shares.view(9, 2, 5).sum(dim=0)
    expected = torch.einsum("nhs,hnd->shd", means, values[0]).flatten(1)
    torch.testing.assert_close(attention._read(slots, keys, values)[0], expected, atol=1e-4, rtol=1e-4)


# Crops


def crops(grid=(3, 3), **fields):
    config = RecurrentCropsConfig(**{"num_positions": 5, "crops_per_side": 2, "crop_share": 0.6} | SMALL | fields)
    return built(config, ((grid,),))


def test_the_last_crop_changes_a_message_that_forgets_and_earlier_ones_one_that_remembers():
    layout = crops((4, 4), crop_share=0.5, order=(1, 2, 3, 0))
    cells = patches(grid=(4, 4))
    for remembers in (False, True):
        seen = []

        def code(features, remembers=remembers, seen=seen):
            seen.append(features)
            return features[..., :4] * remembers

        message = layout(cells, Extras(code=code)).features
        assert len(seen) == 3
        for crop, touched in (((0, 1, 4, 5), True), ((2, 3, 6, 7), remembers), ((8, 9, 12, 13), remembers)):
            other = layout(changed(cells, *crop), Extras(code=code)).features
            assert torch.allclose(other, message, atol=1e-5) != touched


def test_crops_go_from_edge_to_edge_and_say_how_far_they_moved():
    layout = crops((8, 5), crops_per_side=3, crop_share=0.375)
    assert layout.crop == (3, 2)
    assert layout.corners == [(top, left) for top in (0, 2, 5) for left in (0, 2, 3)]
    torch.testing.assert_close(layout.offsets[:4], torch.tensor([[0, 0], [0, 0.8], [0, 0.4], [0.5, -1.2]]))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.floats(0.05, 1))
def test_crops_leave_nothing_out_or_are_refused(rows, columns, number, share):
    config = RecurrentCropsConfig(crops_per_side=number, crop_share=share, **SMALL)
    try:
        layout = config.build(16, 4, (((rows, columns),),))
    except ValueError as error:
        assert "crop_share must be large enough" in str(error)
        assert number * max(share * rows, share * columns) < max(rows, columns) + 12 * share
        return
    seen = torch.zeros(rows, columns)
    for top, left in layout.corners:
        seen[top : top + layout.crop[0], left : left + layout.crop[1]] += 1
    assert seen.min() >= 1 and layout.offsets.shape == (number**2, 2)


# Two grids


def test_coarse_codes_grow_beside_the_fine_ones():
    layout = TwoGridsConfig().build(16, 4, (((2, 2), (4, 3)),))
    assert layout.code_layout(CODE).levels == (4, 12) and layout.arranged_dim(4) == 8
    coarse, fine = torch.tensor([1.0, 2, 3, 4]).expand(1, 4, 4).clone(), torch.randn(1, 12, 4)
    mask = torch.arange(16)[None] < 9
    arranged, arranged_mask = layout.arrange(torch.cat([coarse, fine], dim=1), mask)
    assert torch.equal(arranged[..., 4:], fine) and arranged_mask.sum() == 5
    torch.testing.assert_close(arranged[..., :4], coarse[:, :1].expand(1, 12, 4))  # an even map stays even
    with pytest.raises(ValueError, match="grids of the encoder must be two"):
        TwoGridsConfig().build(16, 4, GRIDS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (QueriesConfig(num_queries=0), "num_queries must be at least 1, got 0"),
        (HolisticGridConfig(num_holistic=0), "num_holistic must be at least 1, got 0"),
        (HolisticGridConfig(num_holistic=3, shift=4), "shift must be in 0..3, got 4"),
        (SlotsConfig(num_slots=0), "num_slots must be at least 1, got 0"),
        (SlotsConfig(num_iterations=0), "num_iterations must be at least 1, got 0"),
        (SlotsConfig(num_heads=3), "dim must be a multiple of num_heads = 3, got 16"),
        (RecurrentCropsConfig(num_positions=0), "num_positions must be at least 1, got 0"),
        (RecurrentCropsConfig(crop_share=0.0), "crop_share must be above 0 and at most 1, got 0.0"),
        (RecurrentCropsConfig(crops_per_side=2, crop_share=0.3), "large enough for 2 crops to cover a side of 3 cells"),
        (RecurrentCropsConfig(order=(0, 1)), r"order must hold each of 0..8 once, got \(0, 1\)"),
        (ResidualLevelsConfig(num_queries=12), "num_queries must be a power of two, got 12"),
        (ResidualLevelsConfig(shortest_prefix=128), "shortest_prefix must be a power of two in 1..64, got 128"),
        (ResidualLevelsConfig(drop_rate=1.5), r"drop_rate must be in \[0, 1\], got 1.5"),
        (ResidualLevelsConfig(depth=2, num_stages=3), r"num_stages must be in 1..2 \(depth\), got 3"),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(16, 4, GRIDS)
