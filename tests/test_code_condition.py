import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from rebus.model.code_condition import (
    Codes,
    CrossAttentionConditionConfig,
    GridConditionConfig,
    PooledConditionConfig,
    SequenceConditionConfig,
)
from rebus.model.decoder import DecoderConfig
from rebus.model.flow import interpolate, velocity_target
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

CONDITIONS = {
    "grid": GridConditionConfig(),
    "sequence": SequenceConditionConfig(),
    "cross attention": CrossAttentionConditionConfig(),
    "pooled": PooledConditionConfig(),
}
PLACELESS = tuple(name for name in CONDITIONS if name != "grid")
STREAMS = (Stream("coarse", 7), Stream("fine", 11))
GRID = CodeLayout("grid", 6, STREAMS, grid=(2, 3))
ANY_LENGTH = CodeLayout("sequence", 5, STREAMS, grids=tuple((1, length) for length in range(1, 6)))


def lively(name, layout, latent_size=(8, 12), patch=4):
    """A decoder whose zero-initialised parts have been moved, so that all inputs reach its output."""
    config = DecoderConfig(
        latent_channels=3, latent_size=latent_size, patch=patch, dim=16, depth=2, num_heads=2,
        condition=CONDITIONS[name],
    )  # fmt: skip
    torch.manual_seed(0)
    decoder = config.build(layout, "cafe")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return decoder.eval()


def codes(number, positions):
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randint(stream.size, (number, positions), generator=generator) for stream in STREAMS]
    return torch.stack(columns, dim=-1)


def features_of(image):
    """Cells of an image of code features, none of them missing."""
    cells = rearrange(image, "b d h w -> b (h w) d")
    return Codes(cells, torch.ones(cells.shape[:2], dtype=torch.bool), tuple(image.shape[-2:]))


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_a_coarse_grid_is_enlarged_and_added(fold):
    patch_grid, image = (2 * fold, 3 * fold), torch.randn(2, 16, 2, 3)
    condition = GridConditionConfig().build(GRID, (patch_grid,), 16)
    patches = torch.randn(2, 6 * fold**2, 16)
    enlarged = rearrange(F.interpolate(image, scale_factor=fold, mode="nearest"), "b d h w -> b (h w) d")
    seen = condition(patches, features_of(image), patch_grid)
    torch.testing.assert_close(seen.tokens, patches + enlarged)
    assert not list(condition.parameters())


def test_a_fine_grid_is_merged_from_its_mean_on_and_may_learn_its_places():
    condition = GridConditionConfig().build(CodeLayout("grid", 24, STREAMS, grid=(4, 6)), ((2, 3),), 16)
    patches, image = torch.zeros(2, 6, 16), torch.randn(2, 16, 4, 6)
    merged = condition(patches, features_of(image), (2, 3)).tokens
    torch.testing.assert_close(merged, rearrange(F.avg_pool2d(image, 2), "b d h w -> b (h w) d"))
    mirrored = features_of(rearrange(image, "b d h (w q) -> b d h w q", q=2).flip(4).flatten(3))
    torch.testing.assert_close(condition(patches, mirrored, (2, 3)).tokens, merged)
    with torch.no_grad():
        condition.merge["2"].weight += torch.randn(16, 64)
    learned = condition(patches, features_of(image), (2, 3)).tokens
    assert not torch.allclose(condition(patches, mirrored, (2, 3)).tokens, learned, atol=1e-2)


@pytest.mark.parametrize("patch_grid", [(3, 3), (3, 4), (2, 6), (1, 1)])
def test_grids_that_do_not_lie_over_each_other_are_refused(patch_grid):
    with pytest.raises(ValueError, match=r"grid of the codes must be a whole number of times .* got 2 x 3"):
        GridConditionConfig().build(GRID, (patch_grid,), 16)
    with pytest.raises(ValueError, match="got a sequence"):
        GridConditionConfig().build(ANY_LENGTH, ((1, 5),), 16)


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_code_and_its_place_reach_the_velocity(name):
    decoder, ids = lively(name, GRID, (16, 24)), codes(1, 6)
    noisy, time = torch.randn(1, 3, 16, 24), torch.full((1,), 0.5)
    plain = decoder(noisy, time, ids)
    for position in range(6):
        for stream in range(2):
            missing = ids.clone()
            missing[:, position, stream] = -1
            assert not torch.allclose(decoder(noisy, time, missing), plain, atol=1e-4)
    assert not torch.allclose(decoder(noisy, time, ids.flip(1)), plain, atol=1e-4)
    assert decoder(noisy, time, torch.full_like(ids, -1)).isfinite().all()


@pytest.mark.parametrize("name", PLACELESS)
def test_pictures_of_lengths_of_their_own_share_a_batch(name):
    decoder, noise = lively(name, ANY_LENGTH), torch.randn(3, 3, 8, 12)
    rows = [Tokens(codes(3, 5)[row : row + 1, :length], torch.tensor([length]), ANY_LENGTH, ((1, length),))
            for row, length in enumerate((2, 5, 3))]  # fmt: skip
    together = decoder.render_latents(Tokens.cat(rows), noise, steps=2, guidance=1.5)
    for row, tokens in enumerate(rows):
        alone = decoder.render_latents(tokens, noise[row : row + 1], steps=2, guidance=1.5)
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
    shorter = decoder.render_latents(Tokens.cat(rows).prefix(2), noise, steps=2, guidance=1.5)
    torch.testing.assert_close(shorter[0], together[0], atol=1e-5, rtol=0)
    assert not torch.allclose(shorter[1:], together[1:], atol=1e-4)


def test_the_vector_is_the_mean_over_the_codes_that_are_held():
    condition = PooledConditionConfig().build(ANY_LENGTH, ((2, 3),), 16)
    features, held = torch.randn(2, 5, 16), torch.tensor([[True, True, False, False, False], [False] * 5])
    vector = condition(torch.zeros(2, 6, 16), Codes(features, held, (1, 5)), (2, 3)).vector
    mean = condition.mlp(features[0, :2] + condition.positions[:2]).mean(dim=0)
    torch.testing.assert_close(vector[0], mean, atol=1e-5, rtol=0)
    assert torch.equal(vector[1], condition.absent)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDITIONS)
def test_a_decoder_learns_to_paint_what_codes_say(name):
    """Two codes, each for a colour."""
    layout = CodeLayout("grid", 1, (Stream("only", 2),), grid=(1, 1))
    config = DecoderConfig(
        latent_channels=2, latent_size=(4, 4), patch=2, dim=16, depth=1, num_heads=2, condition=CONDITIONS[name]
    )
    torch.manual_seed(0)
    decoder = config.build(layout, "cafe")
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    clean = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]).repeat(8, 1)[:, :, None, None].expand(-1, -1, 4, 4)
    ids, time = torch.arange(16).reshape(16, 1, 1) % 2, torch.full((16,), 0.9)

    def error(shown):
        noise = torch.randn(clean.shape)
        return F.mse_loss(decoder(interpolate(clean, noise, time), time, shown), velocity_target(clean, noise))

    for _ in range(40):
        optimizer.zero_grad()
        error(ids).backward()
        optimizer.step()
    assert error(ids) < 2 and error(1 - ids) > 5 * error(ids)
