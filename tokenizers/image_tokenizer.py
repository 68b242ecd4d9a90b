"""The image tokenizer: an encoder, a layout, a quantizer and a light pixel decoder, chosen by config."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from rebus.tokenizers.code_projection import LinearProjectionConfig, ProjectionConfig
from rebus.tokenizers.encoders.choice import EncoderConfig
from rebus.tokenizers.encoders.contract import Encoder
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.layouts.choice import LayoutConfig
from rebus.tokenizers.layouts.contract import Extras, Layout, standing_still
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.pixel_decoders.choice import PixelDecoderConfig
from rebus.tokenizers.pixel_decoders.contract import Canvas, PixelDecoder
from rebus.tokenizers.pixel_decoders.noisy_cnn import NoisyCnnPixelDecoder
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.choice import QuantizerConfig
from rebus.tokenizers.quantizers.contract import KnowsPositions, Quantizer, streams_of
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.text_condition import TextConditionConfig
from rebus.tokenizers.text_tokenizer import MODEL_FILE, SentencePieceTokenizer
from rebus.tokenizers.tokens import CodeLayout, Grid, Stream, Tokens


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """An image tokenizer as its parts."""

    image_size_px: int = 128
    """Side of the square pictures."""
    image_sizes_px: tuple[Grid, ...] = ()
    """Heights and widths, if pictures may have several or are not square; the square above is then not meant."""
    encoder: EncoderConfig = VitEncoderConfig()
    """Pixels to patch features."""
    layout: LayoutConfig = GridConfig()
    """Patch features to code positions."""
    projection: ProjectionConfig = LinearProjectionConfig()
    """Features to the channels that are quantized."""
    quantizer: QuantizerConfig = VectorConfig()
    """Features to codes."""
    pixel_decoder: PixelDecoderConfig = VitPixelDecoderConfig()
    """Codes to a quick picture."""
    text: TextConditionConfig | None = None
    """A text that encoder and decoder read beside the picture; none by default."""

    @property
    def sizes_px(self) -> tuple[Grid, ...]:
        """Heights and widths that a picture may have."""
        return self.image_sizes_px or ((self.image_size_px, self.image_size_px),)

    def build(self) -> "ImageTokenizer":
        """Builds the tokenizer with fresh weights.

        Raises:
            ValueError: if the parts do not go together.
        """
        return ImageTokenizer(self)


@dataclass(frozen=True, eq=False)
class Coded:
    """Pictures on their way through the code: what training needs beside the ids."""

    ids: Int[Tensor, "batch positions streams"]
    """Codes; anything beyond a picture's length."""
    mask: Bool[Tensor, "batch positions"]
    """Which positions a picture holds: its first ones."""
    features: Float[Tensor, "batch features dim"]
    """Quantized features, arranged for a decoder; gradients pass straight through the quantizer."""
    features_mask: Bool[Tensor, "batch features"]
    """Which of these count."""
    grid: Grid
    """Rows and columns of the pictures, in patches."""
    text: Float[Tensor, "batch pieces dim"] | None
    """What a decoder reads of a text beside the features, if it reads one."""
    losses: dict[str, Tensor]
    """Weighted terms of quantizer and layout, by name."""
    stats: dict[str, Tensor]
    """Figures to log, detached."""


class ImageTokenizer(nn.Module):
    """Turns pictures into discrete codes and codes back into features and quick pictures."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        self.image_size = config.image_size_px
        self.encoder: Encoder = config.encoder.build(config.sizes_px)
        grids = tuple(self.encoder.grids(size) for size in config.sizes_px)
        self.quantizer: Quantizer = config.quantizer.build()
        self.positions: Layout = config.layout.build(self.encoder.dim, self.quantizer.dim, grids)
        self.has_codes = bool(self.quantizer.codebook_sizes)
        self._layout = self.positions.code_layout(streams_of(self.quantizer) or (Stream("none", 1),))
        finest = tuple(dict.fromkeys(grid for *_, grid in grids))
        feature_dim = self.positions.arranged_dim(self.quantizer.dim)
        num_features = max(map(math.prod, finest)) if self.positions.on_grid else self._layout.num_positions
        self.text = config.text and config.text.build(self.encoder.dim, feature_dim)
        if config.text and self.positions.on_grid:
            raise ValueError("text must be None for codes that lie on a grid: their decoder reads nothing beside them")
        if config.text and config.text.in_encoder and not self.positions.reads_context:
            raise ValueError(f"text.in_encoder must be False for a {type(config.layout).__name__}, which reads none")
        self.canvas = Canvas(
            feature_dim=feature_dim,
            num_features=num_features + (config.text.length if config.text else 0),
            on_grid=self.positions.on_grid,
            grids=finest,
            patch_px=self.encoder.patch_px,
        )
        self.pixel_decoder: PixelDecoder = config.pixel_decoder.build(self.canvas)
        self.to_code = config.projection.build(self.encoder.dim, self.quantizer.dim)
        # What is saved must build without the folders that weights were first read from.
        self.config = replace(config, encoder=self.encoder.config, pixel_decoder=self.pixel_decoder.config)

    @property
    def layout(self) -> CodeLayout:
        """What codes agree on.

        Raises:
            ValueError: if the quantizer makes no codes.
        """
        if not self.has_codes:
            raise ValueError(f"quantizer must make codes, got a {type(self.config.quantizer).__name__}")
        return self._layout

    def quantize(
        self,
        images: Float[Tensor, "batch 3 height width"],
        lengths: Int[Tensor, " batch"] | None = None,
        text: Int[Tensor, "batch pieces"] | None = None,
        *,
        noise: Float[Tensor, "batch numbers"] | None = None,
        errors: Float[Tensor, " batch"] | None = None,
    ) -> Coded:
        """Returns the codes of pictures in [0, 1], and features with gradients: the path of training.

        Args:
            images: pictures of one size.
            lengths: how many positions to keep of each; all by default.
            text: pieces as `TextCondition.ids` makes them.
            noise: what the layout decides by, as it drew it; by default it leaves nothing to chance.
            errors: mean absolute errors of the pictures painted from these lengths, where the layout learns from that.
        """
        patches, decoder_text = self.encoder(images), None
        if self.text is not None and text is not None:
            read = self.text(text)
            decoder_text = self.text.to_decoder(read)
            if self.text.to_encoder is not None:
                patches = replace(patches, context=self.text.to_encoder(read))
        extras = Extras(lengths, noise, errors, self._through_code)
        positions = self.positions(patches, extras)
        features = self.to_code(positions.features)
        arranged = self.positions.quantize(features, positions.mask, self.quantizer, extras)
        return Coded(
            arranged.ids,
            positions.mask,
            arranged.features,
            arranged.mask,
            patches.grids[-1],
            decoder_text,
            {**positions.losses, **arranged.losses},
            arranged.stats,
        )

    def paint(
        self, coded: Coded, noise: Float[Tensor, "batch cells channels"] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns quick pictures of about [0, 1], with gradients: the path of training.

        Args:
            coded: what ``quantize`` returned.
            noise: what a `NoisyCnnPixelDecoder` drew; without it that decoder always takes the same.
        """
        return self._paint(coded.features, coded.features_mask, coded.grid, coded.text, noise)

    @torch.no_grad()
    def encode(
        self,
        images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"],
        *,
        length: int | None = None,
        text: Sequence[str] | None = None,
    ) -> Tokens:
        """Returns the codes of pictures, uint8 or float in [0, 1]; the same picture always gives the same codes.

        Args:
            images: pictures of one of the sizes of the config.
            length: how many positions to keep; all by default.
            text: of each picture, for a tokenizer that reads one; without it, it does its best.

        Raises:
            ValueError: if the pictures have another size, a length is asked of a layout without prefixes, or a text is
                given to a tokenizer that reads none or for another number of pictures.
        """
        size = (images.shape[-2], images.shape[-1])
        if size not in self.config.sizes_px:
            allowed = " or ".join(f"{height} x {width}" for height, width in self.config.sizes_px)
            raise ValueError(f"pictures must be {allowed} pixels, got {size[0]} x {size[1]}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        assert not self.training, "encode() reads a tokenizer in eval mode"
        coded = self.quantize(images, text=self._text_ids(text, len(images)))
        lengths = coded.mask.sum(dim=1)
        ids = torch.where(coded.mask[..., None], coded.ids, -1)[:, : int(lengths.max())]
        sizes = [coded.grid if self.layout.kind == "grid" else (1, length) for length in lengths.tolist()]
        tokens = Tokens(ids, lengths, self.layout, tuple(sizes) if self.layout.grids else ())
        if length is None:
            return tokens
        if not self.layout.prefix_decodable:
            raise ValueError(
                f"length must be left out: the {self.layout.kind} layout has no shorter form, got {length}"
            )
        return tokens.prefix(length)

    def embed(self, tokens: Tokens) -> Float[Tensor, "batch positions dim"]:
        """Returns the features that codes stand for; zeros beyond a picture's length.

        Raises:
            ValueError: if the codes are of another layout or cannot stand at their position.
        """
        if tokens.layout != self.layout:
            raise ValueError(f"tokens must have the tokenizer's layout {self.layout}, got {tokens.layout}")
        if isinstance(self.quantizer, KnowsPositions):
            self.quantizer.check_positions(tokens.ids)
        return self.quantizer.lookup(tokens.ids.clamp_min(0)) * tokens.mask[..., None]

    @torch.no_grad()
    def code_features(self) -> Float[Tensor, "codes dim"]:
        """Returns what each code of stream 0 stands for; the other streams, if any, hold their first code."""
        ids = torch.zeros(1, self.layout.streams[0].size, len(self.layout.streams), dtype=torch.long)
        ids[..., 0] = torch.arange(ids.shape[1])
        return self.quantizer.lookup(ids.to(next(self.parameters()).device))[0]

    @torch.no_grad()
    def decode(
        self, tokens: Tokens, *, text: Sequence[str] | None = None, seeds: Sequence[int] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Returns quick pictures in [0, 1] from codes or a prefix of them.

        Args:
            tokens: of this tokenizer.
            text: what the pictures were coded with.
            seeds: of each picture's noise, for a decoder that draws some; always the same noise by default.

        Raises:
            ValueError: if the codes are of another layout, the pictures of several sizes, or a text does not fit.
        """
        several = self.layout.kind == "grid" and tokens.grids
        if len(grids := set(several or self.canvas.grids)) != 1:
            raise ValueError(f"pictures must have one size to be painted together, got grids of {sorted(grids)}")
        (grid,) = grids
        missing = self.layout.num_positions_of(grid if several else None) - tokens.ids.shape[1]
        features = F.pad(self.embed(tokens), (0, 0, 0, missing))
        arranged, mask = self.positions.arrange(features, F.pad(tokens.mask, (0, missing)))
        read = self._text_ids(text, len(arranged))
        decoder_text = None if self.text is None or read is None else self.text.to_decoder(self.text(read))
        noise = None
        if seeds is not None and isinstance(self.pixel_decoder, NoisyCnnPixelDecoder):
            noise = self.pixel_decoder.draw_noise(seeds, grid)
        return self._paint(arranged, mask, grid, decoder_text, noise).clamp(0, 1)

    def _through_code(
        self, features: Float[Tensor, "batch positions dim"]
    ) -> Float[Tensor, "batch positions code_dim"]:
        with standing_still(self.quantizer):
            return self.quantizer(self.to_code(features)).features

    def _text_ids(self, texts: Sequence[str] | None, number: int) -> Int[Tensor, "batch pieces"] | None:
        if texts is not None and (self.text is None or len(texts) != number):
            wanted = "left out: the tokenizer reads none" if self.text is None else f"one for each of {number} pictures"
            raise ValueError(f"text must be {wanted}, got {len(texts)}")
        return self.text and self.text.ids(texts or [""] * number)

    def _paint(
        self, features: Tensor, mask: Tensor, grid: Grid, text: Tensor | None, noise: Tensor | None = None
    ) -> Tensor:
        if text is not None:
            features = torch.cat([features, text], dim=1)
            mask = F.pad(mask, (0, text.shape[1]), value=True)
        if noise is None:
            return self.pixel_decoder(features, mask, grid)
        assert isinstance(self.pixel_decoder, NoisyCnnPixelDecoder), "no other decoder takes noise"
        return self.pixel_decoder(features, mask, grid, noise)

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of the saved weights: codes of another tokenizer do not fit."""
        return hashlib.sha256(self._saved_weights()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` (parameters in bfloat16) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config_to_json(self.config), indent=2) + "\n")
        (folder / "model.safetensors").write_bytes(self._saved_weights())
        if pieces := self._saved_pieces():
            (folder / MODEL_FILE).write_bytes(pieces)

    @staticmethod
    def load(folder: Path, device: str | torch.device = "cpu") -> "ImageTokenizer":
        """Reads a saved tokenizer, in eval mode and float32.

        Raises:
            ValueError: if the folder is no saved image tokenizer or its weights do not fit its config.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} must hold a saved image tokenizer (config.json), got no such file")
        config = config_from_json(ImageTokenizerConfig, json.loads((folder / "config.json").read_text()))
        tokenizer = config.build()
        try:
            tokenizer.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"{folder}: the weights must fit config.json, got {error}") from error
        if tokenizer.text is not None:
            tokenizer.text.pieces = SentencePieceTokenizer.load(folder)
        return tokenizer.to(device).eval()

    def _saved_pieces(self) -> bytes:
        return self.text.pieces.model_proto if self.text is not None and self.text.pieces is not None else b""

    def _saved_weights(self) -> bytes:
        # Buffers (a VQ code book) stay float32; the order of names makes the bytes, and so the hash, repeatable.
        parameters = {name: value.detach().cpu().bfloat16() for name, value in self.named_parameters()}
        state = {name: value.cpu() for name, value in self.state_dict().items()} | parameters
        return safetensors.torch.save({name: state[name].contiguous() for name in sorted(state)})
