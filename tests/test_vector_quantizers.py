"""Quantizers that search a code book, with the published library as an oracle where it is right."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as distributed
import torch.nn.functional as F
import vector_quantize_pytorch as library

from rebus.tokenizers.quantizers.index_backprop import IndexBackpropConfig
from rebus.tokenizers.quantizers.simvq import SimVQConfig
from rebus.tokenizers.quantizers.vector import VectorConfig

AVERAGES = VectorConfig(codebook_size=41, dim=6, decay=0.8, restart_below=0.0)
CONFIGS = {
    "averages": AVERAGES,
    "averages_normalized": replace(AVERAGES, normalized=True, dead_codes="cluster", entropy=0.1, neighbours=3),
    "gradient": replace(AVERAGES, update="gradient", estimator="rotation", restart_below=0.1),
    "gradient_normalized": replace(AVERAGES, update="gradient", normalized=True, entropy=0.1, dead_codes="cluster"),
    "simvq": SimVQConfig(codebook_size=41, dim=6, estimator="rotation"),
    "index_backprop": IndexBackpropConfig(codebook_size=41, dim=6, entropy=0.1),
    "index_backprop_normalized": IndexBackpropConfig(codebook_size=41, dim=6, normalized=True, neighbours=3),
}


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS.keys())
def config(request):
    return request.param


def build(config):
    torch.manual_seed(0)
    return config.build().train()


def features(*shape, seed=1, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("normalized", [False, True])
def test_averages_are_those_of_the_library(normalized):
    ours = build(replace(AVERAGES, normalized=normalized))
    theirs = library.VectorQuantize(
        dim=6, codebook_size=41, decay=0.8, commitment_weight=0.25, use_cosine_sim=normalized, rotation_trick=False
    )
    theirs.codebook = ours.codebook  # whose averages have counted each code once
    theirs._codebook.embed_avg.copy_(ours.codebook)
    ours.counts.fill_(1.0)
    ours.sums.copy_(ours.codebook)
    for step in range(4):
        points = features(3, 50, 6, seed=step + 1)
        expected, ids, loss = theirs(points.clone().requires_grad_())
        quantized = ours(points)
        assert torch.equal(quantized.ids[..., 0], ids)
        torch.testing.assert_close(quantized.features, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(quantized.losses["commitment"], loss, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.codebook, theirs.codebook, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("estimator", ["rotation", "straight_through"])
def test_simvq_is_that_of_the_library(estimator):
    ours = build(SimVQConfig(codebook_size=41, dim=6, estimator=estimator))
    theirs = library.SimVQ(6, 41, rotation_trick=estimator == "rotation")
    theirs.load_state_dict({"frozen_codebook": ours.fixed, "code_transform.weight": ours.matrix.weight})
    inputs = [features(3, 50, 6).requires_grad_() for _ in range(2)]
    quantized, (expected, ids, loss) = ours(inputs[0]), theirs(inputs[1])
    assert torch.equal(quantized.ids[..., 0], ids)
    torch.testing.assert_close(quantized.features, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sum(quantized.losses.values()), loss)
    weights = features(3, 50, 6, seed=2)
    (sum(quantized.losses.values()) + (quantized.features * weights).sum()).backward()
    (loss + (expected * weights).sum()).backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.matrix.weight.grad, theirs.code_transform.weight.grad)


def test_terms_pull_at_the_right_side():
    quantizer, points = build(replace(AVERAGES, update="gradient")), features(3, 50, 6).requires_grad_()
    losses = quantizer(points).losses
    (of_features,) = torch.autograd.grad(losses["commitment"], points, retain_graph=True)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(losses["commitment"], quantizer.codes.weight)
    (of_codes,) = torch.autograd.grad(losses["codebook"], quantizer.codes.weight)
    # One and the same difference, of which the commitment counts a quarter and pulls the other way.
    torch.testing.assert_close(of_features.sum(dim=(0, 1)), -0.25 * of_codes.sum(dim=0))
    torch.testing.assert_close(losses["commitment"], 0.25 * losses["codebook"])


def test_lookup_perturb_and_eval(config):
    quantizer = build(config).eval()
    quantized = quantizer(features(2, 30, 6))
    torch.testing.assert_close(quantizer.lookup(quantized.ids), quantized.features)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(features(2, 30, 6, seed=2))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())
    wrong = quantizer.perturb(quantized.ids, 1.0, torch.Generator().manual_seed(0))
    assert (wrong != quantized.ids).float().mean() > 0.9 and wrong.min() >= 0 and wrong.max() < 41
    if getattr(config, "neighbours", 0):
        near = (quantizer.lookup(wrong) - quantized.features).norm(dim=-1).mean()
        assert near < 0.7 * (quantizer.lookup(wrong.roll(1)) - quantized.features).norm(dim=-1).mean()


def test_half_precision_around_it_changes_nothing(config):
    quantizers = [build(config) for _ in range(2)]
    points = features(2, 30, 6).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = quantizers[0](points)
    full = quantizers[1](points.float())
    assert torch.equal(half.ids, full.ids) and half.features.dtype == torch.float32
    assert torch.equal(half.features, full.features)
    torch.testing.assert_close(half.losses, full.losses)


def test_what_the_mask_leaves_out_counts_in_nothing(config):
    mask = torch.arange(30)[None] < torch.tensor([[30], [7]])
    outcomes = []
    for filling in (0.0, 100.0):
        quantizer, points = build(config), features(2, 30, 6)
        points[~mask] = points[~mask] + filling
        quantized = quantizer(points, mask)
        outcomes.append((quantized.losses, quantized.stats, dict(quantizer.state_dict())))
    torch.testing.assert_close(outcomes[0], outcomes[1])
    for seed in range(3):
        quantizer(features(2, 30, 6, seed=seed), torch.zeros(2, 30, dtype=torch.bool))
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def test_two_passes_and_one_backward_go_together(config):
    quantizer = build(config)
    inputs = features(2, 30, 6).requires_grad_()
    losses = [sum(quantizer(inputs + shift).losses.values()) for shift in (0.0, 0.1)]
    sum(losses).backward()
    assert inputs.grad is not None and inputs.grad.isfinite().all()


def test_skipped_pictures_pass_as_they_are_in_training_alone():
    quantizer, points = build(IndexBackpropConfig(codebook_size=9, dim=3, skipped=0.3)), features(400, 2, 3)
    quantized = quantizer(points, generator=torch.Generator().manual_seed(0))
    same = (quantized.features == points).all(dim=-1)
    assert torch.equal(same[:, 0], same[:, 1]), "a picture is skipped as a whole"
    assert abs(same.float().mean().item() - 0.3) < 0.06
    assert not (quantizer.eval()(points).features == points).all(dim=-1).any()


def test_a_dead_code_is_moved_only_if_that_is_asked_for():
    points = 3 + features(1, 200, 6)
    for config, moves in (
        (AVERAGES, False),
        (replace(AVERAGES, restart_below=0.01), True),
        (replace(AVERAGES, dead_codes="cluster"), True),
        (replace(AVERAGES, update="gradient"), False),
        (replace(AVERAGES, update="gradient", restart_below=0.01), True),
        (replace(AVERAGES, update="gradient", dead_codes="cluster"), True),
    ):
        quantizer = build(config)
        before = quantizer.vectors().detach().clone()
        unused = torch.ones(41, dtype=torch.bool).index_fill_(0, quantizer(points).ids.flatten(), False)
        assert 10 < unused.sum()
        moved = (quantizer.vectors() != before).any(dim=-1)[unused]
        assert moved.all() if moves else not moved.any()


def test_a_code_with_a_gradient_is_not_moved_however_seldom_it_is_used():
    quantizer = build(replace(AVERAGES, update="gradient", restart_below=1000.0))
    before, ids = quantizer.vectors().detach().clone(), quantizer(features(1, 20, 6)).ids.flatten()
    moved = (quantizer.vectors() != before).any(dim=-1)
    assert not moved[ids].any() and moved.sum() == 41 - ids.unique().numel()


def test_a_moved_code_stays_where_an_optimizer_puts_its_own_copy_over_the_weights():
    quantizer = build(replace(AVERAGES, update="gradient", restart_below=0.01))
    assert quantizer.codes is not None
    copy = quantizer.codes.weight.detach().clone()
    quantizer(3 + features(1, 200, 6))
    moved = quantizer.vectors().detach().clone()
    with torch.no_grad():
        quantizer.codes.weight.copy_(copy)
    assert torch.equal(quantizer.vectors(), moved) and not torch.equal(moved, copy)


@pytest.mark.parametrize(
    "make, options, message",
    [
        (VectorConfig, {"estimator": "rotation", "dim": 1}, "dim must be at least 2 for the estimator 'rotation'"),
        (VectorConfig, {"neighbours": 2048}, r"neighbours must be in \[0, codebook_size = 2048\), got 2048"),
        (SimVQConfig, {"estimator": "rotation", "dim": 1}, "dim must be at least 2 for the estimator 'rotation'"),
        (IndexBackpropConfig, {"skipped": 1.5}, r"skipped must be in \[0, 1\], got 1.5"),
        (IndexBackpropConfig, {"neighbours": -1}, "neighbours must be in .*, got -1"),
    ],
)
def test_wrong_options_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def clustered(num, seed):
    """Points around 16 places, wide enough apart and about them that 64 codes have work to do."""
    return features(16, 4, seed=7).repeat(num // 16, 1) + features(num, 4, seed=100 + seed, scale=0.5)


def k_means(points, codes):
    for _ in range(20):
        nearest = torch.cdist(points, codes).argmin(dim=-1)
        sums = torch.zeros_like(codes).index_add_(0, nearest, points)
        codes = sums / nearest.bincount(minlength=len(codes)).clamp_min(1)[:, None]
    return codes


@pytest.mark.parametrize(
    "config, most",
    [
        (VectorConfig(codebook_size=64, dim=4), 1.1),
        (VectorConfig(codebook_size=64, dim=4, dead_codes="cluster"), 1.1),
        (VectorConfig(codebook_size=64, dim=4, normalized=True), 1.1),
        (VectorConfig(codebook_size=64, dim=4, update="gradient"), 1.1),
        (VectorConfig(codebook_size=64, dim=4, update="gradient", dead_codes="cluster"), 1.1),
        (VectorConfig(codebook_size=64, dim=4, update="gradient", normalized=True, entropy=0.01), 1.1),
        # Random vectors that only a matrix moves lie as evenly as their normal distribution, not as the features.
        (SimVQConfig(codebook_size=64, dim=4), 2.2),
        (IndexBackpropConfig(codebook_size=64, dim=4, normalized=True, temperature=0.1), 1.1),
    ],
)
def test_code_books_learn_to_serve_features_about_as_well_as_k_means(config, most):
    quantizer = build(config)
    scale = (lambda each: F.normalize(each, dim=-1)) if getattr(config, "normalized", False) else (lambda each: each)
    optimizer = torch.optim.Adam(parameters, lr=0.03) if (parameters := list(quantizer.parameters())) else None
    for step in range(40):
        losses = quantizer(scale(clustered(512, step))[None]).losses
        if optimizer is not None:
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
    points, known = scale(clustered(2048, 1000)), scale(clustered(2048, 1001))
    quantized = quantizer.eval()(points[None])
    assert quantized.ids.unique().numel() >= 0.9 * 64
    least = torch.cdist(points, k_means(known, known[:64])).amin(dim=-1).square().mean() / 4
    assert (quantized.features[0] - points).square().mean() < most * least


SHARED = {
    "averages": replace(AVERAGES, restart_below=0.05),
    "averages_cluster": replace(AVERAGES, normalized=True, dead_codes="cluster", entropy=0.1, entropy_temperature=0.5),
    "gradient": replace(AVERAGES, update="gradient", restart_below=0.05),
    "gradient_cluster": replace(AVERAGES, update="gradient", dead_codes="cluster", entropy=0.1),
    "simvq": CONFIGS["simvq"],
    "index_backprop": CONFIGS["index_backprop"],
}


def unequal_halves(step):
    """Features and a mask, of whose halves the first counts more; in the third step the second counts nothing."""
    lengths = torch.tensor([[30], [30], [7], [11]] if step != 2 else [[30], [30], [0], [0]])
    return features(4, 30, 6, seed=step), torch.arange(30)[None] < lengths


def trained_together(config, rank, world):
    """Returns the state after three steps with this process's share of the features, gradients averaged."""
    quantizer = build(config)
    optimizer = torch.optim.SGD(parameters, lr=0.5) if (parameters := list(quantizer.parameters())) else None
    for step in range(3):
        points, mask = (each.chunk(world)[rank] for each in unequal_halves(step))
        points.requires_grad_()
        loss = sum(quantizer(points, mask).losses.values())
        gradients = torch.autograd.grad(loss, [points, *quantizer.parameters()])[1:]
        for parameter, gradient in zip(quantizer.parameters(), gradients, strict=True):
            if world > 1:
                distributed.all_reduce(gradient)
            parameter.grad = gradient / world
        if optimizer is not None:
            optimizer.step()
    return quantizer.state_dict()


@pytest.mark.slow
def test_two_processes_have_the_code_book_of_one(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, __file__, str(tmp_path)], check=True, timeout=120)
    for name, config in SHARED.items():
        alone = trained_together(config, 0, 1)
        for rank in range(2):
            together = safetensors.torch.load_file(tmp_path / f"{name}_{rank}.safetensors")
            assert together.keys() == alone.keys()
            for key, value in alone.items():
                torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-5, msg=f"{key} of {name} in {rank}")


def run_one_process(folder):
    """Writes what one of two processes has in the end."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    for name, config in SHARED.items():
        state = trained_together(config, rank, 2)
        safetensors.torch.save_file(dict(state), folder / f"{name}_{rank}.safetensors")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_compiled_training_is_the_same():
    # In a process of its own: torch.compile cannot read functions whose shapes are checked.
    subprocess.run([sys.executable, __file__], check=True, timeout=170)


def train_compiled():
    """Trains each quantizer as it is and compiled, and compares."""
    for config in CONFIGS.values():
        quantizers, gradients = [build(config) for _ in range(2)], []
        for train in (quantizers[0], torch.compile(quantizers[1], backend="aot_eager")):
            for step in range(2):
                points = features(2, 30, 6, seed=step + 1).requires_grad_()
                quantized = train(points)
                (sum(quantized.losses.values()) + quantized.features.square().sum()).backward()
                gradients.append(points.grad)
        torch.testing.assert_close(gradients[:2], gradients[2:])
        torch.testing.assert_close(*(dict(quantizer.state_dict()) for quantizer in quantizers))


if __name__ == "__main__":
    run_one_process(Path(sys.argv[1])) if sys.argv[1:] else train_compiled()
