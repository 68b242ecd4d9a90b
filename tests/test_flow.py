import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from rebus.model.flow import integrate, interpolate, logit_normal_times, shifted, velocity_target


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 5, 7, generator=generator), torch.randn(3, 2, 5, 7, generator=generator)


def test_noise_is_at_time_one_and_data_at_time_zero(pair):
    clean, noise = pair
    assert torch.equal(interpolate(clean, noise, torch.ones(3)), noise)
    assert torch.equal(interpolate(clean, noise, torch.zeros(3)), clean)
    mixed = interpolate(clean, noise, torch.tensor([0.0, 1.0, 0.5]))
    assert torch.equal(mixed[0], clean[0]) and torch.equal(mixed[1], noise[1])


@given(early=st.floats(0, 1), late=st.floats(0, 1))
def test_the_target_is_the_speed_along_the_line(early, late):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64)
    moved = interpolate(clean, noise, torch.tensor([late]).double())
    moved = moved - interpolate(clean, noise, torch.tensor([early]).double())
    torch.testing.assert_close(moved, velocity_target(clean, noise) * (late - early), atol=1e-6, rtol=0)


def curved(state, time):
    """A velocity that bends, so that solvers differ."""
    return torch.sin(3 * state) + time[:, None, None, None] ** 2 - 0.3 * state


def scheduled(state, steps, shift):
    """Integrates by the scheduler of diffusers, whose own times would end at 0.001 instead of 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
    for timestep in scheduler.timesteps:
        speed = curved(state, (timestep / 1000).expand(len(state)))
        state = scheduler.step(speed, timestep, state, return_dict=False)[0]
    return state


def scheduled_by_heun(state, steps):
    """The same by Heun's; its times cannot be given, so that they are set here."""
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    times = torch.linspace(1, 0, steps + 1)
    scheduler.sigmas = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    scheduler.set_begin_index(0)
    for timestep in scheduler.timesteps:
        speed = curved(state, (timestep / 1000).expand(len(state)))
        state = scheduler.step(speed, timestep, state, return_dict=False)[0]
    return state


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 25])
def test_it_equals_the_scheduler_of_diffusers(steps, shift, pair):
    seen = []

    def velocity(state, time):
        seen.append(time)
        return curved(state, time)

    _, noise = pair
    painted = integrate(velocity, noise, steps, shift=shift)
    torch.testing.assert_close(painted, scheduled(noise, steps, shift), atol=1e-5, rtol=0)
    assert len(seen) == steps and all(time.dtype == torch.float32 and time.shape == (3,) for time in seen)


@pytest.mark.parametrize("steps", [1, 2, 4, 25])
def test_heun_equals_the_scheduler_of_diffusers(steps, pair):
    _, noise = pair
    painted = integrate(curved, noise, steps, solver="heun")
    torch.testing.assert_close(painted, scheduled_by_heun(noise, steps), atol=1e-5, rtol=0)


def test_heun_comes_closer_in_as_many_evaluations(pair):
    _, noise = pair
    exact = integrate(curved, noise, 400)
    euler, heun = integrate(curved, noise, 15), integrate(curved, noise, 8, solver="heun")
    assert (heun - exact).abs().max() < 0.5 * (euler - exact).abs().max()


@given(time=st.floats(0, 1), shift=st.floats(0.1, 10), again=st.floats(0.1, 10))
def test_shifts_keep_the_ends_and_follow_each_other(time, shift, again):
    times = torch.tensor([0.0, time, 1.0], dtype=torch.float64)
    moved = shifted(times, shift)
    assert moved[0] == 0 and torch.isclose(moved[2], times[2]) and torch.equal(shifted(times, 1.0), times)
    torch.testing.assert_close(shifted(moved, again), shifted(times, shift * again))


@pytest.mark.parametrize("steps", [1, 3])
def test_a_known_line_is_followed_to_its_end_in_any_number_of_steps(steps, pair):
    clean, noise = pair
    painted = integrate(lambda state, time: velocity_target(clean, noise), noise, steps)
    torch.testing.assert_close(painted, clean, atol=1e-5, rtol=0)


def test_no_steps_are_refused(pair):
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        integrate(lambda state, time: state, pair[1], 0)


def test_times_have_gaussian_logits():
    times = logit_normal_times(20_000, mean=0.5, std=1.5, generator=torch.Generator().manual_seed(0))
    logits = times.logit()
    assert times.dtype == torch.float32 and 0 < times.min() and times.max() < 1
    assert abs(logits.mean() - 0.5) < 0.05 and abs(logits.std() - 1.5) < 0.05
