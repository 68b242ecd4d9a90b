"""What wrong codes do to pictures: how good they are against the share of codes that are wrong, on held-out scenes.

python -m rebus.evaluation.wrong_codes --model assets/mini --plot wrong.png
python -m rebus.evaluation.wrong_codes --decoder runs/decoder/export --decoder runs/decoder_unperturbed/export

A language model samples wrong codes now and then, and a decoder should not fall apart there. Each decoder that is
named, and the image tokenizer's own light one, paint the same codes.

Source: Qiu et al., "Robust Latent Matters: Boosting Image Generation with Sampling Error Synthesis" (RobustTok),
https://arxiv.org/abs/2503.08354 (pFID: the mean of Frechet distances over degrees of perturbation).
Differs: every picture is perturbed; the quantizer says which codes may take the place of one; and the features are not
Inception's, so figures compare with each other alone.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from rebus.evaluation.painted_curves import check_files, plot, table
from rebus.evaluation.painted_scenes import PaintedScenes, Painter, painted_scenes, painters
from rebus.model.command_line import CommandParser
from rebus.model.rebus import Rebus
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.quantizers.contract import Quantizer
from rebus.tokenizers.tokens import Tokens

RATES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
"""Shares of wrong codes."""
PIXEL_DECODER = "image tokenizer"
"""Name of the light decoder that comes with the codes."""
Render = Callable[[Tokens, Sequence[int]], Tensor]


def perturbed(tokens: Sequence[Tokens], quantizer: Quantizer, rate: float) -> list[Tokens]:
    """Returns batches of codes of which each is wrong with a probability, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return [Tokens(quantizer.perturb(one.ids, rate, generator), one.lengths, one.layout) for one in tokens]


def curves(
    scenes: PaintedScenes, quantizer: Quantizer, renders: Mapping[str, Render], say: Any = lambda _: None
) -> dict[str, dict[float, dict[str, Any]]]:
    """Returns the figures by decoder and share of wrong codes.

    Args:
        scenes: what is painted, with the same noise by every decoder.
        quantizer: makes codes wrong.
        renders: the decoders, by name.
        say: is told what is under way.
    """
    figures: dict[str, dict[float, dict[str, Any]]] = {name: {} for name in renders}
    for rate in RATES:
        tokens = perturbed(scenes.tokens, quantizer, rate)
        for name, render in renders.items():
            say(f"{name}: {rate:.0%} of the codes wrong")
            figures[name][rate] = scenes.figures(scenes.paint(render, tokens))
    return figures


def pfid(figures: Mapping[float, Mapping[str, Any]]) -> float:
    """Returns the mean Frechet distance over the shares of wrong codes above 0."""
    distances = [one["frechet"] for rate, one in figures.items() if rate > 0]
    return sum(distances) / len(distances)


def renders(tokenizer: ImageTokenizer, decoders: Mapping[str, Painter], steps: int) -> dict[str, Render]:
    """Returns what paints codes, by name."""
    found: dict[str, Render] = {PIXEL_DECODER: lambda tokens, _: tokenizer.decode(tokens).cpu()}
    for name, decoder in decoders.items():
        found[name] = lambda tokens, seeds, decoder=decoder: decoder.render(tokens, steps=steps, seed=seeds).cpu()
    return found


def main(argv: list[str] | None = None) -> None:
    """Prints the table of the decoders that the command line names, and draws it."""
    parser = CommandParser(__doc__)
    parser.add_model_flags()
    parser.add_argument("--decoder", type=Path, action="append", default=[], help="instead of its own; may be several")
    parser.add_argument("--steps", type=int, help="evaluations of the decoders (default: the model's own number)")
    parser.add_argument("--limit", type=int, default=120, help="held-out scenes to look at (default: 120)")
    parser.add_argument("--plot", type=Path, help="file for a picture of the curves (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    console = Console()
    with parser.refusing():
        check_files(plot=options.plot)
        model = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        steps = model.saved.settings.steps if options.steps is None else options.steps
        tokenizer, decoders = model.image_tokenizer, painters(model, options.decoder)
        scenes = painted_scenes(tokenizer, options.limit)
        with console.status("") as status:
            figures = curves(scenes, tokenizer.quantizer, renders(tokenizer, decoders, steps), status.update)
    ceiling = scenes.judged(scenes.images / 255)
    console.print(table(figures, "wrong codes", ceiling))
    means = {name: pfid(one) for name, one in figures.items()}
    for name, value in means.items():
        console.print(f"pFID of {name}: {value:.1f}")
    if options.plot is not None:
        plot(figures, "share of wrong codes", options.plot)
    if options.json:
        values = {"model": str(options.model), "steps": steps, "decoders": figures, "pfid": means}
        print(json.dumps({**values, "judge_ceiling": ceiling}))


if __name__ == "__main__":
    main()
