"""Scales that add up, against the plain algorithm of VAR."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.layouts.contract import Extras
from rebus.tokenizers.layouts.multi_scale import MultiScaleConfig, _shared
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.tokens import Stream

SCALES = (1, 2, 3, 5)
CODES = VectorConfig(codebook_size=19, dim=4).build().eval()


def layout(**fields):
    torch.manual_seed(0)
    return MultiScaleConfig(**{"scales": SCALES, "num_phi": 3} | fields).build(4, 4, (((5, 5),),))


def grid(number=3):
    return torch.randn(number, 25, 4, generator=torch.Generator().manual_seed(1))


def quantized(scales, cells, extras=None):
    """What becomes of the cells of a grid; the projection to codes is left out."""
    positions = scales(Patches(cells, ((5, 5),)))
    return scales.quantize(positions.features, positions.mask, CODES, extras or Extras())


def plain(cells, phi, codebook):
    """Ids, partial sums and loss of VAR's algorithm 1, without code book updates; the code book is searched whole."""
    target = cells.mT.reshape(len(cells), 4, 5, 5)
    total, ids, sums, loss = torch.zeros_like(target), [], [], 0
    for index, scale in enumerate(SCALES):
        rest = target - total
        small = rest if scale == 5 else F.interpolate(rest, size=(scale, scale), mode="area")
        rows = small.permute(0, 2, 3, 1).reshape(len(cells), -1, 4)
        ids.append(((rows.unsqueeze(2) - codebook) ** 2).sum(dim=-1).argmin(dim=-1))
        grown = codebook[ids[-1]].reshape(len(cells), scale, scale, 4).permute(0, 3, 1, 2)
        grown = grown if scale == 5 else F.interpolate(grown, size=(5, 5), mode="bicubic")
        ticks = np.linspace(1 / 2 / 3, 1 - 1 / 2 / 3, 3)
        convolved = phi[int(np.argmin(np.abs(ticks - index / 3)))](grown)
        total = total + 0.5 * grown + 0.5 * convolved
        sums.append(total.flatten(2).mT)
        loss = loss + (1 + 0.25) * F.mse_loss(total, target) / 4
    return torch.cat(ids, dim=1), sums, loss


def test_ids_sums_and_loss_are_those_of_var():
    scales = layout()
    with torch.no_grad():
        ids, sums, loss = plain(grid(), scales.phi, CODES.codebook)
        coded = quantized(scales, grid())
    assert torch.equal(coded.ids[..., 0], ids)
    torch.testing.assert_close(coded.features, sums[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(coded.losses["scales"], loss)
    for index, stop in enumerate((1, 5, 14, 39)):
        held = (torch.arange(39) < stop + (stop < 14)).expand(3, -1)  # one code of a further scale adds nothing
        arranged, mask = scales.arrange(CODES.lookup(ids[..., None]) * held[..., None], held)
        torch.testing.assert_close(arranged, sums[index], atol=1e-5, rtol=1e-5)
        assert mask.all()


def test_without_a_whole_first_scale_nothing_counts():
    coarse = layout(scales=(2, 5), num_phi=2)
    arranged, mask = coarse.arrange(torch.ones(1, 29, 4), torch.arange(29)[None] < 3)
    assert not mask.any() and not arranged.any()


def test_gradients_pass_straight_through_the_sum_and_pull_from_both_sides():
    scales, cells = layout(), grid().requires_grad_()
    coded = quantized(scales, cells)
    weights = torch.randn_like(coded.features)
    (own,) = torch.autograd.grad((coded.features * weights).sum(), cells, retain_graph=True)
    torch.testing.assert_close(own, weights)
    pulled = torch.autograd.grad(coded.losses["scales"], [cells, *scales.phi.parameters()])
    assert all(gradient.any() for gradient in pulled)


def test_ten_scales_share_four_convolutions_as_in_var():
    assert _shared(10, 4) == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # as its own code says
    assert _shared(4, 1) == [0] * 4 and _shared(1, 1) == [0] and _shared(4, 0) == []


def test_a_picture_lacks_the_scale_that_its_noise_says_in_training_alone():
    scales = layout(drop_rate=0.4)
    extras = Extras(noise=torch.tensor([[0.39, 0.5], [0.41, 0.5], [0.0, 0.99]]))
    whole, dropped = quantized(scales.eval(), grid(), extras), quantized(scales.train(), grid(), extras)
    torch.testing.assert_close(whole.features[1], dropped.features[1])
    assert torch.equal(whole.ids[0, :5], dropped.ids[0, :5]) and not torch.equal(whole.ids, dropped.ids)
    for picture, (start, stop) in ((0, (5, 14)), (2, (14, 39))):  # the third scale, and the last
        held = ((torch.arange(39) < start) | (torch.arange(39) >= stop))[None]
        codes = CODES.lookup(dropped.ids[picture : picture + 1]) * held[..., None]
        without, _ = scales.arrange(codes, held)
        torch.testing.assert_close(dropped.features[picture : picture + 1], without, atol=1e-5, rtol=1e-5)


def test_scales_are_lost_as_often_as_asked_and_the_first_never():
    scales = layout(drop_rate=0.3).train()
    noise = scales.draw_noise(4000, torch.Generator().manual_seed(0))
    kept = scales._kept(torch.zeros(4000, 1), noise).float().mean(dim=0)
    torch.testing.assert_close(kept, torch.tensor([1.0, 0.9, 0.9, 0.9]), atol=0.02, rtol=0)
    assert layout().draw_noise(2, torch.Generator()) is None


def test_without_commitment_the_quantizer_teaches_alone():
    coded = quantized(layout(num_phi=0, commitment=0.0), grid())
    assert set(coded.losses) == {"commitment"}


def test_levels_are_scales_and_double_by_default():
    assert layout().code_layout((Stream("code", 19),)).levels == (1, 4, 9, 25)
    for side, scales in ((1, (1,)), (5, (1, 2, 4, 5)), (8, (1, 2, 4, 8))):
        assert MultiScaleConfig(num_phi=0).build(4, 4, (((side, side),),)).scales == scales


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": (1, 2, 4)}, r"ascend from 1 or more to the grid's 5, got \(1, 2, 4\)"),
        ({"scales": (2, 1, 5)}, "scales must ascend"),
        ({"scales": (0, 5)}, "scales must ascend"),
        ({"num_phi": 5}, r"num_phi must be in 0..4, got 5"),
        ({"commitment": 0.0}, "commitment must be above 0, or 0 with num_phi = 0, got 0.0"),
        ({"drop_rate": 1.0}, r"drop_rate must be in \[0, 1\), and 0 for a single scale, got 1.0"),
        ({"drop_rate": 0.1, "scales": (5,), "num_phi": 1}, "drop_rate must be in"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        layout(**fields)


def test_a_grid_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match=r"grid of several scales must be square, got \(4, 5\)"):
        MultiScaleConfig().build(4, 4, (((4, 5),),))
