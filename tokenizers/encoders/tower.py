"""A vision tower of `transformers` as encoder: SigLIP, DINO or CLIP, read at one or several of its layers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from rebus.tokenizers.encoders.contract import Patches
from rebus.tokenizers.encoders.vit import whole_patches
from rebus.tokenizers.patch_transform import COEFFICIENT_SCALE, cosine_kernels
from rebus.tokenizers.saved_config import check_plain
from rebus.tokenizers.stock_model import load_stock
from rebus.tokenizers.tokens import Grid

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Kind = Literal[
    "siglip_vision_model", "siglip2_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model"
]
_BEHIND = ("post_layernorm", "layernorm", "norm")  # what towers have after their last layer
_LAST_OF_A_BLOCK = ("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight", "weights_out.weight")
_FORGOTTEN = {"transformers_version", "model_type", "architectures", "dtype", "torch_dtype", "_name_or_path"}
_FORGOTTEN |= {"out_features", "out_indices", "stage_names"}  # of towers in their other role, as backbones


@dataclass(frozen=True, kw_only=True)
class TowerEncoderConfig:
    """A vision tower, from a folder or of given sizes with fresh weights."""

    pretrained: str = ""
    """Folder of a saved model, a vision tower or one that contains it, whose sizes and weights are taken. A saved
    tokenizer holds both and does not need the folder any more."""
    kind: Kind = "siglip_vision_model"
    """What `transformers` calls the tower."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Its sizes, as keys of its `transformers` config; those of ``pretrained`` if there is one."""
    taps: tuple[int, ...] = (-1,)
    """Layers whose outputs are read, side by side: 0 is the embedding of the patches, negative ones count from the
    last. Later layers are left out."""
    frozen: bool = False
    """Whether its weights stay as they are."""
    patch_px: int | None = None
    """Side of the square of pixels that a feature stands for: pictures are resized until it is a patch of the tower.
    The tower's own patch by default."""
    mean: tuple[float, float, float] | None = None
    """Mean of red, green and blue in [0, 1] that is taken off; by default what ``pretrained`` says, or 0.5."""
    std: tuple[float, float, float] | None = None
    """What the colours are divided by after that; by default what ``pretrained`` says, or 0.5."""

    def __post_init__(self) -> None:
        check_plain("architecture", self.architecture)
        if self.pretrained and self.architecture:
            raise ValueError(f"architecture must be empty where pretrained says it, got {self.architecture}")
        if not self.taps:
            raise ValueError("taps must be at least one, got none")
        if self.patch_px is not None and self.patch_px < 1:
            raise ValueError(f"patch_px must be at least 1, got {self.patch_px}")

    def build(self, sizes_px: tuple[Grid, ...]) -> "TowerEncoder":
        """Builds the encoder; it has the same weights whatever the sizes are.

        Raises:
            ValueError: if the folder holds no such model, its weights do not fit, a tap is none of its layers, or a
                size is no multiple of the patch.
        """
        if self.pretrained:
            full = read_tower(Path(self.pretrained), self.kind)
            config = replace(self, pretrained="", architecture=_sizes(full.config), **_colors(self))
            encoder = TowerEncoder(config)
            weights = full.state_dict()
            encoder.tower.load_state_dict({name: weights[name] for name in encoder.tower.state_dict()})
        else:
            encoder = TowerEncoder(self)
        for size_px in sizes_px:
            encoder.grids(size_px)
        return encoder


class TowerEncoder(nn.Module):
    """Encodes pictures as what a vision tower knows of each patch; its class and register tokens are dropped.

    The tower is always in eval mode: the same picture has the same features in training too.

    Source: features of two layers side by side, Song et al., "DualToken", https://arxiv.org/abs/2503.14324, sec. 3.
    Differs: positions of other grids than the tower's own are resized by the method of its class; a tower with fresh
    weights begins with the cosine transform of the patches as their embedding, see `patch_transform`, and with layers
    that pass it on: rebuilt from two layers of SigLIP, not quantized, scenes have 22.0 dB after 600 pictures, and
    14.0 dB from random weights.
    """

    colors: Tensor

    def __init__(self, config: TowerEncoderConfig) -> None:
        super().__init__()
        sizes = _config_of(config.kind, config.architecture)
        depth: int = sizes.num_hidden_layers
        if not all(-depth - 1 <= tap <= depth for tap in config.taps):
            raise ValueError(f"taps must lie in [{-depth - 1}, {depth}] for {depth} layers, got {config.taps}")
        self.taps = tuple(tap % (depth + 1) for tap in config.taps)
        architecture = {**config.architecture, "num_hidden_layers": max(self.taps)}
        if hasattr(sizes, "vision_use_head"):
            architecture["vision_use_head"] = False
        self.config = replace(config, architecture=architecture, taps=self.taps)
        self.tower = _build(config.kind, architecture)
        self.tower_patch_px: int = sizes.patch_size
        self.patch_px = config.patch_px or self.tower_patch_px
        self.dim = len(self.taps) * sizes.hidden_size
        colors = [config.mean or (0.5,) * 3, config.std or (0.5,) * 3]
        self.register_buffer("colors", torch.tensor(colors)[..., None, None], persistent=False)
        if config.frozen:
            self.tower.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TowerEncoder":
        """Sets training or eval mode of all but the tower."""
        super().train(mode)
        self.tower.eval()
        return self

    def grids(self, size_px: Grid) -> tuple[Grid, ...]:
        """Returns the one grid; see `Encoder`."""
        return (whole_patches(size_px, self.patch_px),)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Patches:
        """Returns the features of pictures with values in [0, 1]."""
        ((rows, columns),) = grids = self.grids((images.shape[-2], images.shape[-1]))
        if self.patch_px != self.tower_patch_px:
            size = (rows * self.tower_patch_px, columns * self.tower_patch_px)
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = self.colors
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.frozen):
            states = self.tower(**self._inputs((images - mean) / std, (rows, columns)), output_hidden_states=True)
        read = [states.hidden_states[tap][:, -rows * columns :] for tap in self.taps]
        return Patches(torch.cat(read, dim=-1), grids)

    def _inputs(self, pixels: Tensor, grid: Grid) -> dict[str, Any]:
        if self.config.kind == "siglip2_vision_model":  # takes patches, not pictures
            patch_px = self.tower_patch_px
            patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=patch_px, q=patch_px)
            return {
                "pixel_values": patches,
                "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device),
                "spatial_shapes": torch.tensor([grid] * len(patches)),
            }
        resizes = self.config.kind in ("siglip_vision_model", "clip_vision_model")  # the others always do
        return {"pixel_values": pixels, **({"interpolate_pos_encoding": True} if resizes else {})}


def read_tower(folder: Path, kind: Kind) -> "PreTrainedModel":
    """Returns the whole vision tower of a saved model.

    Raises:
        ValueError: if the folder holds no model with a tower of that kind, or not all its weights.
    """
    model = load_stock(folder)
    tower = getattr(model, "vision_model", model)
    if tower.config.model_type != kind:
        raise ValueError(f"kind must be {tower.config.model_type!r}, as {folder} has it, got {kind!r}")
    return tower


def _colors(config: TowerEncoderConfig) -> dict[str, tuple[float, ...]]:
    """Returns mean and std that a config leaves open, as the folder says them."""
    path = Path(config.pretrained) / "preprocessor_config.json"
    given = {"mean": config.mean, "std": config.std}
    if None in given.values() and not path.is_file():
        raise ValueError(f"mean and std must be given where there is no {path}, got {config.mean} and {config.std}")
    return {name: value or tuple(json.loads(path.read_text())[f"image_{name}"]) for name, value in given.items()}


def _config_of(kind: Kind, architecture: Mapping[str, Any]) -> "PreTrainedConfig":
    from transformers import AutoConfig

    allowed = set(AutoConfig.for_model(kind).to_dict())
    if unknown := sorted(set(architecture) - allowed):
        raise ValueError(f"architecture of {kind} must have keys among {sorted(allowed)}, got {unknown}")
    return AutoConfig.for_model(kind, **architecture)


def _sizes(config: "PreTrainedConfig") -> dict[str, Any]:
    return {name: value for name, value in config.to_diff_dict().items() if name not in _FORGOTTEN}


def _build(kind: Kind, architecture: Mapping[str, Any]) -> "PreTrainedModel":
    """Returns a fresh tower without what lies behind its last layer."""
    from transformers import AutoModel

    tower = AutoModel.from_config(_config_of(kind, architecture), dtype=torch.float32)
    for name in _BEHIND:
        if hasattr(tower, name):
            setattr(tower, name, nn.Identity())
    for name, parameter in tower.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)  # no patch is ever masked
    embed = next(module for module in tower.embeddings.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    kernels = cosine_kernels(tower.config.patch_size, tower.config.hidden_size) / COEFFICIENT_SCALE
    with torch.no_grad():
        embed.weight.copy_(kernels if embed.weight.ndim == 4 else rearrange(kernels, "d c p q -> d (p q c)"))
        for name, parameter in tower.named_parameters():
            if name.endswith(_LAST_OF_A_BLOCK):
                parameter.zero_()  # fresh layers pass on what comes in
    return tower
