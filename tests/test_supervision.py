from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import SiglipConfig, SiglipModel

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.adversarial import AdversarialConfig
from rebus.tokenizers.supervision.contract import Frozen, Term
from rebus.tokenizers.supervision.distillation import DistillationConfig
from rebus.tokenizers.supervision.feature_networks import Vgg16Config
from rebus.tokenizers.supervision.language_caption import LanguageCaptionConfig
from rebus.tokenizers.supervision.perceptual import PerceptualConfig
from rebus.tokenizers.supervision.proxy_codes import ProxyCodesConfig
from rebus.tokenizers.supervision.supervision import Supervision, SupervisionConfig
from rebus.tokenizers.supervision.teachers import TokenizerTeacherConfig
from rebus.tokenizers.supervision.texts import sigmoid_matching

PAD = 3
TERMS = ("pixel_l1", "pixel_l2", "contrastive", "caption", "region")
NUM_NAMES = 11
GRID = Canvas(feature_dim=2, num_features=5, on_grid=True, grids=((1, 5),), patch_px=8)


def build(**weights):
    torch.manual_seed(0)
    return SupervisionConfig(text_dim=64, text_depth=1, **weights).build(19, PAD, NUM_NAMES, GRID)


def test_terms_are_weighted_and_a_term_of_weight_zero_is_not_computed(inputs):
    full = build(pixel_l1=2.0, caption=1.0)(inputs())
    torch.testing.assert_close(full["pixel_l1"], torch.tensor(0.2))
    assert set(full) == {"pixel_l1", "pixel_l2", "contrastive", "caption", "region"}
    pixels = build(contrastive=0.0, caption=0.0, region=0.0)
    assert set(pixels(inputs())) == {"pixel_l1", "pixel_l2"}
    assert set(pixels.terms) == {"pixels"}


def test_a_term_of_weight_zero_is_not_even_loaded():
    nowhere = Path("nowhere")
    teacher = TokenizerTeacherConfig(path=nowhere)
    others = {
        "perceptual": PerceptualConfig(network=Vgg16Config(path=nowhere), weight=0.0),
        "distillation": DistillationConfig(teacher=teacher, weight=0.0),
        "alignment": DistillationConfig(teacher=teacher, weight=0.0),
        "language_caption": LanguageCaptionConfig(path=nowhere, weight=0.0),
        "proxy_codes": ProxyCodesConfig(path=nowhere, weight=0.0),
        "adversarial": AdversarialConfig(weight=0.0),
    }
    assert set(build(**others).terms) == {"pixels", "texts", "regions"}
    for name, config in others.items():
        if name != "adversarial":
            with pytest.raises(ValueError, match="nowhere"):
                build(**{name: replace(config, weight=1.0)})


def test_a_term_sees_what_those_before_it_weigh(inputs):
    class Last(Term):
        def forward(self, taught):
            return {"last": torch.stack([*taught.earlier.values()]).sum()}

    losses = Supervision({**build(region=0.0, caption=0.0, contrastive=0.0).terms, "mine": Last()})(inputs())
    torch.testing.assert_close(losses["last"], losses["pixel_l1"] + losses["pixel_l2"])


def test_a_frozen_network_stays_as_it_is_and_passes_gradients_on():
    network = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))
    frozen = torch.nn.ModuleList([Frozen(network)]).train()[0]
    given = torch.ones(1, 3, requires_grad=True)
    frozen(given).sum().backward()
    assert not network.training and network[0].weight.grad is None and given.grad is not None
    torch.testing.assert_close(given.grad[0], network[0].weight.sum(dim=0))


def test_padding_changes_nothing(inputs):
    supervision = build(caption=1.0, contrastive=1.0)
    taught = inputs()
    short = supervision(taught)
    long = supervision(replace(taught, captions=torch.nn.functional.pad(taught.captions, (0, 4), value=PAD)))
    for name in short:
        torch.testing.assert_close(short[name], long[name])


def test_contrastive_does_not_punish_equal_captions(inputs):
    supervision = build(contrastive=1.0)
    taught = inputs()
    taught.captions[:] = taught.captions[0]
    taught.coded.features[:] = taught.coded.features[0]
    loss = supervision(taught)["contrastive"]
    torch.testing.assert_close(loss, torch.tensor(len(taught.captions)).float().log())


def test_the_sigmoid_loss_is_that_of_transformers():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 4, "patch_size": 2}
    model = SiglipModel(SiglipConfig(text_config={**sizes, "vocab_size": 13}, vision_config=vision))
    with torch.no_grad():
        texts, pictures = torch.randint(13, (5, 4)), torch.rand(5, 3, 4, 4)
        output = model(input_ids=texts, pixel_values=pictures, return_loss=True)
    own = sigmoid_matching(output.logits_per_text, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(own, output.loss)


@pytest.mark.parametrize(
    ("term", "loss"),
    [
        ("contrastive", "softmax"),
        pytest.param("contrastive", "sigmoid", marks=pytest.mark.slow),
        ("caption", "softmax"),
        ("region", "softmax"),
    ],
)
def test_it_teaches_features_the_text(term, loss, inputs):
    supervision = build(**{name: float(name == term) for name in TERMS}, contrastive_loss=loss)
    taught = inputs()
    features = taught.coded.features.requires_grad_()
    optimizer = torch.optim.AdamW([features, *supervision.parameters()], lr=1e-2)
    losses = []
    for _ in range(60):
        loss = supervision(taught)[term]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_regions_need_a_grid():
    with pytest.raises(ValueError, match="supervision.region must be 0 for codes that lie on no grid, got 0.1"):
        SupervisionConfig().build(19, PAD, NUM_NAMES, replace(GRID, on_grid=False))
