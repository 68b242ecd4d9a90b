"""The encoders to choose from."""

from rebus.tokenizers.encoders.vit import VitEncoderConfig

EncoderConfig = VitEncoderConfig
