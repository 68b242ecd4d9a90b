"""What a decoder that paints larger than the image tokenizer sees adds to enlarging what a smaller one paints.

python -m rebus.evaluation.super_resolution --decoder runs/decoder_256/export --contact_sheet sheet.png

The truth is held-out scenes drawn as large as the decoder paints; the codes are those of the same scenes at their usual
size. Beside what it paints stand what the model's own decoder paints, enlarged, which is what one would do without it,
and two ceilings: the true pictures of the usual size, enlarged, and the true large ones through the auto-encoder. To
enlarge is bicubic interpolation, as Pillow does it. The judge knows the usual size, and sees all pictures shrunk to it.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, UInt8
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.data.scene_batches import pictures_of
from rebus.data.scenes import SCENE_SIZE_PX, Scene
from rebus.evaluation.judges import Verdict
from rebus.evaluation.painted_curves import HEADINGS, cells, check_files
from rebus.evaluation.painted_scenes import PaintedScenes, Painter, SceneJudge, painted_scenes, painters
from rebus.model.command_line import CommandParser
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.rebus import Rebus
from rebus.model.vae import decode_latents, downsampling, encode_latents, load_vae
from rebus.tokenizers.tokens import Tokens

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

LARGE, ENLARGED = "painted large", "painted, enlarged"
TRUE_ENLARGED, REBUILT = "true, enlarged", "true, through the auto-encoder"
_SHEET_COLUMNS = 8
Pictures = Float[Tensor, "batch 3 height width"]
Render = Callable[[Tokens, Sequence[int]], Pictures]


class ShrinkingJudge:
    """Shows large pictures to a judge who knows the usual size."""

    def __init__(self, judge: SceneJudge) -> None:
        self.judge = judge

    def verdicts(self, scenes: Sequence[Scene], pictures: UInt8[np.ndarray, "batch height width 3"]) -> list[Verdict]:
        """Returns the judge's verdicts; each pixel that it sees is the mean of those in its place."""
        side = {"h": SCENE_SIZE_PX, "w": SCENE_SIZE_PX}
        shrunk = reduce(pictures.astype(np.float32), "b (h p) (w q) c -> b h w c", "mean", **side)
        return self.judge.verdicts(scenes, shrunk.round().astype(np.uint8))


def enlarged(pictures: Pictures, side_px: int) -> Float[Tensor, "batch 3 side_px side_px"]:
    """Returns pictures in [0, 1] by bicubic interpolation, as Pillow does it."""
    # Without antialiasing torch takes another cubic; there is nothing to smooth where pictures grow.
    return F.interpolate(pictures, (side_px, side_px), mode="bicubic", antialias=True).clamp(0, 1)


def drawn_large(scenes: PaintedScenes, pack: EmojiPack, side_px: int) -> PaintedScenes:
    """Returns the same scenes and codes, with larger true pictures, and a judge who looks at these from further away.

    Raises:
        ValueError: if the size is no whole number of times the usual one, or no larger.
    """
    scale = side_px // SCENE_SIZE_PX
    if scale < 2 or side_px % SCENE_SIZE_PX:
        wanted = f"one that paints twice {SCENE_SIZE_PX} px, or another whole number of times"
        raise ValueError(f"decoder must be {wanted}, got {side_px} px")
    return replace(scenes, images=pictures_of([*scenes.scenes], pack, scale), judge=ShrinkingJudge(scenes.judge))


def renders(
    scenes: PaintedScenes, large: PaintedScenes, own: Painter, decoder: Painter, vae: "AutoencoderKL", steps: int
) -> dict[str, Render]:
    """Returns what makes large pictures of codes, or in place of them of the true pictures, by name.

    Args:
        scenes: of the usual size.
        large: the same as large as the decoder paints.
        own: paints the usual size.
        decoder: paints the large one.
        vae: the auto-encoder in whose latents both paint.
        steps: evaluations of either decoder.
    """
    side_px, device = large.images.shape[-1], vae.encoder.conv_in.weight.device

    def rebuilt(_: Tokens, rows: Sequence[int]) -> Pictures:
        return decode_latents(vae, encode_latents(vae, large.images[list(rows)].to(device) / 255)).cpu()

    return {
        LARGE: lambda tokens, rows: decoder.render(tokens, steps=steps, seed=rows).cpu(),
        ENLARGED: lambda tokens, rows: enlarged(own.render(tokens, steps=steps, seed=rows).cpu(), side_px),
        TRUE_ENLARGED: lambda _, rows: enlarged(scenes.images[list(rows)] / 255, side_px),
        REBUILT: rebuilt,
    }


def compared(
    large: PaintedScenes, renders: Mapping[str, Render], say: Any = lambda _: None
) -> tuple[dict[str, dict[str, Any]], dict[str, Pictures]]:
    """Returns the figures of each way to make large pictures, with the seconds that one took, and the pictures."""
    figures: dict[str, dict[str, Any]] = {}
    pictures: dict[str, Pictures] = {}
    for name, render in renders.items():
        say(name)
        began = time.perf_counter()
        pictures[name] = large.paint(render)
        seconds = (time.perf_counter() - began) / len(pictures[name])
        figures[name] = {**large.figures(pictures[name]), "seconds_per_picture": seconds}
    return figures, pictures


def table(figures: Mapping[str, Mapping[str, Any]], ceiling: Mapping[str, float]) -> Table:
    """Returns a row for each way, under the judge's score of the true pictures."""
    title = f"{ceiling['n']} held-out scenes; the judge passes {ceiling['score']:.3f} of the true pictures, shrunk"
    rows = Table("pictures", *HEADINGS, "seconds each", title=title)
    for name, one in figures.items():
        rows.add_row(name, *cells(one), f"{one['seconds_per_picture']:.3f}")
    return rows


def contact_sheet(large: PaintedScenes, pictures: Mapping[str, Pictures]) -> Image.Image:
    """Returns three rows of pictures: the true ones, painted and enlarged, painted large."""
    rows = torch.stack([one[:_SHEET_COLUMNS] for one in (large.images / 255, pictures[ENLARGED], pictures[LARGE])])
    return Image.fromarray((rearrange(rows, "row b c h w -> (row h) (b w) c") * 255).round().byte().numpy())


def usual_px(painter: DecoderPipeline) -> int:
    """Returns the side of the pictures that a decoder usually paints."""
    return painter.decoder.config.sizes[0][0] * downsampling(painter.vae)


def main(argv: list[str] | None = None) -> None:
    """Prints the table for the decoder that the command line names, and draws what it paints."""
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    parser.add_argument("--decoder", type=Path, required=True, help="of the model's codes, painting larger pictures")
    parser.add_argument("--steps", type=int, help="evaluations of the decoders (default: the model's own number)")
    parser.add_argument("--limit", type=int, default=96, help="held-out scenes to look at (default: 96)")
    parser.add_argument("--contact_sheet", type=Path, help="file for a picture of what is painted (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    console = Console()
    with parser.refusing():
        check_files(contact_sheet=options.contact_sheet)
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        steps = model.saved.settings.steps if options.steps is None else options.steps
        (decoder,) = painters(model, [options.decoder]).values()
        scenes = painted_scenes(model.image_tokenizer, options.limit)
        large = drawn_large(scenes, EmojiPack.open(), usual_px(decoder))
        vae = load_vae(model.saved.path("vae"), model.device)  # with its encoder, which painting does without
        ways = renders(scenes, large, model.painter, decoder, vae, steps)
        with console.status("") as status:
            figures, pictures = compared(large, ways, status.update)
    ceiling = large.judged(large.images / 255)
    console.print(table(figures, ceiling))
    if options.contact_sheet is not None:
        contact_sheet(large, pictures).save(options.contact_sheet)
    if options.json:
        print(json.dumps({"model": str(options.model), "steps": steps, "pictures": figures, "judge_ceiling": ceiling}))


if __name__ == "__main__":
    main()
