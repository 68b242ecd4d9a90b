"""The weights of a stock Llama straight from its folder, for decoding: importing its class would take seconds.

What is returned has the attributes of ``LlamaForCausalLM`` that hold weights, by the same names, and no methods.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

PLAIN = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
"""What a config must say for the weights to mean what they are taken for here."""


def read_llama(folder: Path, device: str | torch.device, dtype: torch.dtype) -> "LlamaForCausalLM":
    """Returns the weights of a saved Llama as attributes named as in the class.

    Raises:
        ValueError: if it is another model, or one of a kind that is not read here.
    """
    config = json.loads((folder / "config.json").read_text())
    rope = config.get("rope_parameters") or {}
    for name, plain in {**PLAIN, "rope_type": "default"}.items():
        got = {**config, **rope}.get(name)
        if got != plain:
            raise ValueError(f"{folder}: {name} of the language model must be {plain}, got {got}")
    saved = safetensors.torch.load_file(folder / "model.safetensors", device=str(device))
    tensors = {name: tensor.to(dtype) for name, tensor in saved.items()}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model = _as_attributes(tensors)
    model.config = SimpleNamespace(**config)
    model.model.rotary_emb = _Rotary(config["head_dim"], rope["rope_theta"])
    return cast("LlamaForCausalLM", model)


class _Rotary:
    """The plain rotary embedding."""

    def __init__(self, head_dim: int, theta: float) -> None:
        self.speeds = theta ** -(torch.arange(0, head_dim, 2) / head_dim)

    def __call__(
        self, like: Tensor, positions: Int[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows length dim"], Float[Tensor, "rows length dim"]]:
        """Returns cosine and sine of the angles at each position, on the device and in the dtype of ``like``."""
        angles = positions[..., None].float() * self.speeds.to(positions.device)
        both = torch.cat([angles, angles], dim=-1)
        return both.cos().to(like), both.sin().to(like)


def _as_attributes(tensors: dict[str, Tensor]) -> Any:
    """Returns nested attributes from dotted names; parts of a name that are numbers become places in a list."""
    children: dict[str, Any] = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if rest:
            children.setdefault(first, {})[rest] = tensor
        else:
            children[first] = tensor
    values = {key: _as_attributes(child) if isinstance(child, dict) else child for key, child in children.items()}
    if all(key.isdecimal() for key in values):
        return [values[str(index)] for index in range(len(values))]
    return SimpleNamespace(**values)
