import json

import pytest
import torch
from einops import rearrange
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of, scene_rows
from rebus.data.scene_sampler import SceneSampler
from rebus.evaluation import decoder_steps, wrong_codes
from rebus.evaluation.judges import Verdict
from rebus.evaluation.painted_curves import table
from rebus.evaluation.painted_scenes import PaintedScenes, painted_scenes, painters, share_of
from rebus.model.rebus import Rebus
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens

LAYOUT = CodeLayout("grid", 4, (Stream("code", 15),), grid=(2, 2))
QUANTIZER = FiniteScalarConfig(levels=(5, 3)).build()


class Strict:
    """A judge who passes what is the true picture."""

    def __init__(self, images):
        self.images = rearrange(images, "b c h w -> b h w c").numpy()

    def verdicts(self, scenes, pictures):
        return [Verdict(bool((one == true).all()), "") for one, true in zip(pictures, self.images, strict=True)]


@pytest.fixture(scope="module")
def scenes():
    pack = EmojiPack.open()
    rows = scene_rows(SceneSampler(pack, [*pack.concepts][:9], "train"), 5, seed=0, step=0)
    images = pictures_of(rows, pack)
    ids = torch.randint(15, (5, 4, 1), generator=torch.Generator().manual_seed(0))
    tokens = [Tokens(part, torch.full((len(part),), 4), LAYOUT) for part in ids.split(3)]
    return PaintedScenes(rows, images, tokens, lambda images: [images], Strict(images))


class Knowing:
    """Paints the true pictures where it has the true codes, and the more of them the more steps there are."""

    def __init__(self, scenes):
        self.scenes, self.ids, self.seeds = scenes, torch.cat([one.ids for one in scenes.tokens]), []

    def render(self, tokens, *, steps=25, seed):
        self.seeds.append(list(seed))
        true = self.scenes.images[list(seed)] / 255
        known = (tokens.ids == self.ids[list(seed)]).float().mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        return (known * true - 0.4 / steps * (steps < 25)).clamp(0, 1)


def test_figures_are_best_for_the_true_pictures(scenes):
    true = scenes.images / 255
    best, worse = scenes.figures(true), scenes.figures(1 - true)
    assert best["judge"]["score"] == 1 and best["ssim"] > 0.999 and best["perceptual"] == 0 and best["frechet"] < 1e-9
    assert worse["judge"]["score"] == 0 and worse["frechet"] > 0.01 and worse["psnr_db"] < 10


def test_shares_are_below_one_for_what_is_worse_whichever_way_it_counts():
    best = {"psnr_db": 20.0, "frechet": 1.0, "judge": {"score": 0.8}}
    assert share_of(best, best) == {"psnr_db": 1, "frechet": 1, "judge": 1}
    worse = {"psnr_db": 19.0, "frechet": 2.0, "judge": {"score": 0.4}}
    assert share_of(worse, best) == {"psnr_db": 0.95, "frechet": 0.5, "judge": 0.5}
    assert share_of({**worse, "frechet": 0.0}, best)["frechet"] == 1


def test_steps_are_compared_with_the_same_noise(scenes):
    painter = Knowing(scenes)
    figures, painted = decoder_steps.curves(scenes, {"one": painter})
    assert painter.seeds == [[0, 1, 2], [3, 4]] * len(decoder_steps.STEPS)
    by_steps = [figures["one"][steps]["psnr_db"] for steps in decoder_steps.STEPS[:-1]]
    assert by_steps == sorted(by_steps)
    shares = figures["one"][1]["share_of_most_steps"]
    assert shares["judge"] == 0 and shares["ssim"] < 1 and figures["one"][25]["share_of_most_steps"]["ssim"] == 1
    sheet = decoder_steps.contact_sheet(scenes, painted)
    assert sheet.size == (5 * 128, 5 * 128)
    assert sheet.crop((0, 0, 640, 128)).tobytes() == sheet.crop((0, 512, 640, 640)).tobytes()  # true, and 25 steps


def test_more_wrong_codes_are_worse_and_all_decoders_see_the_same(scenes):
    painter = Knowing(scenes)
    seen = []

    def pixel_decoder(tokens, seeds):
        seen.append(tokens.ids)
        return painter.render(tokens, seed=seeds)

    renders = {"light": pixel_decoder, "own": lambda tokens, seeds: painter.render(tokens, seed=seeds)}
    figures = wrong_codes.curves(scenes, QUANTIZER, renders)
    assert figures["light"] == figures["own"] and [*figures["own"]] == [*wrong_codes.RATES]
    distances = [one["frechet"] for one in figures["own"].values()]
    assert distances[0] == pytest.approx(0, abs=1e-9) and distances[1] < distances[-1]
    assert wrong_codes.pfid(figures["own"]) == pytest.approx(sum(distances[1:]) / 5)
    shares = [(one != torch.cat([part.ids for part in scenes.tokens])[: len(one)]).float().mean() for one in seen[::2]]
    assert shares[0] == 0 and shares[-1] > 0.2


def test_every_point_of_a_curve_has_a_row(scenes):
    figures, _ = decoder_steps.curves(scenes, {"one": Knowing(scenes)})
    shown = table(figures, "steps", scenes.judged(scenes.images / 255), {"more": lambda one: "!"})
    assert shown.row_count == 6 and shown.columns[-1].header == "more"
    assert shown.title == "5 held-out scenes; the judge passes 1.000 of the true pictures"


def test_decoders_of_other_codes_are_refused(saved_model, tmp_path):
    model = Rebus.load(saved_model)
    own = painters(model, [])
    assert [*own] == [str(saved_model / "decoder")] and [*own.values()] == [model.painter]
    model.painter.decoder.save(tmp_path / "again")
    assert [*painters(model, [tmp_path / "again"])] == [str(tmp_path / "again")]
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    (tmp_path / "again" / "config.json").write_text(json.dumps({**values, "tokenizer_hash": "beef"}))
    with pytest.raises(ValueError, match="tokenizer_hash must be beef"):
        painters(model, [tmp_path / "again"])


@pytest.mark.parametrize("command", [decoder_steps, wrong_codes])
def test_the_commands_refuse(command, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--plot", "curves.jpg"])
    assert "--plot must be a .png file in a folder that exists, got curves.jpg" in capsys.readouterr().err


def test_one_scene_is_too_few(saved_model):
    with pytest.raises(ValueError, match="limit must be at least 2, got 1"):
        painted_scenes(Rebus.load(saved_model).image_tokenizer, 1)


@pytest.mark.slow
@pytest.mark.parametrize("command", [decoder_steps, wrong_codes])
def test_the_commands_print_and_draw(command, tmp_path, capsys):
    files = ["--plot", str(tmp_path / "plot.png")]
    if command is decoder_steps:
        files += ["--contact_sheet", str(tmp_path / "sheet.png")]
    command.main(["--limit", "6", *files, "--json"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["judge_ceiling"]["n"] == 6
    assert all(len(points) in (5, 6) and points for points in figures["decoders"].values())
    for file in files[1::2]:
        with Image.open(file) as image:
            assert image.width > 500
