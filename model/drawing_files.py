"""Drawings on the disk: a PNG, a JSON file beside it with all that it takes to draw it again, and codes by themselves.

Codes are ``{"image_tokenizer_hash": ..., "codes": [picture][position][stream]}``. They stand in the JSON file beside a
picture too, under ``tokens``, and are read from there as well.
"""

import io
import json
import os
import re
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from rebus.model.drawing import Drawing
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel, versions
from rebus.tokenizers.tokens import Tokens


def record(rebus: Rebus, drawing: Drawing, asked: Mapping[str, Any], total_seconds: float) -> dict[str, Any]:
    """Returns what it takes to draw a picture again, and what it took, as plain values.

    Args:
        rebus: what drew it.
        drawing: the picture.
        asked: what it was asked for.
        total_seconds: since it was asked for.
    """
    statistics = drawing.statistics
    return {
        **asked,
        "seed": drawing.seed,
        "settings": asdict(drawing.settings),
        "model": str(rebus.saved.folder),
        "model_hash": rebus.saved.hash,
        "device": rebus.device,
        "dtype": str(rebus.writer.dtype).removeprefix("torch."),
        "versions": versions(),
        "tokens": _codes([drawing.tokens], rebus.saved),
        "batch_size": statistics.batch_size,
        "decode_tokens_per_second": statistics.codes_per_second,
        "language_model_seconds": statistics.language_model_seconds,
        "decoder_seconds": statistics.decoder_seconds,
        "total_seconds": total_seconds,
        "peak_memory_mb": _peak_memory_mb(),
    }


def picture_path(output: Path, number: int, prompt: str | None) -> Path:
    """Returns the file of a picture: ``output`` itself, or one in that folder with its number and what it shows."""
    words = re.sub("[^a-z0-9]+", "-", (prompt or "").lower())[:60]
    return output if output.suffix == ".png" else output / f"{f'{number:03d}-{words}'.strip('-')}.png"


def write_drawing(path: Path, image: Image.Image, record: Mapping[str, Any]) -> None:
    """Writes a PNG and, under the same name with ``.json``, its record; if that fails, neither."""
    png = io.BytesIO()
    image.save(png, "PNG")
    write_whole({path.with_suffix(".json"): _json(record), path: png.getvalue()})


def write_tokens(path: Path, rows: Sequence[Tokens], saved: SavedModel) -> None:
    """Writes the codes of pictures, each a batch of one."""
    write_whole({path: _json(_codes(rows, saved))})


def read_tokens(path: Path, saved: SavedModel) -> list[Tokens]:
    """Returns the codes in a file, each picture as a batch of one.

    Raises:
        ValueError: if it holds none, or not those of the model's image tokenizer.
    """
    try:
        values = json.loads(path.read_bytes())
        values = values.get("tokens", values)
        made_by, codes = values["image_tokenizer_hash"], values["codes"]
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"{path} must hold codes as --tokens-out writes them, got none ({error})") from error
    if made_by != saved.image_tokenizer_hash:
        expected = saved.image_tokenizer_hash
        raise ValueError(f"{path}: codes must be of image tokenizer {expected}, got those of {made_by}")
    try:
        rows = [torch.tensor([row], dtype=torch.int64) for row in codes]
        pictures = [Tokens(row, torch.tensor([row.shape[1]]), saved.vocabulary.layout) for row in rows]
        for picture in pictures:
            saved.vocabulary.flatten(picture)  # refuses a part of a picture where that is none
    except (TypeError, ValueError, LookupError, RuntimeError) as error:
        raise ValueError(f"{path}: codes must be [picture][position][stream] ({error})") from error
    if not pictures:
        raise ValueError(f"{path} must hold the codes of at least one picture, got none")
    return pictures


def recorded_prompt(path: Path) -> str:
    """Returns what the record of a picture says that it shows; nothing for codes alone, or a change of a picture."""
    values = json.loads(path.read_bytes())
    prompt = values.get("prompt")
    return prompt if isinstance(prompt, str) and not values.get("image") else ""


def _codes(rows: Sequence[Tokens], saved: SavedModel) -> dict[str, Any]:
    return {"image_tokenizer_hash": saved.image_tokenizer_hash, "codes": [row.ids[0].tolist() for row in rows]}


def _peak_memory_mb() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Replaces files, and makes the folders they are in; if one cannot be written, all stay as they were."""
    drafts = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in files}
    try:
        for path, content in files.items():
            if path.is_dir():
                raise ValueError(f"{path} must be a file, got a folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            drafts[path].write_bytes(content)
        for path, draft in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)


def _json(values: Mapping[str, Any]) -> bytes:
    """Returns an object with one line for each key: codes would take one each."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()
