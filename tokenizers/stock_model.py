"""Models of ``transformers`` from a folder of the user's; no code in there is run, and no weight is made up."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError


def load_stock(folder: Path, kind: Any = None) -> Any:
    """Returns a stock model in float32.

    Args:
        folder: what ``save_pretrained`` wrote.
        kind: which of the auto classes reads it; ``AutoModel`` by default.

    Raises:
        ValueError: if the folder holds no such model, or not all of its weights.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        # transformers would look for the folder on the Hub
        raise ValueError(f"{folder} must hold a model of transformers (config.json, safetensors), got no such files")
    from transformers import AutoModel

    try:
        model, found = (kind or AutoModel).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # no JSON, other shapes, a file cut off
        raise ValueError(f"{folder} must hold a model of transformers with weights that fit, got {error}") from error
    # What is missing transformers would draw at random. What is left over may be a head that nobody asked for.
    if found["missing_keys"]:
        wrong = {name: sorted(found[name]) for name in ("missing_keys", "unexpected_keys") if found[name]}
        raise ValueError(f"{folder}: the weights must fit config.json, got {wrong}")
    return model
