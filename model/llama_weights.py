"""The weights of a stock language model from its folder, for decoding.

Those of a plain Llama are read straight from the file, since importing its class would take seconds; what is returned
then has the attributes of ``LlamaForCausalLM`` that hold weights, by the same names, and no methods.
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
    from transformers import PreTrainedModel

PLAIN = {
    **{"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "rope_type": "default",
}
"""What the config of a plain Llama says."""


def read_language_model(folder: Path, device: str | torch.device, dtype: torch.dtype) -> "PreTrainedModel":
    """Returns a saved language model, or only its weights as attributes named as in its class."""
    config = json.loads((folder / "config.json").read_text())
    said = {**config, **(config.get("rope_parameters") or {})}
    if all(said.get(name) == plain for name, plain in PLAIN.items()):
        return _read_plain_llama(folder, config, device, dtype)
    from transformers import AutoModelForCausalLM

    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    return cast("PreTrainedModel", torch.nn.Module.to(model, device))


def _read_plain_llama(
    folder: Path, config: dict[str, Any], device: str | torch.device, dtype: torch.dtype
) -> "PreTrainedModel":
    saved = safetensors.torch.load_file(folder / "model.safetensors", device=str(device))
    tensors = {name: tensor.to(dtype) for name, tensor in saved.items()}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model = _as_attributes(tensors)
    model.config = SimpleNamespace(**config)
    model.model.rotary_emb = _Rotary(config["head_dim"], config["rope_parameters"]["rope_theta"])
    return cast("PreTrainedModel", model)


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
