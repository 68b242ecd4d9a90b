"""A diffusion decoder that learns beside the image tokenizer: codes must hold what a picture is painted from.

Source: Bachmann et al., "FlexTok", https://arxiv.org/abs/2502.13967, sec. 3.1 (the velocity's error is what trains the
tokenizer); COMiT trains so, too.
Differs: features of codes come in through a matrix, and once it is trained the decoder is saved with a row of its own
for each code, what the matrix makes of it: one decoder for both ways of training.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rebus.model.code_condition import GridConditionConfig
from rebus.model.decoder import DecoderConfig, DiffusionDecoder
from rebus.model.flow import interpolate, logit_normal_times, velocity_target
from rebus.model.vae import encode_latents, load_vae
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.layouts.contract import Layout
from rebus.tokenizers.quantizers.contract import KnowsPositions
from rebus.tokenizers.supervision.contract import Frozen, Taught, Term


@dataclass(frozen=True, kw_only=True)
class JointDecoderConfig:
    """The decoder, and how much its error weighs."""

    vae: Path = Path("runs/vae/export")
    """Folder of the trained auto-encoder in whose latents it paints."""
    decoder: DecoderConfig = DecoderConfig()
    """The model."""
    weight: float = 1.0
    """Of the mean squared error of the velocity."""
    dropped: float = 0.1
    """Share of pictures that lose all codes, for guidance."""
    time_mean: float = 0.5
    """Mean of the times' logits, as in ``rebus.train.decoder``."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"joint.weight must be above 0, got {self.weight}")
        if not 0 <= self.dropped <= 1:
            raise ValueError(f"joint.dropped must be in [0, 1], got {self.dropped}")
        if isinstance(self.decoder.condition, GridConditionConfig) and self.decoder.condition.per_patch:
            raise ValueError("joint.decoder.condition.per_patch must be false, got true")

    def build(self, tokenizer: ImageTokenizer) -> "JointDecoder":
        """Builds the term for the codes of a tokenizer.

        Raises:
            ValueError: if what a decoder reads of its codes is not a sum of something of each code.
        """
        rearranges = type(tokenizer.positions).arrange is not Layout.arrange
        if rearranges or isinstance(tokenizer.quantizer, KnowsPositions):
            parts = f"a {type(tokenizer.config.layout).__name__} and a {type(tokenizer.config.quantizer).__name__}"
            raise ValueError(f"joint must be none for codes that mean something else at another place, got {parts}")
        return JointDecoder(self, tokenizer)


class JointDecoder(Term):
    """The error of the velocity that a decoder predicts from codes which still learn."""

    compiles_whole = False

    def __init__(self, config: JointDecoderConfig, tokenizer: ImageTokenizer) -> None:
        super().__init__()
        self.config = config
        self.decoder = config.decoder.build(tokenizer.layout, tokenizer_hash="")  # it has none before it is trained
        self.project = nn.Linear(tokenizer.quantizer.dim, config.decoder.dim)
        self.vae = Frozen(load_vae(config.vae))

    def forward(self, taught: Taught) -> dict[str, Tensor]:
        """Returns the weighted error; noise, time and fate of a picture follow from its seed."""
        vae, config = self.vae.network, self.config
        latents = encode_latents(vae, taught.images).float()  # pyright: ignore[reportArgumentType]
        rngs = [random.Random(f"{seed}/flow") for seed in taught.seeds.tolist()]
        generators = [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=one) for one in generators]).to(latents)
        times = [logit_normal_times(1, mean=config.time_mean, std=1.0, generator=one) for one in generators]
        kept = torch.tensor([rng.random() >= config.dropped for rng in rngs], device=latents.device)
        held = taught.coded.features_mask & kept[:, None]
        time = torch.cat(times).to(latents.device)
        velocity = self.decoder.velocity(interpolate(latents, noise, time), time, self.seen(taught, held), held)
        error = F.mse_loss(velocity.float(), velocity_target(latents, noise))
        return {"flow": config.weight * error}

    def seen(self, taught: Taught, held: Tensor) -> Float[Tensor, "batch positions dim"]:
        """Returns what the decoder reads of the codes, and its own feature of a missing one for the others."""
        missing = self.decoder.embed_codes(torch.full_like(taught.coded.ids, -1))
        return torch.where(held[..., None], self.project(taught.coded.features), missing)

    @torch.no_grad()
    def trained(self, tokenizer: ImageTokenizer) -> DiffusionDecoder:
        """Returns the decoder with a row for each code of the trained tokenizer, which it now belongs to."""
        layout = tokenizer.layout
        zeros = torch.zeros(1, 1, len(layout.streams), dtype=torch.long, device=self.project.weight.device)
        base = tokenizer.quantizer.lookup(zeros)[0]
        for index, (stream, table) in enumerate(zip(layout.streams, self.decoder.embed_codes.streams, strict=True)):
            assert isinstance(table, nn.Embedding)
            ids = zeros.repeat(1, stream.size, 1)
            ids[0, :, index] = torch.arange(stream.size, device=ids.device)
            features = tokenizer.quantizer.lookup(ids)[0]
            rows = self.project(features) if index == 0 else F.linear(features - base, self.project.weight)
            table.weight[: stream.size] = rows
        self.decoder.tokenizer_hash = tokenizer.hash
        return self.decoder
