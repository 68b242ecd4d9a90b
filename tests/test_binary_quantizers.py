"""Signs as codes: exact ids, exact entropies, and the published quantizers as an oracle."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as distributed
from hypothesis import given
from hypothesis import strategies as st
from vector_quantize_pytorch import LFQ

from rebus.tokenizers.quantizers.binary import BinarySphericalConfig, LookupFreeConfig
from rebus.tokenizers.quantizers.bit_entropy import batch_entropy, sample_entropy
from rebus.tokenizers.quantizers.bit_ids import bits_of_ids, ids_of_bits

ORDERS = st.sampled_from(["most_significant_first", "least_significant_first"])
LFQ_7 = LookupFreeConfig(bits=7, bit_order="most_significant_first", entropy_bits=7)
BSQ_7 = BinarySphericalConfig(bits=7, entropy_bits=7, commitment=0.25, inverse_temperature=100.0)


def features(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.booleans(), min_size=1, max_size=62), ORDERS)
def test_ids_are_the_numbers_that_bits_write(bits, order):
    written = "".join("01"[bit] for bit in (bits if order == "most_significant_first" else reversed(bits)))
    ids = ids_of_bits(torch.tensor(bits), order)
    assert ids.dtype == torch.int64 and ids.item() == int(written, base=2)
    assert bits_of_ids(ids, len(bits), order).tolist() == bits


@given(st.integers(1, 62), st.integers(1, 3), ORDERS, st.booleans(), st.integers(0, 1000))
def test_ids_and_features_are_inverse(bits, groups, order, is_spherical, seed):
    kind = BinarySphericalConfig if is_spherical else LookupFreeConfig
    quantizer = kind(bits=bits, groups=groups, bit_order=order, entropy_bits=1).build().eval()
    quantized = quantizer(features(2, 5, groups * bits, seed=seed))
    assert quantizer.codebook_sizes == (2**bits,) * groups and quantized.ids.shape == (2, 5, groups)
    assert quantized.ids.min() >= 0 and (quantized.ids < 2**bits).all()
    assert torch.equal(quantizer.lookup(quantized.ids), quantized.features)
    if is_spherical:
        torch.testing.assert_close(quantized.features.norm(dim=-1), torch.ones(2, 5))
    ids = torch.randint(2**bits, (2, 5, groups), generator=torch.Generator().manual_seed(seed))
    assert torch.equal(quantizer(quantizer.lookup(ids)).ids, ids)


def test_orders_are_mirror_images_and_zero_is_no_bit():
    points = torch.tensor([[[0.5, 0.0, -2.0, 1.0]]])
    first = LookupFreeConfig(bits=4, bit_order="most_significant_first").build()(points)
    last = LookupFreeConfig(bits=4, bit_order="least_significant_first").build()(points)
    assert (first.ids.item(), last.ids.item()) == (0b1001, 0b1001)
    points = torch.tensor([[[0.5, 3.0, -2.0, -1.0]]])
    assert LookupFreeConfig(bits=4, bit_order="most_significant_first").build()(points).ids.item() == 0b1100
    assert LookupFreeConfig(bits=2, groups=2).build()(points).ids.tolist() == [[[3, 0]]]


@pytest.mark.parametrize("config", [LFQ_7, BSQ_7, replace(LFQ_7, groups=3)], ids=["lfq", "bsq", "groups"])
def test_same_as_the_library(config):
    is_spherical = isinstance(config, BinarySphericalConfig)
    library = LFQ(
        codebook_size=128,
        dim=7 * config.groups,
        num_codebooks=config.groups,
        spherical=is_spherical,
        commitment_loss_weight=1.0,
    )
    inputs = features(3, 11, 7 * config.groups, scale=0.05)
    ours, theirs = inputs.clone().requires_grad_(), inputs.clone().requires_grad_()
    quantized = config.build().train()(ours)
    (wanted, ids, _), terms = library.train()(theirs, return_loss_breakdown=True)
    assert torch.equal(quantized.ids, ids.long().view_as(quantized.ids))
    torch.testing.assert_close(quantized.features, wanted)
    torch.testing.assert_close(quantized.losses["commitment"], 0.25 * terms.commitment)
    # The library's logarithms end at 1e-5, and so its entropies are a little low.
    torch.testing.assert_close(quantized.stats["sample_entropy"], terms.per_sample_entropy, rtol=1e-3, atol=0)
    torch.testing.assert_close(quantized.stats["batch_entropy"], terms.batch_entropy, rtol=1e-3, atol=0)
    torch.testing.assert_close(quantized.losses["entropy"], 0.1 * (terms[0] - terms[1]), rtol=1e-2, atol=1e-4)
    direction = features(*inputs.shape, seed=1)
    gradients = torch.autograd.grad((quantized.features * direction).sum(), ours)
    torch.testing.assert_close(gradients, torch.autograd.grad((wanted * direction).sum(), theirs))


def naive_entropies(logits, weights):
    """Both entropies from a table of all codes, as the papers write them: vectors x codes of memory."""
    number = logits.shape[-1]
    codes = 2.0 * bits_of_ids(torch.arange(2**number), number, "most_significant_first").to(logits) - 1
    logs = (logits @ codes.T / 2).log_softmax(dim=-1)
    mean = (weights[:, None] * logs.exp()).sum(dim=0) / weights.sum()
    return -(logs.exp() * logs).sum(dim=-1), -torch.special.xlogy(mean, mean).sum()


@given(st.integers(1, 9), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 8.0]))
def test_entropies_and_gradients_are_those_of_the_table(number, seed, scale):
    logits = features(6, number, seed=seed, scale=scale).double().requires_grad_()
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    ours = sample_entropy(logits), batch_entropy(logits[:, None], weights)[0]
    for value, wanted in zip(ours, naive_entropies(logits, weights), strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-12)
        gradients = [torch.autograd.grad(one.sum(), logits, retain_graph=True)[0] for one in (value, wanted)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)


def test_gradients_are_those_of_finite_differences():
    logits, weights = features(5, 2, 3).double().requires_grad_(), torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0]).double()
    assert torch.autograd.gradcheck(sample_entropy, logits)
    assert torch.autograd.gradcheck(lambda one: batch_entropy(one, weights), logits)


def test_certain_bits_have_finite_gradients():
    logits = torch.full((4, 1, 6), 400.0, requires_grad=True)
    (sample_entropy(logits).sum() + batch_entropy(logits, torch.ones(4)).sum()).backward()
    assert torch.isfinite(logits.grad).all()


def test_sub_groups_bound_the_entropy_from_above():
    points = features(1, 500, 6) @ features(6, 6, seed=1)
    exact = LookupFreeConfig(bits=6, entropy_bits=6, inverse_temperature=1.0).build()(points).stats
    apart = LookupFreeConfig(bits=6, entropy_bits=2, inverse_temperature=1.0).build()(points).stats
    torch.testing.assert_close(exact["sample_entropy"], apart["sample_entropy"])
    assert exact["batch_entropy"] + 0.1 < apart["batch_entropy"] <= 6 * math.log(2)


def test_nothing_of_vectors_times_codes_is_made():
    logits = features(500, 1, 14).requires_grad_()
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        batch_entropy(logits, torch.ones(500)).backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 4 * 500 * 2**7 <= largest <= 8 * 500 * 2**7


@pytest.mark.parametrize("config", [LFQ_7, BSQ_7, replace(LFQ_7, groups=3)], ids=["lfq", "bsq", "groups"])
def test_masked_positions_count_in_no_term(config):
    # The library's batch entropy with a mask is the mean of the entropies, as its axis of groups is lost.
    points = features(3, 11, 7 * config.groups, scale=0.05)
    mask = torch.arange(11) < torch.tensor([[11], [8], [3]])
    quantizer = config.build().train()
    masked, known = quantizer(points, mask), quantizer(points[mask][None])
    torch.testing.assert_close(masked.losses, known.losses)
    torch.testing.assert_close(masked.stats, known.stats)


def test_half_precision_is_left_at_the_door():
    quantizer = BSQ_7.build().train()
    points = features(2, 9, 7).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(points)
    outside = quantizer(points.float())
    assert inside.features.dtype == torch.float32
    torch.testing.assert_close(inside.losses, outside.losses, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 63}, "bits must be in 1..62 for one stream, got 63; raise groups instead"),
        ({"bits": 0}, "bits must be in 1..62"),
        ({"groups": 0}, "groups must be 1 or more, got 0"),
        ({"bits": 30, "entropy_bits": 30}, "entropy_bits must be in 1..24 and divide the 30 bits of a stream, got 30"),
        ({"bits": 16, "entropy_bits": 7}, "divide the 16 bits of a stream, got 7"),
        ({"entropy_bits": 0}, "entropy_bits must be in 1..24"),
    ],
)
def test_bad_sizes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        LookupFreeConfig(**changes).build()


@pytest.mark.parametrize(
    "config",
    [LookupFreeConfig(bits=6, commitment=0.0), BinarySphericalConfig(bits=6, entropy_bits=6)],
    ids=["lfq", "bsq"],
)
def test_entropy_spreads_features_that_begin_as_few_codes(config):
    torch.manual_seed(0)
    quantizer, encoder = config.build().train(), torch.nn.Linear(8, 6)
    with torch.no_grad():
        encoder.weight.mul_(0.3)
        encoder.bias.fill_(0.5)  # most bits are 1
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.03)
    usage = []
    for step in range(50):
        quantized = quantizer(encoder(features(4, 128, 8, seed=step)))
        optimizer.zero_grad()
        sum(quantized.losses.values()).backward()
        optimizer.step()
        usage.append(quantized.stats["code_usage"].item())
    assert usage[0] < 0.3 and usage[-1] >= 0.9


def masked_batch():
    """Features in which two processes mean different codes, and of which they count unequally many."""
    points = features(4, 64, 12, scale=0.02)
    points[:2, :, 0], points[2:, :, 0] = points[:2, :, 0].abs(), -points[2:, :, 0].abs()
    mask = torch.ones(4, 64, dtype=torch.bool)
    mask[3, 9:] = False
    return points.requires_grad_(), mask


@pytest.mark.slow
def test_two_processes_have_the_entropy_and_gradient_of_one(tmp_path):
    points, mask = masked_batch()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, __file__, str(tmp_path)], check=True, timeout=120)
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    quantized = LookupFreeConfig(bits=6, groups=2, commitment=0.0).build().train()(points, mask)
    quantized.losses["entropy"].backward()
    assert points.grad is not None
    for part in parts:
        assert part["entropy"] == pytest.approx(quantized.losses["entropy"].item(), rel=1e-5)
        assert part["batch_entropy"] == pytest.approx(quantized.stats["batch_entropy"].item(), rel=1e-5)
    # A training averages gradients over processes.
    gradients = torch.cat([torch.tensor(part["gradient"]) for part in parts]) / 2
    torch.testing.assert_close(gradients, points.grad, rtol=1e-3, atol=1e-7)
    alone = LookupFreeConfig(bits=6, groups=2).build().train()(points[:2], mask[:2])
    assert alone.stats["batch_entropy"] < quantized.stats["batch_entropy"] - 0.1, "what a process has by itself is less"


def run_one_process(folder):
    """Writes what one of two processes makes of its half of the batch."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    points, mask = (half.detach().chunk(2)[rank] for half in masked_batch())
    points.requires_grad_()
    quantized = LookupFreeConfig(bits=6, groups=2, commitment=0.0).build().train()(points, mask)
    quantized.losses["entropy"].backward()
    values = {"entropy": quantized.losses["entropy"].item(), "gradient": points.grad.tolist()}
    values["batch_entropy"] = quantized.stats["batch_entropy"].item()
    (folder / f"{rank}.json").write_text(json.dumps(values))
    distributed.destroy_process_group()


if __name__ == "__main__":
    run_one_process(Path(sys.argv[1]))
