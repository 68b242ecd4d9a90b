"""The encoders that read a picture in one way; two of them make a `two_branch` encoder."""

from rebus.tokenizers.encoders.any_size_vit import AnySizeVitEncoderConfig
from rebus.tokenizers.encoders.cnn import CnnEncoderConfig
from rebus.tokenizers.encoders.tower import TowerEncoderConfig
from rebus.tokenizers.encoders.vae_latents import VaeLatentsEncoderConfig
from rebus.tokenizers.encoders.vit import VitEncoderConfig

OneBranchEncoderConfig = (
    VitEncoderConfig | AnySizeVitEncoderConfig | CnnEncoderConfig | TowerEncoderConfig | VaeLatentsEncoderConfig
)
