"""Puts the parts that the stages exported together into one saved model, in bfloat16.

python -m rebus.train.assemble --preset mini --output assets/mini --settings.guidance 2
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rebus.data.scene_text import DESCRIBE_REQUEST
from rebus.model.command_line import refusing
from rebus.model.decoder import DiffusionDecoder
from rebus.model.decoder_pipeline import DecoderPipeline
from rebus.model.drawing import DrawingSettings
from rebus.model.saved import SavedModel, describe
from rebus.model.vae import load_vae
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.train.checkpoint import draft_of, write_folder
from rebus.train.config import parse


@dataclass(frozen=True, kw_only=True)
class AssembleConfig:
    """Where the parts are, and where the whole goes."""

    language_model: Path
    """Exported language model with its text tokenizer."""
    image_tokenizer: Path
    """Exported image tokenizer whose codes the language model and the decoder were trained with."""
    decoder: Path | None = None
    """Exported diffusion decoder; without one, the image tokenizer's own decoder paints (``settings.painter``)."""
    vae: Path | None = None
    """Exported auto-encoder in whose latents the decoder paints."""
    output: Path
    """Folder of the saved model; replaced as a whole once everything is written."""
    settings: DrawingSettings = DrawingSettings()
    """How the model draws best."""

    def __post_init__(self) -> None:
        if (self.decoder is None) != (self.vae is None):
            raise ValueError(f"decoder and vae must be both or neither, got {self.decoder} and {self.vae}")
        if self.decoder is None and self.settings.painter != "pixels":
            raise ValueError(f"settings.painter must be pixels without a decoder, got {self.settings.painter}")


def assemble(config: AssembleConfig) -> SavedModel:
    """Writes the saved model and returns what it says of itself.

    Raises:
        ValueError, OSError: if a part is missing, or two parts do not belong together; nothing is left behind.
    """
    try:
        write_folder(config.output, lambda folder: _write(config, folder))
    except (ValueError, OSError):
        shutil.rmtree(draft_of(config.output), ignore_errors=True)
        raise
    return SavedModel.open(config.output)


def _write(config: AssembleConfig, folder: Path) -> None:
    image_tokenizer = ImageTokenizer.load(config.image_tokenizer)
    painter = None
    if config.decoder is not None and config.vae is not None:
        decoder = DiffusionDecoder.load(config.decoder, tokenizer_hash=image_tokenizer.hash)
        painter = DecoderPipeline(decoder, load_vae(config.vae))
    text_tokenizer = TextTokenizer.load(config.language_model)
    vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
    language_model = AutoModelForCausalLM.from_pretrained(
        config.language_model, dtype=torch.bfloat16, use_safetensors=True, local_files_only=True
    )
    language_model.save_pretrained(folder)
    text_tokenizer.save(folder, vocabulary)
    image_tokenizer.save(folder / "image_tokenizer")
    if painter is not None:
        painter.decoder.save(folder / "decoder")
        painter.vae.register_to_config(_name_or_path="vae")  # or diffusers writes down where it was read from
        painter.vae.bfloat16().save_pretrained(folder / "vae")
    describe(folder, vocabulary, image_tokenizer.image_size, DESCRIBE_REQUEST, config.settings)
    SavedModel.open(folder)  # refuses a language model that does not fit


def mini() -> AssembleConfig:
    """A model from the runs of the mini presets, which draws best with a little guidance; after ``rl`` with none."""
    return AssembleConfig(
        language_model=Path("runs/sft/export"),
        image_tokenizer=Path("runs/tokenizer/export"),
        decoder=Path("runs/decoder/export"),
        vae=Path("runs/vae/export"),
        output=Path("assets/mini"),
        settings=DrawingSettings(guidance=1.5, temperature=0.7, best_of=8),
    )


PRESETS = {"mini": mini}


def main(argv: list[str] | None = None) -> None:
    """Assembles the model that the command line describes."""
    config = parse(PRESETS, argv, description=__doc__)
    with refusing("assemble"):
        saved = assemble(config)
    size_mb = sum(path.stat().st_size for path in config.output.rglob("*") if path.is_file()) / 2**20
    print(f"{config.output}: {saved.vocabulary.size} ids, {size_mb:.1f} MB, hash {saved.hash}")


if __name__ == "__main__":
    main()
