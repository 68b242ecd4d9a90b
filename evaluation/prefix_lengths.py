"""How good pictures are by how many of their codes are painted: rate against quality, where any first codes decode.

python -m rebus.evaluation.prefix_lengths --image_tokenizer runs/tokenizer/export --plot prefixes.png

Several image tokenizers may be named; each paints with its own light decoder. A curve is drawn over the bits of the
codes, which compare between tokenizers, and tells how many positions they are.

Source: Bachmann et al., "FlexTok: Resampling Images into 1D Token Sequences of Flexible Length",
https://arxiv.org/abs/2502.13967 (quality by number of tokens).
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from rebus.evaluation.painted_curves import check_files, plot, table
from rebus.evaluation.painted_scenes import PaintedScenes, painted_scenes
from rebus.model.command_line import CommandParser
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import CodeLayout, Tokens


def prefix_lengths(layout: CodeLayout) -> list[int]:
    """Returns the lengths at which pictures are painted: 1, 2, 4 and so on, and the whole.

    Raises:
        ValueError: if only whole pictures of the layout decode.
    """
    if not layout.prefix_decodable:
        raise ValueError(f"image_tokenizer must decode any first codes, got a {layout.kind} of which only all decode")
    whole = layout.num_positions
    return [*(2**power for power in range((whole - 1).bit_length())), whole]


def curve(scenes: PaintedScenes, layout: CodeLayout, decode: Callable[[Tokens], Tensor]) -> dict[float, dict[str, Any]]:
    """Returns the figures of pictures by the bits of the codes that they are painted from, fewest first.

    Args:
        scenes: with their codes.
        layout: of the codes.
        decode: paints the first ones.

    Raises:
        ValueError: if only whole pictures of the layout decode.
    """
    points = {}
    bits = sum(math.log2(stream.size) for stream in layout.streams)
    for length in prefix_lengths(layout):
        first = [tokens.prefix(length) for tokens in scenes.tokens]
        pictures = scenes.paint(lambda tokens, _: decode(tokens).cpu(), first)
        points[length * bits] = {**scenes.figures(pictures), "positions": length}
    return points


def main(argv: list[str] | None = None) -> None:
    """Prints the curves of the image tokenizers that the command line names, and draws them."""
    parser, console = CommandParser(__doc__), Console()
    parser.add_argument("--image_tokenizer", type=Path, action="append", required=True, help="folder; may be several")
    parser.add_argument("--limit", type=int, default=120, help="held-out scenes to look at (default: 120)")
    parser.add_argument("--plot", type=Path, help="file for a picture of the curves (.png)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse(argv)
    with parser.refusing():
        check_files(plot=options.plot)
        tokenizers = {str(folder): ImageTokenizer.load(folder) for folder in options.image_tokenizer}
        for tokenizer in tokenizers.values():
            prefix_lengths(tokenizer.layout)
        figures, ceiling = {}, {}
        for name, tokenizer in tokenizers.items():
            scenes = painted_scenes(tokenizer, options.limit)
            figures[name] = curve(scenes, tokenizer.layout, tokenizer.decode)
            ceiling = scenes.judged(scenes.images / 255)
    console.print(table(figures, "bits", ceiling, {"positions": lambda one: str(one["positions"])}))
    if options.plot is not None:
        plot(figures, "bits of a picture's codes", options.plot, log=True)
    if options.json:
        print(json.dumps({"tokenizers": figures, "judge_ceiling": ceiling}))


if __name__ == "__main__":
    main()
