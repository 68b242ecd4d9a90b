import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.evaluation.frechet import frechet_distance, pooled_features


def rows_with(mean, covariance, number, seed=0):
    """Rows whose sample mean and covariance are exactly these."""
    dim = len(mean)
    rows = torch.randn(number, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    rows = rows - rows.mean(dim=0)
    white = rows @ torch.linalg.inv(torch.linalg.cholesky(rows.T @ rows / (number - 1)).T)
    return mean + white @ torch.linalg.cholesky(covariance).T


def test_gaussians_along_the_axes_have_the_distance_of_their_means_and_spreads():
    means = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.5]]).double()
    spreads = torch.tensor([[1.0, 2.0, 0.3], [2.5, 2.0, 1.0]]).double()
    one, other = (rows_with(mean, spread.diag() ** 2, 40, seed=7) for mean, spread in zip(means, spreads, strict=True))
    expected = (means[0] - means[1]).square().sum() + (spreads[0] - spreads[1]).square().sum()
    assert frechet_distance(one, other) == pytest.approx(expected.item(), abs=1e-9)


@given(seed=st.integers(0, 1000), number=st.integers(8, 50))
def test_it_equals_the_formula_with_a_matrix_root(seed, number):
    generator = torch.Generator().manual_seed(seed)
    roots = torch.randn(2, 5, 5, dtype=torch.float64, generator=generator)
    means = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    covariances = roots @ roots.mT + 0.1 * torch.eye(5)
    one, other = (rows_with(*each, number, seed) for each in zip(means, covariances, strict=True))
    traces = covariances.diagonal(dim1=1, dim2=2).sum()
    shared = torch.linalg.eigvals(covariances[0] @ covariances[1]).real.clamp_min(0).sqrt().sum()
    expected = (means[0] - means[1]).square().sum() + traces - 2 * shared
    assert frechet_distance(one, other) == pytest.approx(expected.item(), abs=1e-6)


def test_equal_sets_are_no_distance_apart_and_order_does_not_matter():
    rows = torch.randn(9, 20, generator=torch.Generator().manual_seed(0))  # fewer rows than features
    assert frechet_distance(rows, rows.flip(0)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(rows, 2 * rows[:7]) == pytest.approx(frechet_distance(2 * rows[:7], rows))


def test_means_of_pictures_are_far_from_pictures():
    """What pixel errors do not tell: blur has less spread."""
    pictures = torch.rand(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    means = pictures.mean(dim=0) + 0.5 * (pictures - pictures.mean(dim=0))
    sharp, blurred = (pooled_features(one, lambda images: [images[:, :1], images]) for one in (pictures, means))
    assert sharp.shape == (64, 3)
    torch.testing.assert_close(sharp, pictures.mean(dim=(2, 3)))
    assert frechet_distance(sharp, blurred) > 0.2 * sharp.var(dim=0).sum()


def test_one_picture_has_no_spread():
    with pytest.raises(ValueError, match="features must be of at least 2 pictures, got 1 and 4"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))
