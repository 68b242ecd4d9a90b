import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from einops import rearrange
from transformers import AutoConfig, AutoModel

from rebus.tokenizers.autoencoder import AutoencoderConfig
from rebus.tokenizers.encoders.any_size_vit import AnySizeVitEncoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.tower import TowerEncoderConfig
from rebus.tokenizers.encoders.two_branch import TwoBranchEncoderConfig
from rebus.tokenizers.encoders.vae_latents import VaeLatentsEncoderConfig
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizer, ImageTokenizerConfig
from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_basis, plane_basis
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.pixel_decoders.vae import VaePixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.rotary import followed_by_placeless, grid_rotation, rotate
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.transformer import Transformer

SIZES = ((24, 40), (16, 24))
WIDTHS = {"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 1, "patch_size": 8}
PLAIN = {**WIDTHS, "intermediate_size": 28}
ARCHITECTURES = {
    "siglip_vision_model": {**PLAIN, "image_size": 24},
    "siglip2_vision_model": {**PLAIN, "num_patches": 9},
    "dinov2": {**WIDTHS, "mlp_ratio": 2, "image_size": 24},
    "dinov2_with_registers": {**WIDTHS, "mlp_ratio": 2, "image_size": 24},
    "dinov3_vit": {**PLAIN, "num_register_tokens": 3},
    "clip_vision_model": {**PLAIN, "image_size": 24},
}
VAE = AutoencoderConfig(
    architecture={
        "block_out_channels": [4, 8],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
        "layers_per_block": 1,
        "latent_channels": 3,
        "norm_num_groups": 2,
        "scaling_factor": 0.7,
        "shift_factor": 0.2,
    }
)
CNN = CnnEncoderConfig(patch_px=8, channels=4, multipliers=(1, 2), num_blocks=1, dim=12, num_groups=2)
VIT = AnySizeVitEncoderConfig(patch_px=8, dim=16, depth=2, num_heads=2)
SIGLIP = TowerEncoderConfig(architecture=ARCHITECTURES["siglip_vision_model"], taps=(1, -1))
ENCODERS = {
    "any_size_vit": VIT,
    "cnn": CNN,
    "cnn_without_attention": replace(CNN, attention=False, cosine_start=False),
    **{
        kind: TowerEncoderConfig(kind=kind, architecture=architecture, taps=(1, -1))
        for kind, architecture in ARCHITECTURES.items()
    },
    "frozen_tower": replace(SIGLIP, frozen=True, patch_px=4),
    "latents": VaeLatentsEncoderConfig(autoencoder=VAE),
    "latents_in_patches": VaeLatentsEncoderConfig(autoencoder=VAE, patch=2, dim=16, depth=1, num_heads=2),
    "two_grids": TwoBranchEncoderConfig(semantic=SIGLIP, pixel=replace(CNN, patch_px=4), sequence_dim=11),
    "two_on_one_grid": TwoBranchEncoderConfig(semantic=SIGLIP, pixel=replace(CNN, patch_px=4)),
}
LLAMAGEN_PARAMETERS = 71_883_403
"""Of VQ-16 by its published code; its README says 72 M."""
DINOV2_LARGE_PARAMETERS = 304_368_640


def pictures(size, number=3):
    return torch.rand(number, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=ENCODERS)
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param].build(SIZES).eval()


def test_features_lie_on_the_grids_that_are_promised(encoder):
    for size in SIZES:
        patches = encoder(pictures(size))
        assert patches.grids == encoder.grids(size)
        assert patches.features.shape == (3, sum(rows * columns for rows, columns in patches.grids), encoder.dim)
        rows, columns = patches.grids[-1]
        assert (rows * encoder.patch_px, columns * encoder.patch_px) == size
        assert patches.features.isfinite().all() and patches.features.std() > 0


def test_a_picture_has_the_same_features_alone_and_in_a_batch_also_in_training(encoder):
    together = encoder(pictures(SIZES[0])).features
    alone = torch.cat([encoder.train()(picture[None]).features for picture in pictures(SIZES[0])])
    torch.testing.assert_close(alone, together, atol=2e-5, rtol=1e-4)


def test_all_that_learns_has_a_gradient(encoder):
    learning = {name: parameter for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    features = encoder(pictures(SIZES[0])).features
    assert features.requires_grad == bool(learning)
    if learning:
        features.square().sum().backward()
    assert [name for name, parameter in learning.items() if parameter.grad is None] == []


def test_sizes_that_make_no_whole_patches_are_refused(encoder):
    for size in ((24, 41), (1, 24)):
        with pytest.raises(ValueError, match=rf"must be a multiple of patch_px=.*got {size[0]} x {size[1]}"):
            encoder.config.build((size,))
        with pytest.raises(ValueError, match="must be a multiple of patch_px"):
            encoder(pictures(size))


def test_its_config_survives_json_and_builds_it_again_on_the_meta_device(encoder):
    config = ImageTokenizerConfig(encoder=encoder.config)
    returned = config_from_json(ImageTokenizerConfig, json.loads(json.dumps(config_to_json(config))))
    assert returned == config
    with torch.device("meta"):
        again = returned.encoder.build(SIZES)
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in encoder.state_dict().items()
    }
    assert all(parameter.is_meta for parameter in again.parameters())


def test_the_vit_of_one_size_meets_the_contract_too():
    encoder = VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2).build(((24, 40),))
    assert encoder(pictures((24, 40))).features.shape == (3, 15, 16)
    with pytest.raises(ValueError, match="must have a grid of"):
        encoder.grids((40, 24))


def test_rotation_is_that_of_complex_numbers():
    features = torch.randn(2, 3, 10, 8)
    turned = rotate(features, grid_rotation(2, 5, 8, torch.device("cpu")))
    places = torch.cartesian_prod(torch.arange(2), torch.arange(5))
    paces = 100.0 ** -(torch.arange(2) / 2)
    angles = torch.cat([places[:, :1] * paces, places[:, 1:] * paces], dim=-1)
    expected = torch.complex(features[..., :4], features[..., 4:]) * torch.polar(torch.ones(10, 4), angles)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], dim=-1))


def test_attention_depends_on_the_way_between_patches_not_on_where_they_are():
    torch.manual_seed(0)
    transformer = Transformer(16, 2, 2)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # fresh blocks pass on what comes in
    features, device = torch.randn(1, 6, 16), torch.device("cpu")
    small = grid_rotation(2, 3, 8, device)
    large = rearrange(grid_rotation(5, 7, 8, device), "two (h w) pairs -> two h w pairs", h=5)
    part = rearrange(large[:, 2:4, 3:6], "two h w pairs -> two (h w) pairs")
    torch.testing.assert_close(transformer(features, rotation=part), transformer(features, rotation=small))
    assert not torch.allclose(transformer(features, rotation=small), transformer(features))
    still = followed_by_placeless(small, 4)
    assert torch.equal(still[:, :6], small)
    others = torch.randn(1, 1, 10, 8)
    assert torch.equal(rotate(others, still)[:, :, 6:], others[:, :, 6:])


@pytest.mark.parametrize("config", [VIT, CNN], ids=["vit", "cnn"])
def test_a_fresh_encoder_is_a_cosine_transform(config):
    images = pictures(SIZES[0])
    patches = rearrange(images * 2 - 1, "b c (h p) (w q) -> b (h w) (c p q)", p=8, q=8)
    expected = patches @ cosine_basis(8, config.dim).T / COEFFICIENT_SCALE
    torch.testing.assert_close(config.build(SIZES)(images).features, expected, atol=1e-5, rtol=1e-4)


def test_llamagen_has_its_published_size():
    canvas = Canvas(feature_dim=8, num_features=256, on_grid=True, grids=((16, 16),), patch_px=16)
    with torch.device("meta"):
        parts = [CnnEncoderConfig().build(((256, 256),)), CnnPixelDecoderConfig().build(canvas)]
    total = sum(parameter.numel() for part in parts for parameter in part.parameters())
    to_code, code_book, missing = 256 * 8 + 8, 16384 * 8, 256
    assert total - missing + to_code + code_book == LLAMAGEN_PARAMETERS


def test_published_towers_build_from_their_sizes_alone():
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
    dinov2 = TowerEncoderConfig(kind="dinov2", architecture={**large, "image_size": 518})
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    dual_token = TowerEncoderConfig(architecture={**so400m, "patch_size": 14, "image_size": 384}, taps=(6, 26))
    with torch.device("meta"):
        dinov2, dual_token = dinov2.build(((224, 224),)), dual_token.build(((378, 378),))
    final_norm = 2 * 1024
    assert sum(map(torch.Tensor.numel, dinov2.parameters())) == DINOV2_LARGE_PARAMETERS - final_norm
    assert dual_token.dim == 2 * 1152 and dual_token.grids((378, 378)) == ((27, 27),)
    assert dual_token.config.architecture["num_hidden_layers"] == 26


@pytest.fixture(scope="module")
def saved_towers(tmp_path_factory):
    """A folder for each kind of tower, with random weights; that of CLIP holds a text model, too."""
    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    for kind, architecture in ARCHITECTURES.items():
        if kind == "clip_vision_model":
            text = {**PLAIN, "vocab_size": 7, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 5}
            config = AutoConfig.for_model("clip", vision_config=architecture, text_config=text, projection_dim=4)
        else:
            config = AutoConfig.for_model(kind, **architecture)
        model = AutoModel.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # else layer scales and class tokens do nothing
        model.save_pretrained(folder / kind)
        colors = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1]}
        (folder / kind / "preprocessor_config.json").write_text(json.dumps(colors))
    return folder


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_taps_are_the_hidden_states_of_the_saved_tower(kind, saved_towers):
    config = TowerEncoderConfig(
        pretrained=str(saved_towers / kind), kind=kind, taps=(0, 2, -2), patch_px=4, frozen=True
    )
    encoder = config.build(((12, 20),))
    assert encoder.config.taps == (0, 2, 2) and encoder.config.architecture["num_hidden_layers"] == 2
    model = AutoModel.from_pretrained(saved_towers / kind).eval()
    model = getattr(model, "vision_model", model)
    images = pictures((12, 20))
    pixels = F.interpolate(images, size=(24, 40), mode="bicubic", antialias=True).clamp(0, 1)
    pixels = (pixels - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.3, 0.2, 0.1])[:, None, None]
    given = {"pixel_values": pixels}
    if kind == "siglip2_vision_model":
        patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=8, q=8)
        given = {"pixel_values": patches, "pixel_attention_mask": torch.ones(3, 15, dtype=torch.long)}
        given["spatial_shapes"] = torch.tensor([[3, 5]] * 3)
    elif kind in ("siglip_vision_model", "clip_vision_model"):
        given["interpolate_pos_encoding"] = True
    states = model(**given, output_hidden_states=True).hidden_states
    first = {"dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 4, "clip_vision_model": 1}.get(kind, 0)
    expected = torch.cat([states[tap][:, first:] for tap in (0, 2, 2)], dim=-1)
    torch.testing.assert_close(encoder(images).features, expected)


def test_a_saved_tokenizer_needs_no_folder_that_its_weights_came_from(saved_towers, tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(saved_towers / "dinov2", sources / "tower")
    VAE.build()[0].save_pretrained(sources / "vae")
    config = ImageTokenizerConfig(
        image_sizes_px=SIZES,
        encoder=TowerEncoderConfig(pretrained=str(sources / "tower"), kind="dinov2", frozen=True),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=VaePixelDecoderConfig(autoencoder=AutoencoderConfig(pretrained=str(sources / "vae"))),
    )
    tokenizer = config.build().eval()
    tokenizer.save(tmp_path / "first")
    shutil.rmtree(sources)
    first = ImageTokenizer.load(tmp_path / "first")
    first.save(tmp_path / "second")
    assert first.hash == tokenizer.hash == ImageTokenizer.load(tmp_path / "second").hash
    for size in SIZES:
        tokens = first.encode(pictures(size))
        assert torch.equal(tokens.ids, ImageTokenizer.load(tmp_path / "second").encode(pictures(size)).ids)
        assert first.decode(tokens).shape == (3, 3, *size)
    with pytest.raises(ValueError, match="pictures must be 24 x 40 or 16 x 24 pixels, got 40 x 24"):
        first.encode(pictures((40, 24)))


def test_latents_are_the_mode_of_the_posterior_and_their_transform_turns_back(tmp_path):
    torch.manual_seed(0)
    vae, _ = VAE.build()
    vae.save_pretrained(tmp_path)
    images = pictures(SIZES[0])
    with torch.no_grad():
        expected = (vae.encode(images * 2 - 1).latent_dist.mode() - 0.2) * 0.7
        rebuilt = vae.decode(expected / 0.7 + 0.2).sample * 0.5 + 0.5
    pretrained = AutoencoderConfig(pretrained=str(tmp_path))
    encoder = VaeLatentsEncoderConfig(autoencoder=pretrained).build(SIZES)
    torch.testing.assert_close(encoder(images).features, rearrange(expected, "b c h w -> b (h w) c"))
    encoder = VaeLatentsEncoderConfig(autoencoder=pretrained, patch=2).build(SIZES)
    features = encoder(images).features
    torch.testing.assert_close(features[..., :3], rearrange(F.avg_pool2d(expected, 2), "b c h w -> b (h w) c"))
    canvas = Canvas(feature_dim=12, num_features=60, on_grid=True, grids=((6, 10),), patch_px=4)
    decoder = VaePixelDecoderConfig(autoencoder=pretrained).build(canvas)
    painted = decoder(features, torch.ones(3, 60, dtype=torch.bool), (6, 10))
    torch.testing.assert_close(painted, rebuilt, atol=1e-5, rtol=1e-4)


def test_the_basis_of_a_plane_is_orthonormal_and_low_frequencies_come_first():
    planes = plane_basis(3)
    torch.testing.assert_close(planes.flatten(1) @ planes.flatten(1).T, torch.eye(9))
    torch.testing.assert_close(planes[0], torch.full((3, 3), 1 / 3))
    changes = planes.diff(dim=1).square().sum((1, 2)) + planes.diff(dim=2).square().sum((1, 2))
    assert changes.argmax() == 8 and changes.argmin() == 0


def test_two_branches_are_those_of_their_encoders():
    torch.manual_seed(0)
    images = pictures(SIZES[0])
    side_by_side = ENCODERS["two_on_one_grid"].build(SIZES).eval()
    features = side_by_side(images).features
    torch.testing.assert_close(features[..., 40:], side_by_side.pixel(images).features)
    semantic = rearrange(side_by_side.semantic(images).features, "b (h w) d -> b d h w", h=3)
    corners = rearrange(features[..., :40], "b (h w) d -> b d h w", h=6)[:, :, ::5, ::9]
    torch.testing.assert_close(corners, semantic[:, :, ::2, ::4])  # where interpolation has one neighbour alone
    in_turn = ENCODERS["two_grids"].build(SIZES).eval()
    assert in_turn(images).grids == ((3, 5), (6, 10))
    torch.testing.assert_close(in_turn(images).features[:, :15], in_turn.semantic(images).features[..., :11])
    torch.testing.assert_close(in_turn(images).features[:, 15:], in_turn.pixel(images).features[..., :11])


BAD_CONFIGS = {
    "taps must lie in \\[-4, 3\\] for 3 layers, got \\(1, 4\\)": lambda: replace(SIGLIP, taps=(1, 4)).build(SIZES),
    "patch_px must be at least 1, got 0": lambda: replace(SIGLIP, patch_px=0),
    "taps must be at least one, got none": lambda: replace(SIGLIP, taps=()),
    "architecture of siglip_vision_model must have keys among .*got \\['depth'\\]": lambda: TowerEncoderConfig(
        architecture={"depth": 3}
    ).build(SIZES),
    "architecture must be empty where pretrained says it": lambda: replace(SIGLIP, pretrained="somewhere"),
    "architecture must hold plain values": lambda: TowerEncoderConfig(architecture={"patch_size": (8, 8)}),
    "nowhere must hold a model of transformers \\(config.json, safetensors\\)": lambda: TowerEncoderConfig(
        pretrained="nowhere"
    ).build(SIZES),
    "no_vae must hold a saved auto-encoder \\(config.json, safetensors\\)": lambda: VaeLatentsEncoderConfig(
        autoencoder=AutoencoderConfig(pretrained="no_vae")
    ).build(SIZES),
    "architecture must have the keys of AutoencoderKL.*'depth'": lambda: AutoencoderConfig(
        architecture={"depth": 3}
    ).build(),
    "in_channels must be 3 times a square number, got 4": lambda: AutoencoderConfig(
        architecture={"in_channels": 4}
    ).build(),
    "dim must be at least 12 .*got 11": lambda: VaeLatentsEncoderConfig(autoencoder=VAE, patch=2, dim=11).build(SIZES),
    "patch must be at least 1, got 0": lambda: VaeLatentsEncoderConfig(patch=0),
    "dim must be a multiple of 4 \\* num_heads = 16 .*got 24": lambda: replace(VIT, dim=24, num_heads=4).build(SIZES),
    "patch_px must be a multiple of 16 for 5 levels, got 8": lambda: CnnEncoderConfig(patch_px=8),
    "channels of each level must be a multiple of num_groups = 2, got \\(3, 6\\)": lambda: replace(CNN, channels=3),
    "sequence_dim must be at least 1, got 0": lambda: TwoBranchEncoderConfig(sequence_dim=0),
    "semantic grid must not be finer than the pixel grid \\(3, 5\\), got \\(6, 10\\)": lambda: TwoBranchEncoderConfig(
        semantic=replace(CNN, patch_px=4), pixel=VIT, sequence_dim=8
    ).build(SIZES),
}


@pytest.mark.parametrize("message", BAD_CONFIGS)
def test_bad_configs_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_CONFIGS[message]()


def test_weights_that_do_not_fit_are_listed(saved_towers, tmp_path):
    with pytest.raises(ValueError, match="kind must be 'dinov2', as .* has it, got 'dinov3_vit'"):
        TowerEncoderConfig(pretrained=str(saved_towers / "dinov2"), kind="dinov3_vit").build(SIZES)
    for name, config in (("tower", SIGLIP), ("vae", VAE)):
        folder = tmp_path / name
        if name == "tower":
            shutil.copytree(saved_towers / "siglip_vision_model", folder)
            (folder / "preprocessor_config.json").unlink()
            config, weights = TowerEncoderConfig(pretrained=str(folder)), folder / "model.safetensors"
            with pytest.raises(ValueError, match="mean and std must be given where there is no "):
                config.build(SIZES)
        else:
            VAE.build()[0].save_pretrained(folder)
            config = VaeLatentsEncoderConfig(autoencoder=AutoencoderConfig(pretrained=str(folder)))
            weights = folder / "diffusion_pytorch_model.safetensors"
        state = safetensors.torch.load_file(weights)
        missing = next(name for name in state if "conv_in.weight" in name or "patch_embedding.weight" in name)
        whole = state.pop(missing)
        safetensors.torch.save_file({**state, "extra": torch.zeros(1)}, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=f"weights must fit config.json.*{missing}.*extra"):
            config.build(SIZES)
        safetensors.torch.save_file({**state, missing: whole[:-1]}, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match="must hold .* weights that fit"):
            config.build(SIZES)
        weights.write_bytes(b"cut off")
        with pytest.raises(ValueError, match="must hold .* weights that fit"):
            config.build(SIZES)
