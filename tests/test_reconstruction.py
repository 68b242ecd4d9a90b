import json

import pytest
import torch

from rebus.data.emoji import EmojiPack
from rebus.evaluation import reconstruction
from rebus.evaluation.reconstruction import linear_probe
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig


def test_probe_reads_linear_facts_and_no_others():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 7, generator=generator) * 5 + 3
    linear, parity = features[:, :3].argmax(dim=1), ((features > 3).sum(dim=1) % 2).long()
    assert linear_probe(features[60:], linear[60:], features[:60], linear[:60]).score > 0.9
    assert linear_probe(features[60:], parity[60:], features[:60], parity[:60]).score < 0.75


def test_command_reports_on_a_saved_tokenizer(tmp_path, capsys):
    torch.manual_seed(0)
    small = {"dim": 16, "depth": 1, "num_heads": 1}
    config = ImageTokenizerConfig(encoder=VitEncoderConfig(**small), pixel_decoder=VitPixelDecoderConfig(**small))
    config.build().save(tmp_path / "tokenizer")
    reconstruction.main(["--image_tokenizer", str(tmp_path / "tokenizer"), "--limit", "8", "--json"])
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    speeds = {"encoded_per_second", "decoded_per_second"}
    codes = {"num_positions", "codes_in_use", "perplexity", "probe_pooled", "probe_positions"}
    assert set(figures) == {"psnr_db", "ssim"} | speeds | codes
    assert 0 < figures["psnr_db"] < 30 and figures["probe_pooled"]["n"] == 8
    (perplexity,), (share,) = figures["perplexity"].values(), figures["codes_in_use"].values()
    assert 1 <= perplexity and 0 < share <= 1


def test_limit_must_be_positive():
    tokenizer = ImageTokenizerConfig().build().eval()
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        reconstruction.reconstruction(tokenizer, EmojiPack.open(), ("cat", "dog"), 0)


def test_a_wrong_folder_is_one_line_and_exit_2(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        reconstruction.main(["--image_tokenizer", str(tmp_path)])
    assert "must hold a saved image tokenizer" in capsys.readouterr().err.splitlines()[-1]
