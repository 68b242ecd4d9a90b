import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.model.flow import integrate
from rebus.train.trajectories import long_steps, trajectory


def velocity(state, time):
    return torch.sin(3 * state) + time[:, None, None, None] ** 2


@pytest.fixture(scope="module")
def noise():
    return torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(0))


def test_a_trajectory_goes_from_noise_to_what_integration_ends_at(noise):
    points = trajectory(velocity, noise, 8)
    assert len(points) == 9 and torch.equal(points[0], noise)
    assert torch.equal(points[-1], integrate(velocity, noise, 8))


@given(seed=st.integers(0, 99))
def test_mean_velocities_lead_along_the_trajectory(seed):
    generator, numbers = torch.Generator().manual_seed(seed), (1, 2, 4)
    points = torch.randn(9, 3, 2, 5, 7, generator=generator, dtype=torch.float64)
    parts = torch.stack([torch.randint(number, (3,), generator=generator) for number in numbers], dim=1)
    steps = long_steps(points, numbers, parts)
    ends = steps.end(steps.velocity)
    for index, (number, length) in enumerate(((1, 8), (2, 4), (4, 2))):
        for row in range(3):
            place, begin = 3 * index + row, int(parts[row, index]) * length
            assert torch.equal(steps.start[place], points[begin, row])
            torch.testing.assert_close(ends[place], points[begin + length, row])
            assert steps.span[place] == 1 / number and steps.time[place] == 1 - begin / 8
            assert steps.reach_the_picture[place] == (parts[row, index] == number - 1)
