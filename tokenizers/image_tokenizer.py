"""The image tokenizer: an encoder, a layout, a quantizer and a light pixel decoder, chosen by config."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from rebus.tokenizers.encoders import VitEncoder, VitEncoderConfig
from rebus.tokenizers.layouts import GridConfig, Layout, LayoutConfig
from rebus.tokenizers.pixel_decoder import PixelDecoder, PixelDecoderConfig
from rebus.tokenizers.quantizers.contract import Quantized, Quantizer
from rebus.tokenizers.quantizers.finite_scalar import FiniteScalarConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.saved_config import config_from_json, config_to_json
from rebus.tokenizers.tokens import CodeLayout, Stream, Tokens


@dataclass(frozen=True, kw_only=True)
class ImageTokenizerConfig:
    """An image tokenizer as its parts."""

    image_size_px: int = 128
    """Side of the square pictures."""
    encoder: VitEncoderConfig = VitEncoderConfig()
    """Pixels to patch features."""
    layout: LayoutConfig = GridConfig()
    """Patch features to code positions."""
    quantizer: FiniteScalarConfig | VectorConfig = VectorConfig()
    """Features to codes."""
    pixel_decoder: PixelDecoderConfig = PixelDecoderConfig()
    """Codes to a quick picture."""

    def build(self) -> "ImageTokenizer":
        """Builds the tokenizer with fresh weights."""
        encoder = self.encoder.build(self.image_size_px)
        layout = self.layout.build(encoder.dim, encoder.grid)
        quantizer = self.quantizer.build()
        streams = tuple(Stream(f"codes_{index}", size) for index, size in enumerate(quantizer.codebook_sizes))
        code_layout = layout.code_layout(streams)
        pixel_decoder = self.pixel_decoder.build(code_layout, quantizer.dim, encoder.grid, encoder.patch_px)
        return ImageTokenizer(self, code_layout, encoder, layout, quantizer, pixel_decoder)


class ImageTokenizer(nn.Module):
    """Turns pictures into discrete codes and codes back into features and quick pictures."""

    def __init__(
        self,
        config: ImageTokenizerConfig,
        layout: CodeLayout,
        encoder: VitEncoder,
        positions: Layout,
        quantizer: Quantizer,
        pixel_decoder: PixelDecoder,
    ) -> None:
        super().__init__()
        self.config = config
        self.layout = layout
        self.image_size = config.image_size_px
        self.encoder = encoder
        self.positions = positions
        self.to_code = nn.Linear(encoder.dim, quantizer.dim)
        nn.init.eye_(self.to_code.weight)  # the first features of a fresh encoder are the most telling ones
        nn.init.zeros_(self.to_code.bias)
        self.quantizer = quantizer
        self.pixel_decoder = pixel_decoder

    def quantize(
        self, images: Float[Tensor, "batch 3 height width"], mask: Bool[Tensor, "batch positions"] | None = None
    ) -> Quantized:
        """Returns the quantized features of pictures in [0, 1], with gradients: the path of training."""
        return self.quantizer(self.to_code(self.positions(self.encoder(images))), mask)

    @torch.no_grad()
    def encode(
        self,
        images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"],
        *,
        length: int | None = None,
    ) -> Tokens:
        """Returns the codes of pictures, uint8 or float in [0, 1]; the same picture always gives the same codes.

        Args:
            images: square pictures of ``image_size`` pixels.
            length: how many positions to keep; all by default.

        Raises:
            ValueError: if the pictures have another size, or a length is asked of a layout without prefixes.
        """
        if images.shape[-2:] != (self.image_size, self.image_size):
            side = self.image_size
            raise ValueError(f"pictures must be {side} x {side} pixels, got {images.shape[-2]} x {images.shape[-1]}")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        assert not self.training, "encode() reads a tokenizer in eval mode"
        ids = self.quantize(images).ids
        tokens = Tokens(ids, torch.full((len(ids),), ids.shape[1], device=ids.device), self.layout)
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
            ValueError: if the codes are of another layout.
        """
        if tokens.layout != self.layout:
            raise ValueError(f"tokens must have the tokenizer's layout {self.layout}, got {tokens.layout}")
        return self.quantizer.lookup(tokens.ids.clamp_min(0)) * tokens.mask[..., None]

    @torch.no_grad()
    def code_features(self) -> Float[Tensor, "codes dim"]:
        """Returns what each code of stream 0 stands for; the other streams, if any, hold their first code."""
        ids = torch.zeros(1, self.layout.streams[0].size, len(self.layout.streams), dtype=torch.long)
        ids[..., 0] = torch.arange(ids.shape[1])
        return self.quantizer.lookup(ids.to(self.to_code.weight.device))[0]

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Float[Tensor, "batch 3 height width"]:
        """Returns quick pictures in [0, 1] from codes or from a prefix of them."""
        missing = self.layout.num_positions - tokens.ids.shape[1]
        features = F.pad(self.embed(tokens), (0, 0, 0, missing))
        return self.pixel_decoder(features, F.pad(tokens.mask, (0, missing))).clamp(0, 1)

    @property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of the saved weights: codes of another tokenizer do not fit."""
        return hashlib.sha256(self._saved_weights()).hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Writes ``config.json`` and ``model.safetensors`` (parameters in bfloat16) into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config_to_json(self.config), indent=2) + "\n")
        (folder / "model.safetensors").write_bytes(self._saved_weights())

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
        return tokenizer.to(device).eval()

    def _saved_weights(self) -> bytes:
        # Buffers (a VQ code book) stay float32; the order of names makes the bytes, and so the hash, repeatable.
        parameters = {name: value.detach().cpu().bfloat16() for name, value in self.named_parameters()}
        state = {name: value.cpu() for name, value in self.state_dict().items()} | parameters
        return safetensors.torch.save({name: state[name].contiguous() for name in sorted(state)})


def lengths_mask(lengths: Int[Tensor, " batch"], num_positions: int) -> Bool[Tensor, "batch positions"]:
    """Returns True at the first ``lengths[i]`` positions of picture i."""
    return torch.arange(num_positions, device=lengths.device) < lengths[:, None]
