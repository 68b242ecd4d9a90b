"""The perceptual term against plain arithmetic on a small random network."""

from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import ConvNextConfig, ConvNextModel

from rebus.tokenizers.supervision import feature_networks
from rebus.tokenizers.supervision.feature_networks import FeatureNetwork, StockNetworkConfig, Vgg16Config
from rebus.tokenizers.supervision.perceptual import Perceptual
from rebus.tokenizers.supervision.teachers import IMAGENET_MEAN, IMAGENET_STD


def small_network(width=4):
    torch.manual_seed(0)
    first = [nn.Conv2d(3, width, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*first, nn.Conv2d(width, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU())


def normalized(images):
    return (images - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def features_of(network, images):
    """What ReLU layers put out, the network in eval mode."""
    first = network[:2](normalized(images))
    return [first, network[2:](first)]


def test_it_is_lpips_of_the_network(inputs):
    network, weights = small_network(), [torch.rand(4), torch.rand(5)]
    term = Perceptual(FeatureNetwork(network, ["1", "4"], weights), weight=0.5).train()
    taught = inputs()
    expected = 0
    for ours, true, weight in zip(
        features_of(network, taught.rebuilt), features_of(network, taught.images), weights, strict=True
    ):
        difference = ours / (ours.norm(dim=1, keepdim=True) + 1e-10) - true / (true.norm(dim=1, keepdim=True) + 1e-10)
        expected = expected + torch.einsum("bchw,c->bhw", difference.square(), weight).mean()
    torch.testing.assert_close(term(taught), {"perceptual": 0.5 * expected}, rtol=1e-4, atol=1e-6)


def test_gram_matrices_know_no_places(inputs):
    network = small_network()
    term = Perceptual(FeatureNetwork(network, ["1"]), weight=0.0, gram=2.0)
    taught = inputs()
    ours, true = (features_of(network, images)[0].flatten(2) for images in (taught.rebuilt, taught.images))
    grams = [one @ one.transpose(1, 2) / one.shape[2] for one in (ours, true)]
    torch.testing.assert_close(term(taught), {"gram": 2 * (grams[0] - grams[1]).square().mean()})
    # Moved by whole strides on a torus, a picture is another one to places alone.
    around = nn.Sequential(nn.Conv2d(3, 4, 2, 2))
    moved = replace(taught, rebuilt=taught.images.roll(2, dims=3))
    losses = Perceptual(FeatureNetwork(around, ["0"]), weight=1.0, gram=1.0)(moved)
    assert losses["perceptual"] > 0.1 and losses["gram"] < 1e-10


def test_gradients_reach_the_rebuilt_pictures_alone(inputs):
    network = small_network()
    term = Perceptual(FeatureNetwork(network, ["1", "4"]), weight=1.0, gram=1.0)
    taught = inputs()
    taught.images.requires_grad_()
    black = torch.zeros_like(taught.images).requires_grad_()  # some features of it are all zero
    torch.stack([*term(replace(taught, rebuilt=black)).values()]).sum().backward()
    assert torch.isfinite(black.grad).all() and black.grad.any() and taught.images.grad is None
    assert all(parameter.grad is None for parameter in network.parameters())


def test_it_alone_cleans_a_picture(inputs):
    term = Perceptual(FeatureNetwork(small_network(32), ["1", "4"]), weight=1.0, gram=1.0)
    taught = inputs()
    picture = ((taught.images + torch.rand_like(taught.images)) / 2).requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=0.02)
    losses, errors = [], []
    for _ in range(40):
        loss = torch.stack([*term(replace(taught, rebuilt=picture)).values()]).sum()
        losses.append(loss.item())
        errors.append((picture - taught.images).abs().mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.1 * losses[0] and errors[-1] < 0.7 * errors[0]


def test_a_network_without_such_a_layer_is_refused():
    with pytest.raises(ValueError, match="layer must be one of the Sequential, such as .*, got 7"):
        FeatureNetwork(small_network(), ["7"])


def test_vgg16_has_the_published_size_and_is_read_from_a_file(tmp_path, monkeypatch, inputs):
    with torch.device("meta"):
        whole = feature_networks._vgg16()
    assert sum(parameter.numel() for parameter in whole.parameters()) == 14_714_688
    assert all(isinstance(whole[int(layer)], nn.ReLU) for layer in feature_networks.VGG16_LAYERS)

    monkeypatch.setattr(feature_networks, "VGG16_WIDTHS", (2, 2, "pool", 3))
    monkeypatch.setattr(feature_networks, "VGG16_LAYERS", ("3", "6"))
    small = feature_networks._vgg16()
    held = {f"features.{name}": value for name, value in small.state_dict().items()}
    path = tmp_path / "vgg.safetensors"
    safetensors.torch.save_file(held, path)
    network, images = Vgg16Config(path=path).build(), inputs().images
    assert network.channel_weights() == [None, None]
    places = network(images)
    torch.testing.assert_close(places[1], small(normalized(images)).flatten(2).transpose(1, 2))
    weights = {"lin0.model.1.weight": torch.rand(1, 2, 1, 1), "lin1.model.1.weight": torch.rand(1, 3, 1, 1)}
    safetensors.torch.save_file(held | weights, path)
    assert [len(one) for one in Vgg16Config(path=path).build().channel_weights()] == [2, 3]
    safetensors.torch.save_file({"features.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="must hold the convolutions of VGG-16"):
        Vgg16Config(path=path).build()


def test_a_stock_network_is_read_from_a_folder(tmp_path, inputs):
    sizes = ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, patch_size=2)
    model = ConvNextModel(sizes).eval()
    model.save_pretrained(tmp_path)
    images = inputs().images
    network = StockNetworkConfig(path=tmp_path, layers=("encoder.stages.1",)).build()
    (places,) = network(images)
    expected = model(normalized(images), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(places, expected.flatten(2).transpose(1, 2))
    with pytest.raises(ValueError, match="nowhere must hold a model of transformers"):
        StockNetworkConfig(path=tmp_path / "nowhere", layers=("encoder",)).build()
