"""What stands beside the UNet in a pipeline of Stable Diffusion 2.1 unCLIP: an encoder of pictures, and numbers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from rebus.model.borrowed_decoders.latents import resized
from rebus.model.borrowed_decoders.unclip import UnclipHead

ENCODER_WEIGHTS = Path("image_encoder/model.safetensors")
_PLACES = ("image_encoder", "feature_extractor", "image_normalizer", "image_noising_scheduler", "text_encoder")


@dataclass(frozen=True, eq=False)
class PictureEncoder:
    """CLIP's encoder of pictures, frozen: the embeddings that the adapter learns to tell from codes."""

    model: Any
    mean: Float[Tensor, "3 1 1"]
    """Of the pixels that it was trained with."""
    std: Float[Tensor, "3 1 1"]
    """Their standard deviation."""

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch embedding"]:
        """Returns the embeddings of pictures in [0, 1], squeezed to the encoder's square.

        Source: the transform of SEED-2, which resizes without cutting anything off.
        """
        side = self.model.config.image_size
        pixels = (resized(images, (side, side)) - self.mean.to(images.device)) / self.std.to(images.device)
        return self.model(pixels.to(self.model.dtype)).image_embeds.float()


def read_encoder(folder: Path) -> PictureEncoder:
    """Reads the encoder of pictures of a pipeline, in float32.

    Raises:
        ValueError: if the folder has none.
    """
    from transformers import CLIPVisionModelWithProjection

    check_places(folder)
    model: Any = CLIPVisionModelWithProjection.from_pretrained(
        folder / "image_encoder", use_safetensors=True, local_files_only=True
    )
    values = json.loads((folder / "feature_extractor" / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(values[name])[:, None, None] for name in ("image_mean", "image_std"))
    return PictureEncoder(model.requires_grad_(False).eval(), mean, std)


def take_over_parts(head: UnclipHead, folder: Path) -> None:
    """Gives a head the numbers of a pipeline: spread of embeddings, noise at level 0, features of an empty prompt.

    Raises:
        ValueError: if the folder has none, or they do not go with the UNet.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    check_places(folder)
    normalizer = load_file(folder / "image_normalizer" / "diffusion_pytorch_model.safetensors")
    noise: Any = DDPMScheduler.from_pretrained(folder / "image_noising_scheduler", local_files_only=True)
    head.take_over(
        mean=normalizer["mean"][0].float(),
        std=normalizer["std"][0].float(),
        kept=noise.alphas_cumprod[0],
        empty_prompt=empty_prompt(folder, len(head.empty_prompt)),
    )


@torch.no_grad()
def empty_prompt(folder: Path, num_rows: int) -> Float[Tensor, "rows dim"]:
    """Returns the features of an empty text of a pipeline's own encoder of texts."""
    from transformers import AutoTokenizer, CLIPTextModel

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    model: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", use_safetensors=True, local_files_only=True)
    ids = tokenizer("", padding="max_length", max_length=num_rows, return_tensors="pt").input_ids
    return model.eval()(ids)[0][0].float()


def check_places(folder: Path) -> None:
    """Refuses a folder that lacks a part.

    Raises:
        ValueError: if it does, with the names of all that it lacks.
    """
    if missing := [name for name in (*_PLACES, "tokenizer") if not (folder / name).is_dir()]:
        raise ValueError(f"{folder} must be a pipeline of Stable unCLIP, got one without {', '.join(missing)}")
