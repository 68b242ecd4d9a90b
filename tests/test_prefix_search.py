"""The search for codes: what it must share with plain drawing, and that it finds what it searches for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rebus.model.language_model import LanguageModelConfig
from rebus.model.prefix_search import PrefixSearch, search
from rebus.model.rebus import Rebus
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.vocabulary import Vocabulary
from rebus.train.assemble import AssembleConfig, assemble

PROMPTS = ["a cat", "two dogs on the left", "a red banana"]
SEEDS = [3, 8, 1]
BEST = PrefixSearch(drafts=8)
BEAM = PrefixSearch(drafts=8, kept=2, choose_at=(2, 4, 7))
LOOKAHEAD = replace(BEAM, ahead=9)
SMALL = PrefixSearch(drafts=4, kept=2, choose_at=(2, 5), ahead=1)
WANTED = 7
"""A code that the toy verifier counts."""


@pytest.fixture(scope="module")
def rebus(saved_model):
    return Rebus.load(saved_model)


@pytest.fixture(scope="module")
def nested(tmp_path_factory, text_tokenizer):
    """A model of which any first codes are a picture."""
    folder = tmp_path_factory.mktemp("nested")
    torch.manual_seed(0)
    image_tokenizer = ImageTokenizerConfig(
        image_size_px=16,
        encoder=VitEncoderConfig(patch_px=8, dim=16, depth=1, num_heads=2),
        layout=NestedQueriesConfig(num_queries=5),
        quantizer=FiniteScalarConfig(levels=(5, 3)),
        pixel_decoder=VitPixelDecoderConfig(dim=16, depth=1, num_heads=2),
    ).build()
    image_tokenizer.save(folder / "image_tokenizer")
    vocabulary = Vocabulary(text_tokenizer.num_pieces, image_tokenizer.layout)
    sizes = LanguageModelConfig(dim=20, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=28, max_positions=96)
    language_model = sizes.build(vocabulary, torch.Generator().manual_seed(1))
    language_model.config.image_tokenizer_hash = image_tokenizer.hash
    language_model.save_pretrained(folder / "language_model")
    text_tokenizer.save(folder / "language_model", vocabulary)
    parts = {name: folder / name for name in ("language_model", "image_tokenizer")}
    settings = replace(AssembleConfig(**parts, decoder=folder, vae=folder, output=folder).settings, painter="pixels")
    assemble(AssembleConfig(**parts, output=folder / "model", settings=settings))
    return Rebus.load(folder / "model")


class CodesAsPixels:
    """Paints each code as one pixel, and black where codes lack."""

    def decode(self, tokens):
        rows = torch.nn.functional.pad(tokens.ids[..., 0] + 1, (0, 9 - tokens.ids.shape[1]))
        return (rows / 255)[:, None, None].expand(-1, 3, -1, -1)


def count(prompts, pictures):
    assert len(prompts) == len(pictures)
    return [float((np.asarray(picture)[..., 0] == WANTED + 1).sum()) for picture in pictures]


@pytest.fixture
def counted(saved_model):
    """Searches with a verifier that counts a code; returns the counts of what was found, and what it took."""
    rebus = Rebus.load(saved_model)
    rebus.image_tokenizer = CodesAsPixels()

    def run(how):
        found = search(rebus, PROMPTS, how, seed=SEEDS, verifier=count, temperature=2.0)
        return (found.tokens.ids == WANTED).sum(dim=(1, 2)).tolist(), found

    return run


def test_without_choices_on_the_way_it_is_best_of(rebus):
    found = search(rebus, PROMPTS, PrefixSearch(drafts=5), seed=SEEDS)
    drawn = rebus.draw(PROMPTS, seed=SEEDS, best_of=5)
    assert torch.equal(found.tokens.ids, torch.cat([one.tokens.ids for one in drawn]))
    assert (found.num_codes, found.num_paintings, found.num_readings) == (3 * 5 * 9, 0, 3 * 5)


def test_a_single_draft_is_plain_drawing_wherever_is_chosen(rebus):
    found = search(rebus, PROMPTS, PrefixSearch(drafts=1, choose_at=(2, 3, 7)), seed=SEEDS, guidance=2.0)
    drawn = rebus.draw(PROMPTS, seed=SEEDS, guidance=2.0)
    assert torch.equal(found.tokens.ids, torch.cat([one.tokens.ids for one in drawn]))
    assert (found.num_codes, found.num_paintings, found.num_readings) == (3 * 9, 0, 0)


def test_where_all_drafts_are_kept_nothing_changes(rebus):
    kept = search(rebus, PROMPTS, PrefixSearch(drafts=4, kept=4, choose_at=(1, 6)), seed=SEEDS)
    assert torch.equal(kept.tokens.ids, search(rebus, PROMPTS, PrefixSearch(drafts=4), seed=SEEDS).tokens.ids)


@pytest.mark.parametrize("most_rows", [64, 7])
def test_a_picture_is_the_same_alone_and_in_a_batch(rebus, most_rows, monkeypatch):
    monkeypatch.setattr("rebus.model.prefix_search.MOST_ROWS", most_rows)  # of 7, a batch has room for one prompt
    together = search(rebus, PROMPTS, SMALL, seed=SEEDS)
    alone = search(rebus, PROMPTS[1:2], SMALL, seed=SEEDS[1])
    assert torch.equal(together.tokens.ids[1:2], alone.tokens.ids)
    assert together.num_codes == 3 * alone.num_codes and together.num_readings == 3 * alone.num_readings


def test_a_beam_finds_more_than_best_of_for_the_same_codes(counted):
    best, found = counted(BEST)
    beam, searched = counted(replace(BEAM, choose_at=tuple(range(1, 9))))
    assert found.num_codes == searched.num_codes == 3 * 8 * 9 and found.num_paintings == 3 * 8
    assert sum(beam) >= sum(best) + 4 and all(one >= other for one, other in zip(beam, best, strict=True))
    assert searched.num_readings == searched.num_paintings == 3 * 8 * 9


def test_a_lookahead_finds_more_than_best_of_for_the_same_codes(counted):
    best, found = counted(PrefixSearch(drafts=40))
    ahead, searched = counted(PrefixSearch(drafts=8, kept=2, choose_at=tuple(range(1, 9)), ahead=9))
    assert found.num_codes == searched.num_codes == 3 * 8 * 45
    assert sum(ahead) > sum(best)


def test_looking_ahead_to_the_end_never_loses_what_was_seen(counted):
    (best, _), (ahead, _) = counted(BEST), counted(LOOKAHEAD)
    assert all(one >= other for one, other in zip(ahead, best, strict=True))


def test_a_grid_is_painted_with_what_it_has_and_read_as_a_picture(rebus):
    found = search(rebus, PROMPTS[:1], replace(SMALL, ahead=0))
    assert (found.num_codes, found.num_paintings, found.num_readings) == (4 * 9, 4 * 2, 4 * 3)
    assert rebus.paint(found.tokens)[0].image.size == (24, 24)
    ahead = search(rebus, PROMPTS[:1], replace(SMALL, ahead=9))
    assert (ahead.num_codes, ahead.num_paintings, ahead.num_readings) == (4 * (9 + 7 + 4), 0, 4 * 3)


def test_nested_codes_are_judged_from_the_first_on(nested):
    seen = []

    def brightness(prompts, pictures):
        seen.append([picture.size for picture in pictures])
        return [float(np.asarray(picture).mean()) for picture in pictures]

    how = PrefixSearch(drafts=6, choose_at=(1, 2, 4))
    found = search(nested, PROMPTS[:1], how, verifier=brightness)
    assert seen == [[(16, 16)] * 6] * 4
    best = search(nested, PROMPTS[:1], PrefixSearch(drafts=6), verifier=brightness)
    (bright,), (less,) = (nested.image_tokenizer.decode(one.tokens).mean(dim=(1, 2, 3)) for one in (found, best))
    assert bright > less
    assert search(nested, PROMPTS[:1], how).num_readings == 6 * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drafts": 0}, "drafts must be at least 1, got 0"),
        ({"kept": 0}, r"kept must lie in \[1, 8\], got 0"),
        ({"kept": 9}, r"kept must lie in \[1, 8\], got 9"),
        ({"choose_at": (0, 3)}, r"choose_at must be positions of 1 and more, ascending, got \(0, 3\)"),
        ({"choose_at": (4, 4)}, "choose_at must be positions of 1 and more, ascending"),
        ({"ahead": -1}, "ahead must be at least 0, got -1"),
        ({"choose_at": ()}, "kept and ahead must be 1 and 0 where nothing is chosen on the way, got 2 and 0"),
    ],
)
def test_searches_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(BEAM, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"how": replace(BEAM, choose_at=(9,))}, r"choose_at must be among the positions 1 to 8, got \(9,\)"),
        ({"guesses": 2}, "guesses and by_level must be 0 and False in a search, got 2 and False"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
        ({"seed": [1]}, "seed must be one or 3, got 1"),
        ({"verifier": lambda _, pictures: [0.0]}, "verifier must give a number for each of 24 pictures, got"),
        ({"verifier": lambda _, pictures: [float("nan")] * 24}, "verifier must give a number for each of 24 pictures"),
    ],
)
def test_what_cannot_be_searched_for(rebus, changes, message):
    with pytest.raises(ValueError, match=message):
        search(rebus, PROMPTS, changes.pop("how", BEAM), **changes)
