"""Layouts whose pictures say themselves how many codes they take: by the patches they keep, or by queries that halt."""

import pytest
import torch

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.contract import Extras
from rebus.tokenizers.layouts.halting import ERRORS, HaltingQueriesConfig
from rebus.tokenizers.layouts.select_merge import SelectMergeConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.supervision.supervision import SupervisionConfig
from rebus.tokenizers.tokens import Stream
from rebus.train.taught_tokenizer import TaughtTokenizer, TokenizerBatch

GRIDS = (((3, 3),),)
SMALL = {"depth": 1, "num_heads": 2}


def built(config):
    torch.manual_seed(0)
    return config.build(16, 4, GRIDS).eval()


def patches(number=4):
    return Patches(torch.randn(number, 9, 16, generator=torch.Generator().manual_seed(0)), ((3, 3),))


def scored(scores, **fields):
    """Selection by given scores of the patches instead of learned ones."""
    layout = built(SelectMergeConfig(**SMALL, **fields))
    layout.look = torch.nn.Identity()
    layout.score = torch.nn.Linear(16, 1)
    with torch.no_grad():
        layout.score.weight.copy_(torch.eye(16)[:1])
        layout.score.bias.zero_()
    cells = patches(len(scores)).features
    cells[..., 0] = torch.tensor(scores)
    return layout, Patches(cells, ((3, 3),))


SCORES = [[-1.0, 2, -1, 3, -1, -1, -1, -1, 1], [-3, -3, -3, -3, -2, -3, -3, -3, -3], [1.0] * 9]


def test_kept_patches_stand_first_in_raster_order_and_one_is_always_kept():
    layout, given = scored(SCORES)  # fresh blocks pass on what comes in
    kept = layout(given)
    assert kept.mask.sum(dim=1).tolist() == [3, 1, 9]
    places = [[1, 3, 8], [4], list(range(9))]
    for row, cells in enumerate(places):
        own = given.features[row, cells] + layout.places[cells]
        torch.testing.assert_close(kept.features[row, : len(cells)], own)
    sizes = layout.code_layout((Stream("code", 5),)).grids
    assert sizes == tuple((1, length) for length in range(1, 10))


def test_kept_patches_read_the_kept_ones_before_them_and_all_that_were_not_kept():
    layout, _ = scored(SCORES)
    block = layout.blocks[0]
    for attention in (block.among_kept, block.to_others):
        torch.nn.init.normal_(attention.output.weight)
    features, kept = torch.randn(1, 9, 16), (torch.tensor(SCORES[:1]) > 0).float()
    before = block(features, features, kept)
    for cell, reached in ((1, [1, 3, 8]), (3, [3, 8]), (8, [8]), (5, [1, 3, 8]), (0, [1, 3, 8])):
        other = features.clone()
        other[:, cell] = torch.randn(16)
        moved = (block(other, other, kept) - before).abs().amax(dim=(0, 2)) > 1e-5
        assert [place for place in (1, 3, 8) if moved[place]] == reached


def test_noise_keeps_patches_as_often_as_their_score_says_and_counts_in_training_alone():
    layout, given = scored([[0.0, 2, -2, 1, -1, 3, -3, 0.5, -0.5]] * 1000)
    extras = Extras(noise=layout.draw_noise(1000, torch.Generator().manual_seed(0)))
    assert torch.equal(layout(given, extras).features, layout(given).features)
    choices = []
    layout.blocks[0].register_forward_hook(lambda module, args, result: choices.append(args[2]))
    share = layout.train()(given, extras).losses["share_kept"]
    torch.testing.assert_close(choices[0].mean(dim=0), given.features[0, :, 0].sigmoid(), atol=0.05, rtol=0)
    torch.testing.assert_close(share, 2 * torch.tensor(4 / 9 - 1 / 3).square())  # four scores are above 0


def test_the_share_kept_is_pulled_to_its_target():
    layout, given = scored(torch.randn(60, 9).tolist(), target_share=0.3, share_weight=3.0)
    assert layout(given).losses == {}
    shares = []
    for _ in range(12):
        loss = layout.train()(given).losses["share_kept"]
        (gradient,) = torch.autograd.grad(loss, layout.score.bias)
        shares.append(layout(given).mask.float().mean().item())
        assert loss.item() == pytest.approx(3 * (shares[-1] - 0.3) ** 2, abs=1e-6)
        with torch.no_grad():
            layout.score.bias -= 3 * gradient
    assert shares[0] > 0.45 and abs(shares[-1] - 0.3) < 0.02


def test_choices_learn_from_what_they_let_through():
    layout, given = scored(SCORES)
    for attention in (layout.blocks[0].among_kept, layout.blocks[0].to_others):
        torch.nn.init.normal_(attention.output.weight)
    kept = layout(given)
    (kept.features * kept.mask[..., None]).square().sum().backward()
    assert layout.score.bias.grad.abs() > 1e-3


# Halting


def halting(**fields):
    layout = built(HaltingQueriesConfig(**{"num_queries": 7} | SMALL | fields))
    with torch.no_grad():
        for parameter in layout.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return layout


def test_queries_that_do_not_halt_are_counted():
    layout = halting(threshold=0.6)
    read = []
    layout.halt.register_forward_hook(lambda module, args, result: read.append(result[..., 0].sigmoid()))
    given = patches(40)
    lengths = layout(given).mask.sum(dim=1)
    assert torch.equal(lengths, (read[0] <= 0.6).sum(dim=1).clamp_min(1)) and len(set(lengths.tolist())) > 2
    alone = [int(layout(Patches(cells[None], given.grids)).mask.sum()) for cells in given.features[:9]]
    assert alone == lengths[:9].tolist()
    for bias, length in ((50.0, 1), (-50.0, 7)):
        torch.nn.init.constant_(layout.halt[-1].bias, bias)
        assert (layout(patches()).mask.sum(dim=1) == length).all()


def test_the_first_pass_has_no_queries_beyond_the_drawn_ones_and_the_second_has_all():
    layout, lengths = halting(), torch.tensor([1, 3, 7, 5])
    passes = [Extras(lengths), Extras(lengths, errors=torch.full((4,), 0.1))]
    before = [layout(patches(), extras) for extras in passes]
    with torch.no_grad():
        layout.queries[5:] += torch.randn(2, 16)
    after = [layout(patches(), extras) for extras in passes]
    for number, unmoved in enumerate(([True, True, False, True], [False] * 4)):
        assert before[number].mask.sum(dim=1).tolist() == lengths.tolist()
        same = [
            torch.allclose(*(part[number].features[row, :1] for part in (before, after)), atol=1e-5) for row in range(4)
        ]
        assert same == unmoved


def test_queries_are_told_the_wanted_error():
    layout = halting(wanted_error=0.05)
    told = []
    layout.wanted.register_forward_hook(lambda module, args, result: told.extend(args[0].tolist()))
    layout(patches(1))
    layout(patches(1), Extras(torch.tensor([3])))
    errors = torch.tensor([0.0, 0.005, 0.0051, 0.1, 0.37, 2.0])
    layout(patches(6), Extras(torch.full((6,), 3), errors=errors))
    assert told == [ERRORS.index(0.05), 0, 0, 0, 1, ERRORS.index(0.1), len(ERRORS) - 1, len(ERRORS) - 1]


def test_given_queries_are_to_go_on_and_others_to_halt():
    layout = halting(halting_weight=2.0)
    scores, given = torch.randn(4, 7), torch.arange(7) < torch.tensor([[1], [3], [7], [5]])
    chances = scores.sigmoid()
    go_on, halt = -(1 - chances[given]).log().mean(), -chances[~given].log().mean()
    torch.testing.assert_close(layout._loss(scores, given, has_all=False), 2 * go_on)
    torch.testing.assert_close(layout._loss(scores, given, has_all=True), 2 * (go_on + halt))
    everything = torch.ones_like(given)
    torch.testing.assert_close(layout._loss(scores, everything, has_all=True), -2 * (1 - chances).log().mean())


def test_training_shows_a_batch_again_with_the_errors_that_the_drawn_lengths_left():
    tokenizer = ImageTokenizerConfig(
        image_size_px=24,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        layout=HaltingQueriesConfig(num_queries=7, **SMALL),
        quantizer=FiniteScalarConfig(levels=(8, 5, 5, 5)),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build()
    only_pixels = SupervisionConfig(pixel_l1=1.0, pixel_l2=0.0, contrastive=0.0, caption=0.0, region=0.0, text_dim=64)
    taught = TaughtTokenizer(
        tokenizer, only_pixels.build(num_pieces=3, pad=0, num_names=2, canvas=tokenizer.canvas, widths={})
    )
    images, lengths = torch.rand(4, 3, 24, 24), torch.tensor([1, 3, 7, 5])
    nothing = torch.zeros(4, 7, dtype=torch.long)
    batch = TokenizerBatch(
        images=images,
        lengths=lengths,
        noise=None,
        captions=nothing,
        text=None,
        regions=nothing,
        step=0,
        seeds=torch.arange(4),
    )
    loss, terms = taught(batch)
    first = tokenizer.quantize(images, lengths)
    errors = (tokenizer.paint(first) - images).abs().mean(dim=(1, 2, 3))
    second = tokenizer.quantize(images, lengths, errors=errors.detach())
    left = (tokenizer.paint(second) - images).abs().mean()
    torch.testing.assert_close(terms["pixel_l1"], ((errors.mean() + left) / 2).detach())
    torch.testing.assert_close(terms["halting"], ((first.losses["halting"] + second.losses["halting"]) / 2).detach())
    torch.testing.assert_close(loss.detach(), terms["pixel_l1"] + terms["halting"])
    assert not torch.isclose(first.losses["halting"], second.losses["halting"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SelectMergeConfig(target_share=1.0), "target_share must be above 0 and below 1, got 1.0"),
        (SelectMergeConfig(depth=0), "depth must be at least 1, got 0"),
        (SelectMergeConfig(num_heads=3), "dim must be a multiple of num_heads = 3, got 16"),
        (HaltingQueriesConfig(num_queries=1), "num_queries must be at least 2, got 1"),
        (HaltingQueriesConfig(wanted_error=0.5), "wanted_error must be above 0 and at most 0.38, got 0.5"),
        (HaltingQueriesConfig(threshold=1.0), "threshold must be above 0 and below 1, got 1.0"),
    ],
)
def test_what_cannot_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(16, 4, GRIDS)


def test_a_single_patch_leaves_nothing_to_choose():
    with pytest.raises(ValueError, match=r"grid of patches to choose from must have at least 2, got \(1, 1\)"):
        SelectMergeConfig().build(16, 4, (((1, 1),),))
