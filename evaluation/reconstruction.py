"""What an image tokenizer keeps of held-out scenes: likeness of rebuilt pictures, use of codes, and linear probes.

python -m rebus.evaluation.reconstruction --image_tokenizer assets/mini/image_tokenizer
python -m rebus.evaluation.reconstruction --image_tokenizer assets/mini/image_tokenizer --words 30
"""

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import Scene
from rebus.evaluation.figures import score_of
from rebus.evaluation.intervals import Score, wilson
from rebus.evaluation.judges import WordReader
from rebus.evaluation.likeness import likeness
from rebus.evaluation.perceptual import FeatureNetwork, efficientnet_lite0
from rebus.evaluation.sign_reader import SignReader
from rebus.evaluation.word_preservation import word_marks
from rebus.model.command_line import CommandParser
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.tokens import Tokens

_BATCH_SIZE = 64


def reconstruction(
    tokenizer: ImageTokenizer,
    pack: EmojiPack,
    concepts: Sequence[str],
    limit: int,
    network: FeatureNetwork | None = None,
) -> dict[str, Any]:
    """Returns the figures of a tokenizer.

    ``psnr_db``, ``ssim`` and ``perceptual`` distance of rebuilt held-out scenes, and how many are encoded and decoded
    in a second; ``num_positions`` of a picture on average; for each stream ``codes_in_use`` (share of the code book)
    and ``perplexity`` (as how many equally frequent codes they are spread); and how often a linear probe names
    the object of a scene from the mean code feature (``probe_pooled``) or from those of all positions
    (``probe_positions``), trained on four times as many scenes as it is tested on, all within the training split.

    Args:
        tokenizer: in evaluation mode.
        pack: where pictures come from.
        concepts: ids of the objects.
        limit: number of scenes looked at, and of scenes that test a probe.
        network: judges the perceptual distance, which is left out without it.

    Raises:
        ValueError: if the limit is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    held_out = SceneSampler(pack, concepts, "held_out")
    images = pictures_of([held_out.scene(random.Random(f"rebuild/{row}")) for row in range(limit)], pack)
    began = time.perf_counter()
    tokens = [tokenizer.encode(part) for part in images.split(_BATCH_SIZE)]
    encoded = time.perf_counter()
    rebuilt = torch.cat([tokenizer.decode(part) for part in tokens])
    decoded = time.perf_counter()
    return {
        **likeness(rebuilt, images / 255, network),
        "encoded_per_second": limit / (encoded - began),
        "decoded_per_second": limit / (decoded - encoded),
        "num_positions": torch.cat([part.lengths for part in tokens]).double().mean().item(),
        **_code_use(Tokens.cat(tokens)),
        **_probes(tokenizer, SceneSampler(pack, concepts, "train"), limit),
    }


def linear_probe(
    features: Float[Tensor, "rows dim"],
    labels: Int[Tensor, " rows"],
    test_features: Float[Tensor, "tests dim"],
    test_labels: Int[Tensor, " tests"],
) -> Score:
    """Returns how often a linear classifier of standardised features, fitted to rows, is right on others."""
    mean, spread = features.mean(dim=0), features.std(dim=0) + 1e-6
    features, test_features = (features - mean) / spread, (test_features - mean) / spread
    weights = torch.zeros(features.shape[1] + 1, int(labels.max()) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], lr=1.0, max_iter=100, line_search_fn="strong_wolfe")

    def logits(rows: Tensor) -> Tensor:
        return rows @ weights[1:] + weights[0]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits(features), labels) + 1e-3 * weights[1:].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return wilson((logits(test_features).argmax(dim=1) == test_labels).tolist())


def _code_use(tokens: Tokens) -> dict[str, Any]:
    use: dict[str, Any] = {"codes_in_use": {}, "perplexity": {}}
    for index, stream in enumerate(tokens.layout.streams):
        counts = torch.bincount(tokens.ids[..., index][tokens.mask], minlength=stream.size).double()
        shares = counts / counts.sum()
        use["codes_in_use"][stream.name] = (counts > 0).double().mean().item()
        use["perplexity"][stream.name] = torch.special.entr(shares).sum().exp().item()
    return use


def _probes(tokenizer: ImageTokenizer, sampler: SceneSampler, num_tests: int) -> dict[str, Any]:
    scenes = [sampler.scene(random.Random(f"probe/{row}"), "one") for row in range(5 * num_tests)]
    labels = torch.tensor([sampler.concepts.index(scene.items[0].concept_id) for scene in scenes])
    features = _features(tokenizer, scenes, sampler.pack)
    views = {
        "probe_pooled": reduce(features, "rows positions dim -> rows dim", "mean"),
        "probe_positions": rearrange(features, "rows positions dim -> rows (positions dim)"),
    }
    return {
        name: asdict(linear_probe(rows[num_tests:], labels[num_tests:], rows[:num_tests], labels[:num_tests]))
        for name, rows in views.items()
    }


def _features(tokenizer: ImageTokenizer, scenes: list[Scene], pack: EmojiPack) -> Float[Tensor, "rows positions dim"]:
    parts = [scenes[start : start + _BATCH_SIZE] for start in range(0, len(scenes), _BATCH_SIZE)]
    with torch.no_grad():
        return torch.cat([tokenizer.embed(tokenizer.encode(pictures_of(part, pack))) for part in parts])


def _words_kept(tokenizer: ImageTokenizer, reader: WordReader, sampler: SceneSampler, number: int) -> dict[str, Any]:
    """Returns how well signs are read in pictures of the tokenizer's own decoder, and in the true ones."""
    if number < 0:
        raise ValueError(f"words must be at least 0, got {number}")

    def rebuild(pictures: Sequence[Image.Image]) -> list[Image.Image]:
        pixels = torch.from_numpy(np.stack([np.asarray(one) for one in pictures]))
        tokens = tokenizer.encode(rearrange(pixels, "batch height width rgb -> batch rgb height width"))
        decoded = rearrange(tokenizer.decode(tokens), "batch rgb height width -> batch height width rgb")
        return [Image.fromarray(one) for one in (decoded * 255).round().byte().numpy()]

    generator = torch.Generator().manual_seed(0)
    marks = word_marks(rebuild, reader, sampler, number, _BATCH_SIZE)
    if failed := [why for one in marks.values() for why in one.failed.values()]:
        raise ValueError(f"all signs must be painted and read, got {failed[0]}")
    return {name: score_of(one, generator) for name, one in marks.items()}


def main(argv: list[str] | None = None) -> None:
    """Reports on the image tokenizer that the command line names."""
    parser = CommandParser(__doc__)
    parser.add_argument("--image_tokenizer", type=Path, required=True, help="folder of a saved image tokenizer")
    parser.add_argument("--limit", type=int, default=500, help="scenes to look at; the probes take five times as many")
    parser.add_argument("--perceptual", action="store_true", help="judge pictures by EfficientNet-Lite0, too")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--words", type=int, default=0, help="signs of each height of letters to read (default: none)")
    options = parser.parse(argv)
    pack = EmojiPack.open()
    with parser.refusing():
        tokenizer = ImageTokenizer.load(options.image_tokenizer)
        network = efficientnet_lite0() if options.perceptual else None
        reader = SignReader() if options.words else None
        figures = reconstruction(tokenizer, pack, mini_concepts(pack), options.limit, network)
        if reader is not None:
            figures |= _words_kept(
                tokenizer, reader, SceneSampler(pack, mini_concepts(pack), "held_out"), options.words
            )
    Console().print(_table(figures))
    if options.json:
        print(json.dumps(figures))


def _table(figures: dict[str, Any]) -> Table:
    table = Table("figure", "value", "95 % interval", title="What the codes keep")
    for name, value in figures.items():
        if isinstance(value, dict) and "score" in value:
            table.add_row(name, f"{value['score']:.3f}", f"{value['low']:.3f} to {value['high']:.3f}")
        elif isinstance(value, dict):
            for stream, number in value.items():
                table.add_row(f"{name} ({stream})", f"{number:.4g}")
        else:
            table.add_row(name, f"{value:.4g}")
    return table


if __name__ == "__main__":
    main()
