"""Draws pictures from text, or from a picture and what to change in it.

Each picture is a PNG with a JSON file beside it that holds all it takes to draw it again.

python generate.py --prompt "a red apple on a yellow background, in flat style" --output apple.png
python generate.py --prompts-file prompts.txt --num-images 4 --seed 7 --output outputs
python generate.py --image apple.png --prompt "Make the background pink." --output pink.png
python generate.py --from-tokens apple.json --steps 25 --output again.png
"""

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rebus.model.command_line import CommandParser, spinner

if TYPE_CHECKING:
    from rebus.model.drawing import Drawing
    from rebus.model.rebus import Rebus

STARTED = time.perf_counter()
BATCH_SIZE = 16
PAINTING = ("painter", "steps", "decoder_guidance", "height", "width")
WRITING = ("guidance", "temperature", "top_k", "top_p", "min_p", "best_of")


def main(argv: list[str] | None = None) -> None:
    """Draws what the command line asks for, and prints the names of the pictures."""
    parser = _parser()
    options = parser.parse(argv)
    with parser.refusing():
        prompts = _prompts(options)
        # Not before: a wrong command line is told of at once, while these take a second or two to import.
        from rebus.model.drawing_files import picture_path, record, write_drawing, write_tokens
        from rebus.model.rebus import Rebus

        rebus = Rebus.load(options.model, device=options.device, dtype=options.dtype)
        drawings, records = [], []
        for drawing in _drawings(rebus, options, prompts):
            prompt = prompts[len(records)] if prompts else None
            path = picture_path(options.output, len(records) + 1, prompt)
            asked = {"file": str(path), "prompt": prompt, "image": options.image and str(options.image)}
            records.append(record(rebus, drawing, asked, time.perf_counter() - STARTED))
            drawings.append(drawing)
            write_drawing(path, drawing.image, records[-1])
            print(path)
        if options.tokens_out:
            write_tokens(options.tokens_out, [drawing.tokens for drawing in drawings], rebus.saved)
    if options.json:
        print(json.dumps({"pictures": records, "total_seconds": time.perf_counter() - STARTED}))


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    what = parser.add_argument_group("what to draw")
    what.add_argument("--prompt", action="append", default=[], help="what to draw; may be given several times")
    what.add_argument("--prompts-file", type=Path, help="text file with a prompt on each line")
    what.add_argument("--image", type=Path, help="picture that the prompts speak of, such as one to be changed")
    what.add_argument("--from-tokens", type=Path, help="only paint codes: file of --tokens-out, or beside a picture")
    what.add_argument("--num-images", type=int, default=1, help="pictures for each prompt (default: 1)")
    how = parser.add_argument_group("how to draw it", "The model's own settings are the defaults.")
    how.add_argument("--cfg-scale", dest="guidance", type=float, help="how strictly to follow the prompt; 1 is plain")
    how.add_argument("--temperature", type=float, help="spread of the codes; 0 always takes the likeliest")
    how.add_argument("--top-k", type=int, help="only so many of the likeliest codes")
    how.add_argument("--top-p", type=float, help="only the likeliest codes that together have this probability")
    how.add_argument("--min-p", type=float, help="only codes at least this probable beside the likeliest")
    how.add_argument("--best-of", type=int, help="drafts, of which the model keeps the best; one with --image")
    how.add_argument("--painter", help="diffusion, or pixels for the image tokenizer's own decoder: quick, and softer")
    how.add_argument("--steps", type=int, help="evaluations of the diffusion decoder")
    how.add_argument("--decoder-guidance", type=float, help="how strictly it follows the codes; 1 is plain")
    how.add_argument("--height", type=int, help="in pixels, for a decoder that paints several sizes; with --width")
    how.add_argument("--width", type=int, help="in pixels")
    how.add_argument("--seed", type=int, default=0, help="of the first picture; the next ones count on (default: 0)")
    parser.add_model_flags()
    where = parser.add_argument_group("where to")
    where.add_argument("--output", type=Path, default=Path("outputs"), help="folder, or a .png file for one picture")
    where.add_argument("--tokens-out", type=Path, help="file for the codes of all pictures")
    where.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return parser


def _prompts(options: Namespace) -> list[str]:
    """Returns the prompt of each picture; none to paint codes."""
    lines = [] if options.prompts_file is None else options.prompts_file.read_text(encoding="utf-8").splitlines()
    prompts = [*options.prompt, *(line for line in lines if line.strip())]
    if bool(prompts) == (options.from_tokens is not None):
        raise ValueError(f"prompts or else --from-tokens must be given, got {'both' if prompts else 'neither'}")
    unused = [name for name in ("image", *WRITING) if getattr(options, name) is not None]
    if options.from_tokens is not None and unused:
        raise ValueError(f"--from-tokens must come with no other settings than how to paint, got {unused[0]}")
    if options.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {options.num_images}")
    return [prompt for prompt in prompts for _ in range(options.num_images)]


def _drawings(rebus: "Rebus", options: Namespace, prompts: list[str]) -> Iterator["Drawing"]:
    """Yields the pictures, batch after batch."""
    from rebus.data.samples import Message
    from rebus.model.drawing_files import read_tokens, recorded_prompt
    from rebus.tokenizers.tokens import Tokens

    shown = () if options.image is None else (rebus.look(options.image),)
    asked = [Message("user", (*shown, prompt)) for prompt in prompts]
    if asked:
        rebus.check(asked)  # refuses a bad prompt before the first picture is written
    codes, shows = [], []
    if options.from_tokens is not None:
        codes = read_tokens(options.from_tokens, rebus.saved)
        shows = [recorded_prompt(options.from_tokens)] * len(codes)
    number = len(asked) + len(codes)
    if options.output.suffix == ".png" and number > 1:
        raise ValueError(f"--output must be a folder for {number} pictures, got {options.output}")
    settings = {name: getattr(options, name) for name in WRITING + PAINTING if getattr(options, name) is not None}
    for start in range(0, number, BATCH_SIZE):
        stop, seed = min(start + BATCH_SIZE, number), options.seed + start
        with spinner(f"drawing {start + 1} to {stop} of {number}"):
            if asked:
                drawings = rebus.draw(asked[start:stop], seed=seed, **settings)
            else:
                drawings = rebus.paint(Tokens.cat(codes[start:stop]), text=shows[start:stop], seed=seed, **settings)
        yield from drawings


if __name__ == "__main__":
    main()
