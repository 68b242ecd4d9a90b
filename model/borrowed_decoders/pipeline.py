"""A borrowed decoder as a pipeline of diffusers: codes in, pictures out.

    pipeline = BorrowedDecoderPipeline.from_pretrained("runs/borrowed_decoder/export")
    picture = pipeline(tokens, num_inference_steps=25, guidance_scale=3.0).images[0]

The folder is that of any pipeline: safetensors, and no code.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.modeling_utils import ModelMixin
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float, Int
from torch import Tensor

from rebus.model.borrowed_decoders.adapter import CodeAdapter
from rebus.model.borrowed_decoders.borrowed_decoder import predict_guided
from rebus.model.borrowed_decoders.latents import latent_shape, to_pictures
from rebus.model.borrowed_decoders.noising import generator_option, set_timesteps
from rebus.model.borrowed_decoders.weights import (
    AUTO_ENCODERS,
    check_part,
    check_weights,
    memory_report,
    plain_values,
    read_config,
    weight_bytes,
)
from rebus.tokenizers.tokens import Tokens


class BorrowedDecoderPipeline(DiffusionPipeline):
    """An adapter, its base, and the auto-encoder and scheduler that came with that."""

    model_cpu_offload_seq = "adapter->base->vae"

    def __init__(self, adapter: CodeAdapter, base: ModelMixin, vae: ModelMixin, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(adapter=adapter, base=base, vae=vae, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        tokens: Tokens | Int[Tensor, "batch positions streams"],
        *,
        num_inference_steps: int = 25,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Float[Tensor, "batch channels rows columns"] | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
        return_dict: bool = True,
        tokenizer_hash: str | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Paints pictures from codes, or from a prefix of them.

        Args:
            tokens: codes of the image tokenizer that the adapter was trained with; plain ids may have -1 beyond a
                picture's length.
            num_inference_steps: steps of the scheduler.
            guidance_scale: how far to go from what is painted without codes to what is painted with them; 1 is plain.
            generator: of the noise, one for all pictures or one for each.
            latents: unit Gaussian noise to start from, instead of drawing it.
            output_type: PIL pictures, arrays, tensors in [0, 1], or latents.
            return_dict: whether the pictures come as ``images`` of an object, or as the first of a tuple.
            tokenizer_hash: that of the tokenizer that the codes are of; not looked at by default.

        Raises:
            ValueError: if the codes are of another tokenizer or layout, out of range or too many, or the steps fewer
                than one.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        if tokenizer_hash is not None:
            self.adapter.check_tokenizer(tokenizer_hash)
        device = self._execution_device
        ids = self.adapter.ids(tokens).to(device)
        shape = (len(ids), *latent_shape(self.vae, self.adapter.family.size_px))
        noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents.to(device)
        if noise.shape != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(noise.shape)}")
        painted = self._paint(ids, noise, num_inference_steps, guidance_scale, generator)
        pictures = painted if output_type == "latent" else to_pictures(self.vae, painted)
        # What comes here is in [0, 1] already, so that a picture is the same whatever type it comes out as.
        images: Any = VaeImageProcessor(do_normalize=False).postprocess(pictures, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _paint(self, ids: Tensor, noise: Tensor, steps: int, guidance: float, generator: Any) -> Tensor:
        family, scheduler = self.adapter.family, self.scheduler
        conditions = self.adapter(ids), self.adapter(torch.full_like(ids, -1))
        num_patches = noise.shape[-2] * noise.shape[-1] // 4  # of 2 x 2, wherever the noise depends on it
        set_timesteps(scheduler, steps, even_noise=family.even_noise, num_patches=num_patches, device=noise.device)
        latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)  # a flow starts from the noise as it is
        options = generator_option(scheduler, generator)
        progress: Any = self.progress_bar  # its types are lost in diffusers
        with progress(total=len(scheduler.timesteps)) as bar:
            for timestep in scheduler.timesteps:
                scaled = scheduler.scale_model_input(latents, timestep) if _scales(scheduler) else latents
                times = timestep.float().expand(len(ids))
                predicted = predict_guided(self.adapter, self.base, scaled, times, conditions, guidance)
                latents = scheduler.step(predicted, timestep, latents, **options, return_dict=False)[0]
                bar.update()
        return latents


def _scales(scheduler: SchedulerMixin) -> bool:
    return hasattr(scheduler, "scale_model_input")


def open_pipeline(
    folder: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    offload: bool = False,
    tokenizer_hash: str | None = None,
) -> BorrowedDecoderPipeline:
    """Reads a saved pipeline, and says before how much memory its weights take.

    Args:
        folder: what ``save_pretrained`` wrote.
        device: where it is to paint.
        dtype: of adapter and base; the auto-encoder stays in float32.
        offload: whether only the part at work lies on the device, an accelerator then, and the others in the host's
            memory: slower, and enough for pictures that else would not be painted at all.
        tokenizer_hash: that of the image tokenizer whose codes it shall paint; not looked at by default.

    Raises:
        ValueError: if there is no such pipeline, its weights do not fit, it is of another tokenizer, or there is
            nothing to offload from.
    """
    config = read_config(folder / "adapter")
    if tokenizer_hash not in (None, config.get("tokenizer_hash")):
        wanted = f"{config.get('tokenizer_hash')}, as in training"
        raise ValueError(f"{folder}: tokenizer_hash must be {wanted}, got {tokenizer_hash}")
    if offload and torch.device(device).type == "cpu":
        raise ValueError(f"device must be an accelerator where weights wait in the host's memory, got {device}")
    adapter: Any = CodeAdapter.from_config(plain_values(config))
    check_weights(folder / "adapter", adapter)
    check_part(folder / "base", (read_config(folder / "base")["_class_name"],))
    check_part(folder / "vae", AUTO_ENCODERS)
    dtypes = {"adapter": dtype, "base": dtype, "vae": torch.float32}
    print(memory_report({part: weight_bytes(folder / part, one) for part, one in dtypes.items()}, offload=offload))
    pipeline = BorrowedDecoderPipeline.from_pretrained(
        folder, dtype={**dtypes, "default": dtype}, use_safetensors=True, local_files_only=True
    )
    if offload:
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)
