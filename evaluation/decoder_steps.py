"""How good pictures are that the diffusion decoder paints in few evaluations, on held-out scenes.

python -m rebus.evaluation.decoder_steps --model assets/mini --plot steps.png --contact_sheet sheet.png
python -m rebus.evaluation.decoder_steps --decoder runs/decoder/export --decoder runs/distilled/export --limit 120

The figures are likeness to the true pictures, the Frechet distance from them all, and the share of pictures in which
the judge sees the scene that was encoded. A decoder that paints the mean of all pictures that codes may stand for has
the best PSNR, and a bad Frechet distance.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor

from rebus.evaluation.painted_curves import check_files, plot, table
from rebus.evaluation.painted_scenes import PaintedScenes, Painter, painted_scenes, painters, share_of
from rebus.model.command_line import CommandParser
from rebus.model.rebus import Rebus

STEPS = (1, 2, 4, 8, 25)
SHEET_STEPS = (1, 2, 4, 25)
_SHEET_COLUMNS = 12
Pictures = Float[Tensor, "batch 3 height width"]


def curves(
    scenes: PaintedScenes, decoders: Mapping[str, Painter], say: Any = lambda _: None
) -> tuple[dict[str, dict[int, dict[str, Any]]], dict[str, dict[int, Pictures]]]:
    """Returns the figures by decoder and number of steps, with the share of those at the most steps, and the pictures.

    Args:
        scenes: what is painted, with the same noise for every decoder and number of steps.
        decoders: by name.
        say: is told what is under way.
    """
    figures: dict[str, dict[int, dict[str, Any]]] = {}
    painted: dict[str, dict[int, Pictures]] = {}
    for name, decoder in decoders.items():
        painted[name], figures[name] = {}, {}
        for steps in STEPS:
            say(f"{name}: {steps} steps")
            painted[name][steps] = scenes.paint(_render(decoder, steps))
            figures[name][steps] = scenes.figures(painted[name][steps])
        best = dict(figures[name][max(STEPS)])
        for one in figures[name].values():
            one["share_of_most_steps"] = share_of(one, best)
    return figures, painted


def _render(decoder: Painter, steps: int) -> Any:
    return lambda tokens, seeds: decoder.render(tokens, steps=steps, seed=seeds).cpu()


def contact_sheet(scenes: PaintedScenes, painted: Mapping[str, Mapping[int, Pictures]]) -> Image.Image:
    """Returns rows of pictures: the true ones, and those painted in 1, 2, 4 and 25 steps by each decoder."""
    rows = [scenes.images / 255, *(by_steps[steps] for by_steps in painted.values() for steps in SHEET_STEPS)]
    shown = torch.stack([row[:_SHEET_COLUMNS] for row in rows])
    return Image.fromarray((rearrange(shown, "row b c h w -> (row h) (b w) c") * 255).round().byte().numpy())


def main(argv: list[str] | None = None) -> None:
    """Prints the table of the decoders that the command line names, and draws it."""
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    parser.add_argument("--decoder", type=Path, action="append", default=[], help="instead of its own; may be several")
    parser.add_argument("--limit", type=int, default=240, help="held-out scenes to look at (default: 240)")
    parser.add_argument("--plot", type=Path, help="file for a picture of the curves (.png)")
    parser.add_argument("--contact_sheet", type=Path, help="file for a picture of what is painted (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    console = Console()
    with parser.refusing():
        check_files(plot=options.plot, contact_sheet=options.contact_sheet)
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        decoders = painters(model, options.decoder)
        scenes = painted_scenes(model.image_tokenizer, options.limit)
        with console.status("") as status:
            figures, painted = curves(scenes, decoders, status.update)
    ceiling = scenes.judged(scenes.images / 255)
    share = {f"judge, of {max(STEPS)} steps": lambda one: f"{one['share_of_most_steps']['judge']:.1%}"}
    console.print(table(figures, "steps", ceiling, share))
    if options.plot is not None:
        plot(figures, "evaluations of the decoder", options.plot, log=True)
    if options.contact_sheet is not None:
        contact_sheet(scenes, painted).save(options.contact_sheet)
    if options.json:
        print(json.dumps({"model": str(options.model), "decoders": figures, "judge_ceiling": ceiling}))


if __name__ == "__main__":
    main()
