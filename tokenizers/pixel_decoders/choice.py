"""The pixel decoders to choose from."""

from rebus.tokenizers.pixel_decoders.any_size_vit import AnySizeVitPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.cnn import CnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.noisy_cnn import NoisyCnnPixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vae import VaePixelDecoderConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig

PixelDecoderConfig = (
    VitPixelDecoderConfig
    | AnySizeVitPixelDecoderConfig
    | CnnPixelDecoderConfig
    | NoisyCnnPixelDecoderConfig
    | VaePixelDecoderConfig
)
