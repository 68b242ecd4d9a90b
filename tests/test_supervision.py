from dataclasses import replace

import pytest
import torch

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision import SupervisionConfig

PAD = 3
TERMS = ("pixel_l1", "pixel_l2", "contrastive", "caption", "region")
NUM_NAMES = 11
GRID = Canvas(feature_dim=2, num_features=5, on_grid=True, grids=((1, 5),), patch_px=8)


def inputs(batch=6, positions=5, dim=2, length=7):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, 8, 8, generator=generator)
    features = torch.randn(batch, positions, dim, generator=generator)
    captions = torch.randint(4, 19, (batch, length), generator=generator)
    captions[:, -2:] = PAD
    regions = torch.randint(NUM_NAMES, (batch, positions), generator=generator)
    return images, images + 0.1, features, torch.ones(batch, positions, dtype=torch.bool), captions, regions


def build(**weights):
    torch.manual_seed(0)
    return SupervisionConfig(text_dim=64, text_depth=1, **weights).build(19, PAD, NUM_NAMES, GRID)


def test_terms_are_weighted_and_a_term_of_weight_zero_is_not_computed():
    full = build(pixel_l1=2.0, caption=1.0)(*inputs())
    torch.testing.assert_close(full["pixel_l1"], torch.tensor(0.2))
    assert set(full) == {"pixel_l1", "pixel_l2", "contrastive", "caption", "region"}
    pixels = build(contrastive=0.0, caption=0.0, region=0.0)
    assert set(pixels(*inputs())) == {"pixel_l1", "pixel_l2"}
    assert not hasattr(pixels, "text_encoder") and not hasattr(pixels, "caption_decoder")


def test_padding_changes_nothing():
    supervision = build(caption=1.0, contrastive=1.0)
    images, rebuilt, features, mask, captions, regions = inputs()
    longer = torch.nn.functional.pad(captions, (0, 4), value=PAD)
    short = supervision(images, rebuilt, features, mask, captions, regions)
    long = supervision(images, rebuilt, features, mask, longer, regions)
    for name in short:
        torch.testing.assert_close(short[name], long[name])


def test_contrastive_does_not_punish_equal_captions():
    supervision = build(contrastive=1.0)
    images, rebuilt, features, mask, captions, regions = inputs()
    captions[:] = captions[0]
    features[:] = features[0]
    loss = supervision(images, rebuilt, features, mask, captions, regions)["contrastive"]
    torch.testing.assert_close(loss, torch.tensor(len(captions)).float().log())


@pytest.mark.parametrize("term", ["contrastive", "caption", "region"])
def test_it_teaches_features_the_text(term):
    supervision = build(**{name: float(name == term) for name in TERMS})
    images, rebuilt, features, mask, captions, regions = inputs()
    features.requires_grad_()
    optimizer = torch.optim.AdamW([features, *supervision.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        loss = supervision(images, rebuilt, features, mask, captions, regions)[term]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_regions_need_a_grid():
    with pytest.raises(ValueError, match="supervision.region must be 0 for codes that lie on no grid, got 0.1"):
        SupervisionConfig().build(19, PAD, NUM_NAMES, replace(GRID, on_grid=False))
