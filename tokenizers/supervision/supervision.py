"""What teaches codes their meaning: pixels to rebuild, texts to match and to tell, teachers to follow.

The codes must serve a language model, so they are trained to carry words as well as colours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from rebus.tokenizers.pixel_decoders.contract import Canvas
from rebus.tokenizers.supervision.adversarial import AdversarialConfig
from rebus.tokenizers.supervision.contract import Taught, Term
from rebus.tokenizers.supervision.distillation import DistillationConfig
from rebus.tokenizers.supervision.language_caption import LanguageCaptionConfig
from rebus.tokenizers.supervision.perceptual import PerceptualConfig
from rebus.tokenizers.supervision.pixels import Pixels
from rebus.tokenizers.supervision.proxy_codes import ProxyCodesConfig
from rebus.tokenizers.supervision.regions import Regions
from rebus.tokenizers.supervision.texts import ContrastiveLoss, Texts


@dataclass(frozen=True, kw_only=True)
class SupervisionConfig:
    """Weights of the terms; a term that is none or of weight 0 is neither built nor computed."""

    pixel_l1: float = 1.0
    """Mean absolute error of rebuilt pixels in [0, 1]."""
    pixel_l2: float = 0.5
    """Mean squared error of rebuilt pixels."""
    contrastive: float = 0.02
    """Matching pictures and captions within a batch."""
    contrastive_loss: ContrastiveLoss = "softmax"
    """Finding each other's match among all, or saying of each pair whether it is one."""
    caption: float = 0.05
    """Telling the caption from the codes, cross entropy a piece."""
    region: float = 0.1
    """Telling from each code what its place shows, where the data knows that; cross entropy a position."""
    text_dim: int = 128
    """Width of the small text models that match and tell."""
    text_depth: int = 2
    """Transformer blocks of each of them."""
    perceptual: PerceptualConfig | None = None
    """Rebuilt pictures shall look right to a network that has learned to see."""
    distillation: DistillationConfig | None = None
    """The codes shall tell the features of a teacher."""
    alignment: DistillationConfig | None = None
    """So shall, of the same teacher or another, a hidden layer of the decoder (REPA)."""
    language_caption: LanguageCaptionConfig | None = None
    """A language model shall tell the caption from the codes."""
    proxy_codes: ProxyCodesConfig | None = None
    """The codes shall tell those of another tokenizer."""
    adversarial: AdversarialConfig | None = None
    """Rebuilt pictures shall pass for true ones before a discriminator."""

    def __post_init__(self) -> None:
        rebuilds = self.pixel_l1 or self.pixel_l2 or self.perceptual
        if self.adversarial and self.adversarial.adaptive and not rebuilds:
            raise ValueError("supervision.adversarial.adaptive must be false where no other term rebuilds, got true")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the tokenizer's layers whose outputs the terms will read."""
        readers = (self.distillation, self.alignment, self.proxy_codes)
        return tuple(dict.fromkeys(one.cells.layer for one in readers if one and one.weight and one.cells.layer))

    def build(
        self, num_pieces: int, pad: int, num_names: int, canvas: Canvas, widths: Mapping[str, int] | None = None
    ) -> "Supervision":
        """Builds the teachers.

        Args:
            num_pieces: size of the captions' vocabulary.
            pad: the piece that fills captions up.
            num_names: how many things a cell may show.
            canvas: what is known of the codes. Those that lie on no grid have no place of their own: ``region`` must
                be 0 for them.
            widths: channels of the tokenizer's ``layers``.

        Raises:
            ValueError: if a term does not go with the codes, or a teacher cannot be loaded.
        """
        terms: dict[str, Term] = {}
        if self.pixel_l1 or self.pixel_l2:
            terms["pixels"] = Pixels(self.pixel_l1, self.pixel_l2)
        if self.contrastive or self.caption:
            terms["texts"] = Texts(
                contrastive=self.contrastive,
                caption=self.caption,
                loss=self.contrastive_loss,
                canvas=canvas,
                num_pieces=num_pieces,
                pad=pad,
                dim=self.text_dim,
                depth=self.text_depth,
            )
        if self.region:
            terms["regions"] = Regions(self.region, canvas, self.text_dim, num_names)
        if self.perceptual and (self.perceptual.weight or self.perceptual.gram):
            terms["perceptual"] = self.perceptual.build()
        for name, one in (("distillation", self.distillation), ("alignment", self.alignment)):
            if one and one.weight:
                terms[name] = one.build(name, canvas, widths or {})
        if self.language_caption and self.language_caption.weight:
            terms["language_caption"] = self.language_caption.build(canvas, num_pieces, pad)
        if self.proxy_codes and self.proxy_codes.weight:
            terms["proxy_codes"] = self.proxy_codes.build(canvas, widths or {})
        if self.adversarial and self.adversarial.weight:  # last, for it may ask what the others weigh
            terms["adversarial"] = self.adversarial.build()
        return Supervision(terms)


class Supervision(nn.Module):
    """Scores what a tokenizer makes of a batch by a number of terms, in their order."""

    def __init__(self, terms: Mapping[str, Term]) -> None:
        """Takes terms by any names; `SupervisionConfig.build` makes them, and more may be put beside."""
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self._order = tuple(terms.values())

    def beside(self, name: str, term: Term) -> "Supervision":
        """Returns these terms behind one more."""
        return Supervision({name: term, **dict(zip(self.terms, self._order, strict=True))})

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the tokenizer's layers whose outputs the terms read."""
        return tuple(dict.fromkeys(layer for term in self._order for layer in term.layers))

    @property
    def last_layer(self) -> str | None:
        """Name of the tokenizer's layer whose weight a term reads, if one does."""
        return next((term.last_layer for term in self._order if term.last_layer is not None), None)

    @property
    def compiles_whole(self) -> bool:
        """Whether torch.compile may take all terms and the tokenizer as one program."""
        return all(term.compiles_whole for term in self._order)

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns the weighted losses by name; their sum is what is to be lowered."""
        losses: dict[str, Tensor] = {}
        for term in self._order:
            losses |= term(replace(taught, earlier=losses))
        return losses
