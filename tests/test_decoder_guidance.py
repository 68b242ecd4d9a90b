import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance as Guider
from hypothesis import given
from hypothesis import strategies as st

from rebus.model.decoder_guidance import AdaptiveProjectedGuidance, guide


def velocities(number, seed=0):
    """Pairs of velocities with and without codes, far apart enough for a threshold of some units to cut them."""
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randn(number, 2, 3, 4, 5, 7, generator=generator)
    return [(with_codes, without) for with_codes, without in pairs]


@pytest.mark.parametrize(
    "config",
    [
        AdaptiveProjectedGuidance(scale=7.5),
        AdaptiveProjectedGuidance(scale=0.0, norm_threshold=100.0, momentum=0.3, eta=0.5),
        AdaptiveProjectedGuidance(scale=2.0, norm_threshold=9.0, momentum=0.0, eta=1.0),
    ],
)
def test_it_equals_the_guider_of_diffusers(config):
    """As in the paper: from the velocity with codes on, by one less than the scale."""
    guider = Guider(
        guidance_scale=config.scale - 1,
        use_original_formulation=True,
        adaptive_projected_guidance_momentum=config.momentum,
        adaptive_projected_guidance_rescale=config.norm_threshold,
        eta=config.eta,
    )
    ours = guide(config)
    for step, (with_codes, without) in enumerate(velocities(4)):
        guider.set_state(step, 4, torch.tensor(1 - step / 4))
        guider.prepare_inputs({"latents": (with_codes, without)})
        expected = guider.forward(with_codes, without).pred
        torch.testing.assert_close(ours(with_codes, without), expected, atol=1e-5, rtol=1e-5)


@given(scale=st.floats(0, 20).filter(lambda scale: scale != 1), seed=st.integers(0, 99))
def test_with_nothing_cut_or_turned_it_is_plain_guidance(scale, seed):
    ((with_codes, without),) = velocities(1, seed)
    projected = AdaptiveProjectedGuidance(scale=scale, norm_threshold=1e6, momentum=0.0, eta=1.0)
    plain = guide(scale)(with_codes, without)
    torch.testing.assert_close(guide(projected)(with_codes, without), plain, atol=1e-4, rtol=1e-4)


@given(scale=st.floats(1.01, 50), threshold=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_a_step_is_bounded_and_adds_nothing_along_the_velocity(scale, threshold, seed):
    ours = guide(AdaptiveProjectedGuidance(scale=scale, norm_threshold=threshold))
    for with_codes, without in velocities(3, seed):
        added = ours(with_codes, without) - with_codes
        assert added.flatten(1).norm(dim=1).max() <= (scale - 1) * threshold * 1.001
        along = (added * with_codes).flatten(1).sum(dim=1)
        torch.testing.assert_close(along, torch.zeros(3), atol=2e-3 * scale, rtol=0)


def test_a_picture_is_guided_the_same_alone_and_in_a_batch():
    together = guide(AdaptiveProjectedGuidance(scale=4.0))
    alone = guide(AdaptiveProjectedGuidance(scale=4.0))
    for with_codes, without in velocities(3):
        row = alone(with_codes[1:2], without[1:2])
        torch.testing.assert_close(row[0], together(with_codes, without)[1], atol=1e-5, rtol=0)


def test_where_codes_change_nothing_neither_does_guidance():
    velocity = torch.randn(2, 3, 4, 5)
    assert torch.equal(guide(AdaptiveProjectedGuidance(scale=5.0))(velocity, velocity), velocity)


def test_a_scale_of_one_needs_no_second_velocity():
    assert guide(1.0) is None and guide(AdaptiveProjectedGuidance(scale=1.0)) is None


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_wrong_scale_is_refused(wrong):
    for guidance in (wrong, AdaptiveProjectedGuidance(scale=wrong)):
        with pytest.raises(ValueError, match="guidance must be at least 0 and finite, got"):
            guide(guidance)


@pytest.mark.parametrize("wrong", [{"norm_threshold": 0.0}, {"momentum": 1.0}, {"momentum": -1.5}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValueError, match="must be (more than 0|between -1 and 1), got"):
        AdaptiveProjectedGuidance(scale=2.0, **wrong)
