"""A decoder of several sizes: each picture at its own, and nothing changed for a decoder of one."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange, repeat

from rebus.model.code_condition import (
    CrossAttentionConditionConfig,
    GridConditionConfig,
    PooledConditionConfig,
    SequenceConditionConfig,
)
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.flow import integrate, interpolate, velocity_target
from rebus.model.grid_places import resized
from rebus.model.vae import VaeConfig
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

CONDITIONS = (
    GridConditionConfig(),
    SequenceConditionConfig(),
    CrossAttentionConditionConfig(),
    PooledConditionConfig(),
)
STREAMS = (Stream("only", 13),)
WIDE_OR_HIGH = CodeLayout("grid", 6, STREAMS, grids=((2, 3), (3, 2)))
GRID = CodeLayout("grid", 6, STREAMS, grid=(2, 3))
SEQUENCE = CodeLayout("sequence", 5, STREAMS, grids=tuple((1, length) for length in range(1, 6)))


def lively(layout, sizes, condition=CONDITIONS[0], depth=1, **fields):
    """A decoder whose zero-initialised parts have been moved, so that all inputs reach its output."""
    config = DecoderConfig(
        latent_channels=3, latent_sizes=sizes, patch=4, dim=16, depth=depth, num_heads=2, condition=condition, **fields
    )
    torch.manual_seed(0)
    decoder = config.build(layout, "cafe")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder.eval()


def pipeline_of(decoder):
    vae = VaeConfig(block_out_channels=(8, 8), latent_channels=3, norm_num_groups=4).build().eval()
    return DecoderPipeline(decoder, vae)  # a latent is 4 px


def tokens_of(layout, grid, number=1):
    length = grid[0] * grid[1]
    ids = torch.randint(13, (number, length, 1), generator=torch.Generator().manual_seed(length + grid[0]))
    return Tokens(ids, torch.full((number,), length), layout, (grid,) * number if layout.grids else ())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_each_picture_is_painted_at_its_size(condition):
    pipeline = pipeline_of(lively(WIDE_OR_HIGH, ((8, 12), (12, 8)), condition))
    for grid, size in (((2, 3), (32, 48)), ((3, 2), (48, 32))):
        tokens = tokens_of(WIDE_OR_HIGH, grid)
        painted = pipeline.render(tokens, steps=2, guidance=1.5)
        assert painted.shape == (1, 3, *size)
        assert torch.equal(pipeline.render(tokens, size=size, steps=2, guidance=1.5), painted)
        assert pipeline.render(tokens.prefix(4), steps=1).shape == painted.shape
        with pytest.raises(
            ValueError, match=f"size must be one of {size[0]} x {size[1]} px, got {size[1]} x {size[0]}"
        ):
            pipeline.render(tokens, size=size[::-1])
    mixed = Tokens.cat([tokens_of(WIDE_OR_HIGH, (2, 3)), tokens_of(WIDE_OR_HIGH, (3, 2))])
    with pytest.raises(
        ValueError, match=r"painted as one batch must have one size, got codes on \[\(2, 3\), \(3, 2\)\]"
    ):
        pipeline.render(mixed)


@pytest.mark.parametrize(("size", "fold"), [((8, 12), 1), ((12, 8), 1), ((24, 16), 2)])
def test_a_code_is_added_where_its_cell_lies_on_pictures_of_every_size(size, fold):
    decoder = lively(WIDE_OR_HIGH, ((8, 12), (12, 8), (24, 16)), depth=0)
    rows, columns = (side // 4 // fold for side in size)
    noisy, time = torch.randn(1, 3, *size), torch.full((1,), 0.5)
    tokens = tokens_of(WIDE_OR_HIGH, (rows, columns))
    plain = decoder(noisy, time, tokens.ids)
    for row, column in product(range(rows), range(columns)):
        ids = tokens.ids.clone()
        ids[:, row * columns + column] = -1
        moved = rearrange((decoder(noisy, time, ids) != plain)[0], "c (h p) (w q) -> h w (c p q)", h=rows, w=columns)
        expected = torch.zeros(rows, columns, dtype=torch.bool)
        expected[row, column] = True
        assert torch.equal(moved.any(dim=-1), expected)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_codes_of_one_grid_may_be_painted_larger(condition):
    pipeline = pipeline_of(lively(GRID, ((8, 12), (16, 24)), condition))
    tokens = tokens_of(GRID, (2, 3), number=2)
    small, large = (pipeline.render(tokens, size=size, steps=1) for size in (None, (64, 96)))
    assert small.shape == (2, 3, 32, 48) and large.shape == (2, 3, 64, 96)
    with pytest.raises(ValueError, match="size must be one of 32 x 48, 64 x 96 px, got 64 x 64"):
        pipeline.render(tokens, size=(64, 64))
    with pytest.raises(ValueError, match="size of the noise must be one of 8 x 12, 16 x 24, got 12 x 12"):
        pipeline.decoder.render_latents(tokens, torch.randn(2, 3, 12, 12))


def test_codes_without_places_may_be_painted_at_any_size():
    pipeline = pipeline_of(lively(SEQUENCE, ((12, 12), (8, 16), (16, 8)), CONDITIONS[1]))
    tokens = Tokens.cat([tokens_of(SEQUENCE, (1, 5)), tokens_of(SEQUENCE, (1, 3))])
    shapes = [tuple(pipeline.render(tokens, size=size, steps=1).shape[-2:]) for size in (None, (32, 64), (64, 32))]
    assert shapes == [(48, 48), (32, 64), (64, 32)]


def test_a_larger_picture_looks_at_later_times():
    decoder = lively(GRID, ((8, 12), (16, 24)), time_shift=1.5)
    tokens, noise = tokens_of(GRID, (2, 3)), torch.randn(1, 3, 16, 24)
    assert decoder.time_shift((8, 12)) == 1.5 and decoder.time_shift((16, 24)) == 3
    with torch.no_grad():
        expected = integrate(lambda state, time: decoder(state, time, tokens.ids), noise, 3, shift=3.0)
    torch.testing.assert_close(decoder.render_latents(tokens, noise, steps=3), expected, atol=1e-5, rtol=0)


def test_places_of_another_size_lie_between_the_learned_ones():
    table = torch.randn(24, 5)
    image = rearrange(table, "(h w) d -> 1 d h w", h=4)
    halved = rearrange(F.avg_pool2d(image, 2), "1 d h w -> (h w) d")
    torch.testing.assert_close(resized(table, (4, 6), (2, 3)), halved)
    assert resized(table, (4, 6), (4, 6)) is table
    rows = repeat(torch.arange(4.0), "h -> (h w) 1", w=6)
    torch.testing.assert_close(resized(rows, (4, 6), (4, 3)).view(4, 3), torch.arange(4.0)[:, None].expand(4, 3))


def test_a_decoder_of_one_size_has_the_parameters_it_always_had():
    several, one = lively(GRID, ((8, 12), (16, 24))), lively(GRID, ((8, 12),))
    assert several.state_dict().keys() == one.state_dict().keys()
    assert one.patch_positions.shape == (6, 16) and several.patch_positions.shape == (24, 16)
    config = DecoderConfig(latent_channels=3, latent_size=(8, 12), patch=4, dim=16, depth=1, num_heads=2)
    assert config.sizes == one.config.sizes
    assert {name: value.shape for name, value in config.build(GRID, "cafe").state_dict().items()} == {
        name: value.shape for name, value in one.state_dict().items()
    }


def test_sizes_survive_saving(tmp_path):
    decoder = lively(WIDE_OR_HIGH, ((8, 12), (12, 8)), CONDITIONS[2])
    decoder.save(tmp_path)
    loaded = DiffusionDecoder.load(tmp_path)
    assert loaded.config == decoder.config and loaded.layout == WIDE_OR_HIGH


@pytest.mark.parametrize(
    ("sizes", "layout", "message"),
    [
        (((8, 12), (12, 12)), GRID, "must have the same shapes, got sizes 8 x 12, 12 x 12 and grids 2 x 3"),
        (((8, 12),), WIDE_OR_HIGH, "must have the same shapes, got sizes 8 x 12 and grids 2 x 3, 3 x 2"),
        (((8, 12), (12, 18)), GRID, "latent_size must be a multiple of patch = 4, got \\(12, 18\\)"),
        (((8, 12), (8, 12)), GRID, "latent_sizes must be distinct"),
        (((0, 0),), GRID, "latent_size must be a multiple of patch = 4, got \\(0, 0\\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, layout, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(latent_sizes=sizes, dim=16, num_heads=2).build(layout, "cafe")


def test_a_time_shift_must_be_more_than_0():
    with pytest.raises(ValueError, match="time_shift must be more than 0, got 0"):
        DecoderConfig(time_shift=0.0)


@pytest.mark.slow
def test_it_learns_pictures_of_several_sizes():
    """Each of two codes is a colour, and its cell says where: side by side, or one above the other."""
    layout = CodeLayout("grid", 2, (Stream("only", 2),), grids=((1, 2), (2, 1)))
    config = DecoderConfig(
        latent_channels=1, latent_sizes=((2, 4), (4, 2)), patch=2, dim=32, depth=1, num_heads=2, condition=CONDITIONS[2]
    )
    torch.manual_seed(0)
    decoder = config.build(layout, "cafe")
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    ids, time = torch.cartesian_prod(torch.arange(2), torch.arange(2)).repeat(4, 1)[..., None], torch.full((16,), 0.9)

    def error(shown, rows):
        cells = rearrange(4.0 * ids - 2, "b (h w) c -> b c h w", h=rows)
        clean = repeat(cells, "b c h w -> b c (h p) (w q)", p=2, q=2)
        noise = torch.randn(clean.shape)
        return F.mse_loss(decoder(interpolate(clean, noise, time), time, shown), velocity_target(clean, noise))

    for step in range(60):
        optimizer.zero_grad()
        error(ids, 1 + step % 2).backward()
        optimizer.step()
    for rows in (1, 2):
        assert error(ids.flip(1), rows) > 4 * error(ids, rows) and error(ids, rows) < 0.5
