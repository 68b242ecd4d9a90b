"""An image tokenizer with everything that teaches it, and a batch that both learn from."""

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rebus.tokenizers.image_tokenizer import Coded, ImageTokenizer
from rebus.tokenizers.pixel_decoders.noisy_cnn import NoisyCnnPixelDecoder
from rebus.tokenizers.supervision.contract import Frozen, Taught
from rebus.tokenizers.supervision.supervision import Supervision
from rebus.tokenizers.supervision.taps import Taps, layer_named
from rebus.tokenizers.transformer import Block
from rebus.train.code_perturbation import CodePerturbationConfig, perturbed_ids, with_codes


@dataclass(frozen=True, eq=False)
class TokenizerBatch:
    """Pictures, how many of their positions count, and their captions."""

    images: Float[Tensor, "batch 3 height width"]
    """In [0, 1]."""
    lengths: Int[Tensor, " batch"] | None
    """Positions kept of each picture; None if the layout draws none."""
    noise: Float[Tensor, "batch numbers"] | None
    """What the layout decides by; None if it leaves nothing to chance."""
    captions: Int[Tensor, "batch length"]
    """Pieces, padded."""
    text: Int[Tensor, "batch pieces"] | None
    """What a tokenizer that reads a text is given."""
    regions: Int[Tensor, "batch cells"]
    """What each cell shows, see `SceneRegions`."""
    step: int
    """Number of the training step."""
    seeds: Int[Tensor, " batch"]
    """What each picture's perturbation, its decoder's noise, and its draws in a term follow from."""


class TaughtTokenizer(nn.Module):
    """An image tokenizer with the models that teach it: everything that trains in this stage."""

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        supervision: Supervision,
        perturbation: CodePerturbationConfig | None = None,
    ) -> None:
        """Takes the parts.

        Raises:
            ValueError: if a term asks for a layer that the tokenizer does not have.
        """
        super().__init__()
        self.tokenizer = tokenizer
        self.supervision = supervision
        self.perturbation = perturbation
        self._taps = Taps(tokenizer, supervision.layers)
        if supervision.last_layer is not None:
            layer_named(tokenizer, supervision.last_layer)

    def forward(self, batch: TokenizerBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its terms."""
        losses, stats, errors = self._rebuild(batch)
        if self.tokenizer.positions.learns_from_errors:
            again, stats, _ = self._rebuild(batch, errors)
            losses = {name: (loss + again[name]) / 2 for name, loss in losses.items()}
        terms = {name: value.detach() for name, value in losses.items()} | stats
        return torch.stack(list(losses.values())).sum(), terms

    def _rebuild(
        self, batch: TokenizerBatch, errors: Float[Tensor, " batch"] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Float[Tensor, " batch"]]:
        """Returns losses, stats, and the mean absolute error of each rebuilt picture."""
        coded = self.tokenizer.quantize(batch.images, batch.lengths, batch.text, noise=batch.noise, errors=errors)
        rebuilt = self.tokenizer.paint(self._perturbed(coded, batch), self._painting_noise(coded, batch))
        last = self.supervision.last_layer
        taught = Taught(
            images=batch.images,
            rebuilt=rebuilt,
            coded=coded,
            captions=batch.captions,
            regions=batch.regions,
            seeds=batch.seeds,
            step=batch.step,
            layers=self._taps.take(),
            last_weight=None if last is None else self.tokenizer.get_parameter(f"{last}.weight"),
        )
        losses = self.supervision(taught) | coded.losses
        return losses, coded.stats, (rebuilt.detach() - batch.images).abs().mean(dim=(1, 2, 3))

    def _perturbed(self, coded: Coded, batch: TokenizerBatch) -> Coded:
        """Returns what the decoder meets; what the codes say is still told from the right ones."""
        if self.perturbation is None:
            return coded
        ids = perturbed_ids(coded.ids, self.tokenizer, self.perturbation, batch.step, batch.seeds)
        return with_codes(coded, ids, self.tokenizer)

    def _painting_noise(self, coded: Coded, batch: TokenizerBatch) -> Float[Tensor, "batch cells channels"] | None:
        """Returns what a decoder with noise paints from; None for any other."""
        painter = self.tokenizer.pixel_decoder
        if not isinstance(painter, NoisyCnnPixelDecoder):
            return None
        seeds = [random.Random(f"{seed}/noise").getrandbits(63) for seed in batch.seeds.tolist()]
        return painter.draw_noise(seeds, coded.grid)

    def blocks_to_compile(self) -> list[nn.Module]:
        """Returns the parts that are compiled each by itself; none if the loss is compiled as a whole."""
        draws = self.perturbation is not None or isinstance(self.tokenizer.pixel_decoder, NoisyCnnPixelDecoder)
        if self.supervision.compiles_whole and not draws:
            return []
        teaching = {part for module in self.modules() if isinstance(module, Frozen) for part in module.modules()}
        return [module for module in self.modules() if isinstance(module, Block) and module not in teaching]
