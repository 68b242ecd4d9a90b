"""The choice of a family: any one config of these fits where a decoder is borrowed."""

from rebus.model.borrowed_decoders.flux import FluxConfig
from rebus.model.borrowed_decoders.lumina2 import Lumina2Config
from rebus.model.borrowed_decoders.sana import SanaConfig
from rebus.model.borrowed_decoders.stable_diffusion import StableDiffusionConfig
from rebus.model.borrowed_decoders.stable_diffusion_3 import StableDiffusion3Config
from rebus.model.borrowed_decoders.stable_diffusion_xl import StableDiffusionXLConfig
from rebus.model.borrowed_decoders.unclip import UnclipConfig

DenoisingFamilyConfig = (
    StableDiffusionConfig | StableDiffusionXLConfig | StableDiffusion3Config | SanaConfig | Lumina2Config | FluxConfig
)
"""Families whose adapter learns by what the base then predicts."""
FamilyConfig = DenoisingFamilyConfig | UnclipConfig
