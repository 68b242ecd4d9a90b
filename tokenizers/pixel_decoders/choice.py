"""The pixel decoders to choose from."""

from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig

PixelDecoderConfig = VitPixelDecoderConfig
