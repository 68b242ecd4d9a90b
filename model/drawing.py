"""A drawn picture: how it was drawn, what it took, and what it takes to draw it again."""

from collections.abc import Sequence
from dataclasses import dataclass

from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from rebus.model.continuation import Decoding
from rebus.model.decoder_guidance import guide
from rebus.model.guidance import Guidance
from rebus.model.sampling import Sampling
from rebus.tokenizers.tokens import Tokens

PAINTERS = ("diffusion", "pixels")


@dataclass(frozen=True, kw_only=True)
class DrawingSettings:
    """How codes are sampled and painted; a saved model names the settings it draws best with."""

    guidance: float = 3.0
    """How far to go from what the model draws unasked to what it draws when asked; 1 is none, and twice as fast."""
    picture_guidance: float | None = None
    """How far to go from what the model draws unasked to what it draws when shown the prompt's pictures without its
    text; ``guidance`` then goes on from there. Without it, ``guidance`` does both."""
    guidance_start: float = 0.0
    """Share of a picture's codes before the first one that is guided."""
    guidance_stop: float = 1.0
    """Share of its codes before the first one that is guided no more."""
    temperature: float = 1.0
    """Spread of the codes; 0 always takes the likeliest."""
    top_k: int | None = None
    """Only so many of the likeliest codes."""
    top_p: float | None = None
    """Only the likeliest codes that together have this probability."""
    min_p: float | None = None
    """Only codes at least this probable beside the likeliest."""
    guesses: int = 0
    """Codes that are guessed ahead and read in one pass where only one draft is drawn (``speculation.py``)."""
    by_level: bool = False
    """Whether codes are drawn a level at once, by a model that has learned to (``levels.py``)."""
    best_of: int = 1
    """Drafts of each picture, of which the model keeps the one in which it best reads the prompt (``drafts.py``)."""
    painter: str = "diffusion"
    """Who paints the codes: ``diffusion``, its decoder, or ``pixels``, at once the image tokenizer's own decoder."""
    steps: int = 4
    """Evaluations of the diffusion decoder."""
    decoder_guidance: float = 1.0
    """How strictly it follows the codes; 1 is plain, and twice as fast."""
    height: int | None = None
    """Of the picture in pixels, with ``width`` one of the sizes that the diffusion decoder was trained with; the usual
    one by default."""
    width: int | None = None
    """Of the picture in pixels."""

    def __post_init__(self) -> None:
        for name in ("best_of", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.painter not in PAINTERS:
            raise ValueError(f"painter must be {' or '.join(PAINTERS)}, got {self.painter}")
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width must be given both or neither, got {self.height} and {self.width}")
        if self.height is not None and self.painter == "pixels":
            raise ValueError(f"height must be left out where painter is pixels, which has one size, got {self.height}")
        self.decoding()
        guide(self.decoder_guidance)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width, if they are given."""
        return None if self.height is None or self.width is None else (self.height, self.width)

    def decoding(self) -> Decoding:
        """Returns how texts and codes are written; of text always the likeliest."""
        guidance = Guidance(
            scale=self.guidance,
            picture_scale=self.picture_guidance,
            start=self.guidance_start,
            stop=self.guidance_stop,
        )
        picture = Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        return Decoding(
            text=Sampling(temperature=0.0),
            picture=picture,
            guidance=guidance,
            guesses=self.guesses,
            by_level=self.by_level,
        )


@dataclass(frozen=True, kw_only=True)
class Written:
    """What the language model wrote."""

    num_codes: int
    """Codes of all drafts."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the batch took that a drawing was made in."""

    batch_size: int
    codes_per_second: float | None
    """Codes that the language model wrote, of all drafts together; None if it was given them."""
    language_model_seconds: float
    decoder_seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """A picture, and what it takes to draw it again."""

    image: Image.Image
    tokens: Tokens
    """Its codes, a batch of one."""
    seed: int
    settings: DrawingSettings
    statistics: Statistics


def drawings(
    pictures: Float[Tensor, "batch 3 height width"],
    tokens: Tokens,
    seeds: Sequence[int],
    settings: Sequence[DrawingSettings],
    statistics: Statistics,
) -> list[Drawing]:
    """Returns pictures in [0, 1] that were drawn as one batch, each with its codes, its seed and its settings."""
    pixels = rearrange((pictures * 255).round().byte().cpu(), "batch rgb height width -> batch height width rgb")
    images = [Image.fromarray(one.numpy()) for one in pixels]
    return [
        Drawing(image=image, tokens=tokens.row(row), seed=seed, settings=chosen, statistics=statistics)
        for row, (image, seed, chosen) in enumerate(zip(images, seeds, settings, strict=True))
    ]


def picture_seeds(seed: int | Sequence[int], number: int) -> list[int]:
    """Returns the seed of each picture, counted on from one seed if only that is given.

    Raises:
        ValueError: if there are not as many as pictures, or one is out of range.
    """
    seeds = list(range(seed, seed + number)) if isinstance(seed, int) else list(seed)
    if len(seeds) != number:
        raise ValueError(f"seed must be one or {number}, got {len(seeds)}")
    if not all(0 <= one < 2**63 for one in seeds):
        raise ValueError(f"seed must lie in [0, 2**63), got {seed}")
    return seeds
