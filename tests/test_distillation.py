"""Terms that tell a teacher's features or another tokenizer's codes, and what they read of ours."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.supervision.cells import CellsConfig, resized
from rebus.tokenizers.supervision.distillation import Distillation
from rebus.tokenizers.supervision.proxy_codes import ProxyCodesConfig
from rebus.tokenizers.supervision.taps import Taps, layer_widths
from rebus.tokenizers.supervision.teachers import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Teacher,
    TokenizerTeacherConfig,
    TowerTeacherConfig,
)

ROW = Canvas(feature_dim=2, num_features=5, on_grid=True, grids=((1, 5),), patch_px=8)
SEQUENCE = replace(ROW, on_grid=False)


class Cells7(nn.Module):
    """A network with seven channels a cell of a 2 x 5 grid, of which it has no notion."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 7, 2, 2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.convolution(images)).flatten(2).transpose(1, 2)


def teacher():
    torch.manual_seed(0)
    return Teacher(Cells7(), dim=7, grid=(2, 5), size_px=(4, 10))


def build(loss="cosine", pooled=False, canvas=ROW, widths=None, **cells):
    own = teacher()
    reader = CellsConfig(dim=64, **cells).build(own.dim, own.grid, canvas, widths or {})
    return Distillation("distillation", own, reader, weight=0.5, loss=loss, pooled=pooled).train()


def tiny_tokenizer(**others):
    torch.manual_seed(0)
    return ImageTokenizerConfig(
        image_size_px=24,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=VitPixelDecoderConfig(dim=12, depth=2, num_heads=2),
        **others,
    ).build()


def test_the_losses_are_angles_and_squares(inputs):
    taught = inputs()
    told = build().cells(taught)[0]
    images = F.interpolate(taught.images, (4, 10), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    features = teacher().eval().network.network.convolution((images - mean) / std)
    target = features.mean(dim=2).transpose(1, 2)  # two rows of the teacher's grid are one of ours
    torch.testing.assert_close(resized(features.flatten(2).transpose(1, 2), (2, 5), (1, 5)), target)
    cosine = 1 - ((told * target).sum(-1) / told.norm(dim=-1) / target.norm(dim=-1)).mean()
    squares = (told - target).square().mean()
    for loss, expected in (("cosine", cosine), ("mse", squares), ("both", cosine + squares)):
        torch.testing.assert_close(build(loss)(taught), {"distillation": 0.5 * expected}, rtol=1e-4, atol=1e-5)
    pooled = (told.mean(1) - target.mean(1)).square().mean()
    torch.testing.assert_close(build("mse", pooled=True)(taught), {"distillation": 0.5 * pooled}, rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_codes_and_not_the_teacher(inputs):
    term, taught = build("both"), inputs()
    features = taught.coded.features.requires_grad_()
    term(taught)["distillation"].backward()
    assert features.grad.any()
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in term.teacher.parameters())
    assert not term.teacher.network.training and term.cells.training


@pytest.mark.parametrize(
    ("canvas", "depth", "share"), [(ROW, 0, 0.4), pytest.param(SEQUENCE, 2, 0.7, marks=pytest.mark.slow)]
)
def test_it_teaches_features_the_teachers(canvas, depth, share, inputs):
    term, taught = build(canvas=canvas), inputs()
    assert depth == (0 if term.cells.transformer is None else len(term.cells.transformer.blocks))
    features = taught.coded.features.requires_grad_()
    optimizer = torch.optim.AdamW([features, *term.cells.parameters()], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = term(taught)["distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < share * losses[0]


def test_codes_on_no_grid_are_read_by_a_transformer_that_sees_them_in_order_and_no_missing_ones(inputs):
    with pytest.raises(ValueError, match="depth must be at least 1, or a layer be read, .* got 0"):
        build(canvas=SEQUENCE, depth=0)
    with pytest.raises(ValueError, match="depth must be at least 0, and 0 where a layer is read, got 2"):
        CellsConfig(layer="encoder", depth=2)
    with pytest.raises(ValueError, match="dim must be a multiple of 64"):
        CellsConfig(dim=60).build(7, (2, 5), SEQUENCE, {})
    taught = inputs()
    reader = build(canvas=SEQUENCE, depth=1).cells
    for parameter in (reader.code_positions, *reader.transformer.parameters()):
        nn.init.normal_(parameter, std=0.3)  # fresh blocks pass on what comes in
    told, grid = reader(taught)
    assert told.shape == (6, 10, 7) and grid == (2, 5)
    coded = taught.coded
    turned = replace(taught, coded=replace(coded, features=coded.features.flip(1)))
    assert not torch.allclose(told, reader(turned)[0], atol=1e-3)
    cut = replace(coded, features_mask=torch.arange(5).expand(6, 5) < 3)
    other = replace(cut, features=torch.where(cut.features_mask[..., None], coded.features, 9.0))
    torch.testing.assert_close(reader(replace(taught, coded=cut)), reader(replace(taught, coded=other)))


def test_a_hidden_layer_is_read_map_or_sequence(inputs):
    taught = inputs()
    sequence, feature_map = torch.randn(6, 8, 4), torch.randn(6, 3, 4, 10)
    term = build(widths={"a": 4}, layer="a")
    assert term.layers == ("a",)
    told, grid = term.cells(replace(taught, layers={"a": sequence}))  # five cells, then other positions
    assert grid == (1, 5)
    torch.testing.assert_close(told, term.cells.tell(sequence[:, :5]))
    term = build(widths={"a": 3}, layer="a")
    told, grid = term.cells(replace(taught, layers={"a": feature_map}))
    assert grid == (4, 10)
    torch.testing.assert_close(told, term.cells.tell(feature_map.flatten(2).transpose(1, 2)))
    told, _ = term.cells(replace(taught, layers={"a": feature_map}), (2, 5))
    pooled = F.avg_pool2d(feature_map, 2)
    torch.testing.assert_close(resized(pooled.flatten(2).transpose(1, 2), (2, 5), (1, 5)).shape, (6, 5, 3))
    assert told.shape == (6, 10, 7)


def test_taps_find_layers_and_forget_what_was_taken():
    tokenizer = tiny_tokenizer()
    names = ["pixel_decoder.transformer.blocks.1", "encoder.transformer", "pixel_decoder.to_pixels"]
    assert layer_widths(tokenizer.train(), names) == dict(zip(names, (12, 16, 192), strict=True))
    assert tokenizer.training and not any(module._forward_hooks for module in tokenizer.modules())
    taps, images = Taps(tokenizer, names[:1]), torch.rand(2, 3, 24, 24)
    tokenizer.paint(tokenizer.quantize(images))
    taken = taps.take()
    assert taken[names[0]].shape == (2, 9, 12) and not taps.take()
    with pytest.raises(ValueError, match="such as .*blocks.1.*got pixel_decoder.transformer.blocks.7"):
        layer_widths(tokenizer, ["pixel_decoder.transformer.blocks.7"])
    with pytest.raises(ValueError, match="that coding or painting a picture runs, got quantizer_spare"):
        tokenizer.quantizer_spare = nn.Linear(1, 1)
        layer_widths(tokenizer, ["quantizer_spare"])


def small_dino():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 10, "patch_size": 5}
    return Dinov2Model(Dinov2Config(**sizes))


def small_clip():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 10, "patch_size": 5}
    return CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 9}, vision_config=vision))


@pytest.mark.parametrize("make", [pytest.param(small_dino, marks=pytest.mark.slow), small_clip])
def test_a_tower_of_transformers_is_a_teacher(make, tmp_path):
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}'
    )
    images = torch.rand(2, 3, 10, 10)
    output = getattr(model, "vision_model", model)((images - 0.5) / 0.25, output_hidden_states=True)
    own = TowerTeacherConfig(path=tmp_path).build().train()
    assert (own.dim, own.grid) == (8, (2, 2))
    torch.testing.assert_close(own(images), output.last_hidden_state[:, 1:])
    earlier = TowerTeacherConfig(path=tmp_path, hidden_state=-2).build()
    torch.testing.assert_close(earlier(images), output.hidden_states[-2][:, 1:])


def test_what_is_no_tower_is_refused(exports, tmp_path):
    with pytest.raises(ValueError, match="must hold a model of transformers"):
        TowerTeacherConfig(path=tmp_path).build()
    with pytest.raises(ValueError, match="must hold a vision tower of patches"):
        TowerTeacherConfig(path=exports / "language_model").build()


def test_the_encoder_of_a_tokenizer_is_a_teacher(exports):
    own = TokenizerTeacherConfig(path=exports / "image_tokenizer").build()
    tokenizer, images = ImageTokenizer.load(exports / "image_tokenizer"), torch.rand(2, 3, 24, 24)
    assert (own.dim, own.grid) == (16, (3, 3))
    with torch.no_grad():
        torch.testing.assert_close(own(images), tokenizer.encoder(images).features)


def test_proxy_codes_are_those_of_the_other_tokenizer(exports, inputs):
    path = exports / "image_tokenizer"
    taught = inputs(side=24)
    term = ProxyCodesConfig(path=path, weight=2.0, cells=CellsConfig(dim=64)).build(ROW, {})
    ids = ImageTokenizer.load(path).encode(taught.images).ids[..., 0]
    logits = term.cells(taught, (3, 3))[0].log_softmax(dim=-1)
    expected = -2 * logits.gather(2, ids[..., None]).mean()
    torch.testing.assert_close(term(taught), {"proxy_codes": expected})

    features = taught.coded.features.requires_grad_()
    optimizer = torch.optim.AdamW([features, *term.cells.parameters()], lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        term(taught)["proxy_codes"].backward()
        optimizer.step()
    told = term.cells(taught, (3, 3))[0].argmax(dim=-1)
    # Five cells in a row cannot tell three rows apart, so a third could not be better than chance.
    assert (told == ids).float().mean() > 0.4
    assert all(parameter.grad is None for parameter in term.target.parameters())


def test_proxy_codes_must_lie_on_a_grid(tmp_path):
    tiny_tokenizer(layout=NestedQueriesConfig(num_queries=4, depth=1, num_heads=2)).save(tmp_path)
    with pytest.raises(ValueError, match="proxy codes must lie on one grid, got those of a sequence"):
        ProxyCodesConfig(path=tmp_path).build(ROW, {})
