from dataclasses import replace

import pytest
import torch

from rebus.tokenizers.code_projection import BranchProjectionConfig, LinearProjectionConfig

TWO = BranchProjectionConfig(code_dims=(3, 2), reads=((0, 4), (4, 10)), hidden_dim=8)


def test_a_fresh_projection_passes_on_the_first_features_of_what_is_read():
    features = torch.randn(2, 5, 10)
    assert torch.equal(LinearProjectionConfig().build(10, 4)(features), features[..., :4])
    assert torch.equal(TWO.build(10, 5)(features), features[..., [0, 1, 2, 4, 5]])


def test_a_branch_learns_from_what_it_reads_and_from_nothing_else():
    projection = TWO.build(10, 5)
    for network in projection.networks:
        torch.nn.init.normal_(network[-1].weight)
    features = torch.randn(2, 5, 10, requires_grad=True)
    projection(features)[..., 3:].square().sum().backward()
    assert features.grad is not None
    assert not features.grad[..., :4].any() and features.grad[..., 4:].any()
    assert not projection.networks[0][1].weight.grad.any() and projection.networks[1][1].weight.grad.any()


def test_without_ranges_each_branch_reads_all():
    assert replace(TWO, reads=()).build(10, 5).reads == ((0, 10), (0, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_dims": (3, 3)}, "code_dims must add up to the quantizer's 5"),
        ({"reads": ((0, 4),)}, r"reads must be 2 ranges within 0..10, got \(\(0, 4\),\)"),
        ({"reads": ((0, 4), (4, 11))}, "reads must be 2 ranges within 0..10"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TWO, **changes).build(10, 5)
