import json

import pytest
import torch
from einops import rearrange, reduce
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.evaluation import super_resolution
from rebus.evaluation.judges import Verdict
from rebus.evaluation.painted_scenes import PaintedScenes
from rebus.evaluation.super_resolution import ENLARGED, LARGE, REBUILT, TRUE_ENLARGED, drawn_large, enlarged, renders
from rebus.model.command_line import SHIPPED_MODEL
from rebus.model.decoder import DecoderConfig
from rebus.model.vae import VaeConfig, fit_scale
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

LAYOUT = CodeLayout("grid", 4, (Stream("code", 15),), grid=(2, 2))


class Near:
    """A judge of the usual size who passes what is about the true picture."""

    def __init__(self, images):
        self.images = rearrange(images, "b c h w -> b h w c").float().numpy()

    def verdicts(self, scenes, pictures):
        assert pictures.shape == self.images.shape
        return [Verdict(bool(abs(one - true).mean() < 12), "") for one, true in zip(pictures, self.images, strict=True)]


class Knowing:
    """Paints the true pictures of a size, and tells how it was asked."""

    def __init__(self, images):
        self.images, self.asked = images, []

    def render(self, tokens, *, steps, seed):
        assert len(tokens.ids) == len(seed)
        self.asked.append((steps, [*seed]))
        return self.images[list(seed)] / 255


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def scenes(pack):
    rows = scene_rows(SceneSampler(pack, [*pack.concepts][:9], "train"), 5, seed=0, step=0)
    images = pictures_of(rows, pack)
    tokens = [Tokens(torch.zeros(n, 4, 1, dtype=torch.long), torch.full((n,), 4), LAYOUT) for n in (3, 2)]
    return PaintedScenes(rows, images, tokens, lambda images: [images], Near(images))


@pytest.fixture(scope="module")
def large(scenes, pack):
    return drawn_large(scenes, pack, 256)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    vae = VaeConfig(fold_px=4, block_out_channels=(8, 8)).build().eval()
    fit_scale(vae, torch.rand(2, 3, 64, 64))
    return vae


@pytest.mark.parametrize("side", [14, 21])
def test_pictures_are_enlarged_as_pillow_enlarges_them(side):
    # Colours so mild that nothing overshoots: Pillow cuts that off after rows and again after columns.
    picture = torch.randint(80, 170, (1, 3, 7, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    by_pillow = Image.fromarray(rearrange(picture[0], "c h w -> h w c").numpy()).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    ours = rearrange(enlarged(picture / 255, side)[0], "c h w -> h w c")
    torch.testing.assert_close(
        ours, torch.tensor(list(by_pillow.tobytes())).view(side, side, 3) / 255, atol=0.006, rtol=0
    )


def test_large_scenes_show_the_same_with_finer_detail(scenes, large):
    assert large.images.shape == (5, 3, 256, 256) and large.tokens is scenes.tokens
    shrunk = reduce(large.images.float(), "b c (h p) (w q) -> b c h w", "mean", p=2, q=2)
    assert (shrunk - scenes.images).abs().mean() < 3
    assert large.judged(large.images / 255)["score"] == 1 and large.judged(1 - large.images / 255)["score"] == 0


@pytest.mark.parametrize("side", [128, 64, 320])
def test_a_decoder_that_paints_no_larger_is_refused(side, scenes, pack):
    with pytest.raises(ValueError, match=f"decoder must be one that paints twice 128 px, .* got {side} px"):
        drawn_large(scenes, pack, side)


def test_what_is_painted_large_is_held_against_what_is_enlarged(scenes, large, vae):
    own, decoder = Knowing(scenes.images), Knowing(large.images)
    figures, pictures = super_resolution.compared(large, renders(scenes, large, own, decoder, vae, 3))
    assert own.asked == decoder.asked == [(3, [0, 1, 2]), (3, [3, 4])]
    assert figures[LARGE]["perceptual"] == 0 and figures[LARGE]["judge"]["score"] == 1
    assert 15 < figures[ENLARGED]["psnr_db"] < 40 and torch.equal(pictures[ENLARGED], pictures[TRUE_ENLARGED])
    assert figures[REBUILT]["psnr_db"] < 15  # by an untrained auto-encoder
    shown = super_resolution.table(figures, large.judged(large.images / 255))
    assert shown.row_count == 4 and [*shown.columns[0].cells] == [*figures]
    sheet = super_resolution.contact_sheet(large, pictures)
    assert sheet.size == (5 * 256, 3 * 256)
    assert sheet.crop((0, 0, 1280, 256)).tobytes() == sheet.crop((0, 512, 1280, 768)).tobytes()
    assert sheet.crop((0, 0, 1280, 256)).tobytes() != sheet.crop((0, 256, 1280, 512)).tobytes()


def test_the_command_refuses(capsys):
    with pytest.raises(SystemExit, match="2"):
        super_resolution.main(["--decoder", "none", "--contact_sheet", "sheet.jpg"])
    assert "--contact_sheet must be a .png file in a folder that exists, got sheet.jpg" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_prints_and_draws(tmp_path, capsys):
    tokenizer = ImageTokenizer.load(SHIPPED_MODEL / "image_tokenizer")
    config = DecoderConfig(latent_size=(64, 64), dim=16, depth=1, num_heads=2)
    config.build(tokenizer.layout, tokenizer.hash).save(tmp_path / "decoder")
    files = ["--decoder", str(tmp_path / "decoder"), "--contact_sheet", str(tmp_path / "sheet.png")]
    super_resolution.main([*files, "--limit", "2", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["steps"] == 4 and found["judge_ceiling"]["n"] == 2
    # Noise, which is all that an untrained decoder paints, is worse than anything else.
    assert min(found["pictures"], key=lambda name: found["pictures"][name]["psnr_db"]) == LARGE
    assert all(one["seconds_per_picture"] > 0 for one in found["pictures"].values())
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (2 * 256, 3 * 256)
