from dataclasses import replace

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.layouts.select_merge import SelectMergeConfig
from rebus.train.loop import train
from rebus.train.recipes.all import presets
from rebus.train.tokenizer import PRESETS, TokenizerStage, tiny


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


def test_it_learns_the_scenes_and_exports_what_it_learned(pack, tmp_path):
    config = replace(tiny(), run=replace(tiny().run, output=tmp_path))
    stage = TokenizerStage(config, pack)
    stage.model.eval()
    before = stage.validate()["psnr_db"]
    assert train(stage, config.run, config.optim, config)
    stage.model.eval()
    assert stage.validate()["psnr_db"] > before + 3
    assert (tmp_path / "samples" / "rebuilt.png").is_file()
    exported = ImageTokenizer.load(tmp_path / "export")
    assert exported.hash == stage.model.tokenizer.hash


@pytest.mark.parametrize(
    ("layout", "drawn"), [(NestedQueriesConfig(num_heads=2), "lengths"), (SelectMergeConfig(num_heads=2), "noise")]
)
def test_ranks_share_the_batch_of_one_process(pack, layout, drawn):
    config = tiny()
    tokenizer = replace(config.tokenizer, layout=layout)
    supervision = replace(config.supervision, region=0.0)
    stage = TokenizerStage(replace(config, tokenizer=tokenizer, supervision=supervision), pack)
    whole, parts = stage.batch(3, 0, 1), [stage.batch(3, rank, 2) for rank in range(2)]
    for name in ("images", drawn, "captions", "regions"):
        for rank, part in enumerate(parts):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::2])
    assert not torch.equal(whole.images, stage.batch(4, 0, 1).images)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(presets())))  # test_recipes.py has the others
def test_every_preset_builds_and_takes_a_loss(name, pack):
    config = PRESETS[name]()
    small = replace(config, run=replace(config.run, batch_size=2), num_texts=500, num_text_pieces=420)
    stage = TokenizerStage(small, pack)
    loss, terms = stage.loss(stage.batch(0, 0, 1))
    assert torch.isfinite(loss) and {"pixel_l1", "contrastive", "caption"} <= set(terms)
