"""Presets of published scale on the meta device: what would train, and what memory it takes, worked out by hand."""

import contextlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Qwen2Config

from rebus.model.trained_weights import LoraTraining
from rebus.tokenizers.encoders.vit import VitEncoderConfig
from rebus.tokenizers.image_tokenizer import ImageTokenizerConfig
from rebus.tokenizers.layouts.grid import GridConfig
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.tokenizers.pixel_decoders.vit import VitPixelDecoderConfig
from rebus.tokenizers.quantizers.vector import VectorConfig
from rebus.tokenizers.tokens import CodeLayout, Stream
from rebus.train import pretrain
from rebus.train.base import empty_base
from rebus.train.memory import gibibytes

WORLD = 64
NUM_CONTROLS = 4
QWEN = {"tie_word_embeddings": False, "num_key_value_heads": 4, "num_attention_heads": 28, "num_hidden_layers": 28}


@dataclass(frozen=True)
class Published:
    """A system as its base and its image tokenizer, and what its sizes come to."""

    base: PreTrainedConfig
    num_pieces: int
    """Of the base's text tokenizer, which may be fewer than its rows."""
    image_tokenizer: ImageTokenizerConfig
    num_codes: int
    num_base_weights: int
    """Of the base as it is published."""
    num_matrices: int
    """That hold a row of each id: 1 if embedding and head are tied."""


def image_tokenizer(codebook_size: int, **changes: object) -> ImageTokenizerConfig:
    config = ImageTokenizerConfig(
        image_size_px=224,
        encoder=VitEncoderConfig(dim=8, depth=1, num_heads=1),
        quantizer=VectorConfig(codebook_size=codebook_size, dim=2),
        pixel_decoder=VitPixelDecoderConfig(dim=8, depth=1, num_heads=1),
    )
    return replace(config, **changes)


SYSTEMS = {
    "seed_llama_8b": Published(
        LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32),
        32_000,
        image_tokenizer(8192, layout=NestedQueriesConfig(num_queries=32, depth=1, num_heads=1)),
        8192,
        6_738_415_616,
        2,
    ),
    "xomni_7b": Published(
        Qwen2Config(vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, **QWEN),
        151_665,
        image_tokenizer(16_384, layout=GridConfig()),
        16_384,
        7_615_616_512,
        2,
    ),
    "illume_plus_3b": Published(
        Qwen2Config(
            vocab_size=151_936,
            hidden_size=2048,
            intermediate_size=11_008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        151_665,
        image_tokenizer(131_072, layout=GridConfig()),
        32_768 + 98_304,
        3_085_938_688,
        1,
    ),
}


def write_base(system: Published, folder: Path) -> None:
    """Writes the config of a stock model, and a text tokenizer of as many pieces that reads bytes."""
    system.base.save_pretrained(folder)
    pieces = [*pre_tokenizers.ByteLevel.alphabet(), "<|endoftext|>"]
    pieces += [f"filler {number}" for number in range(system.num_pieces - len(pieces))]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(str(folder))


@pytest.fixture(
    scope="module",
    params=["seed_llama_8b", *(pytest.param(name, marks=pytest.mark.slow) for name in ("xomni_7b", "illume_plus_3b"))],
)
def name(request) -> str:
    """Name of a preset; the text tokenizers of the slow ones have 151,665 pieces."""
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory) -> Path:
    """Folder of a preset's base and image tokenizer."""
    folder = tmp_path_factory.mktemp(name)
    write_base(SYSTEMS[name], folder / "base")
    torch.manual_seed(0)
    SYSTEMS[name].image_tokenizer.build().save(folder / "image_tokenizer")
    return folder


@pytest.fixture(scope="module")
def flags(name, folder) -> list[str]:
    """Flags that name the preset and where its parts are."""
    parts = ["--base", str(folder / "base"), "--image_tokenizer", str(folder / "image_tokenizer")]
    return ["--preset", name, *parts]


@pytest.fixture(scope="module")
def printed(flags) -> str:
    """What the dry run prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as left:
        pretrain.main([*flags, "--dry_run", str(WORLD)])
    assert not left.value.code
    return output.getvalue()


def sizes_of(name: str) -> tuple[int, int, int]:
    """Weights, trainable ones, and those of the largest layer."""
    system, training = SYSTEMS[name], pretrain.PRESETS[name]().training
    dim, wide, layers = system.base.hidden_size, system.base.intermediate_size, system.base.num_hidden_layers
    num_new = NUM_CONTROLS + system.num_codes
    num_ids = system.num_pieces + num_new
    weights = system.num_base_weights + system.num_matrices * (num_ids - system.base.vocab_size) * dim
    if not isinstance(training, LoraTraining):
        return weights, weights, num_ids * dim
    adapters = layers * training.rank * (4 * (dim + dim) + 3 * (dim + wide))  # q, k, v, o; gate, up, down
    trainable = adapters + system.num_matrices * num_new * dim
    return weights + trainable, trainable, num_ids * dim


def test_the_model_has_the_weights_of_its_base_and_rows_for_pictures(name, printed) -> None:
    weights, trainable, _ = sizes_of(name)
    assert f"Memory of each of {WORLD} processes, {weights:,} weights, {trainable:,} of them trainable" in printed


def test_deepspeed_and_config_are_those_of_the_preset(name, flags, printed) -> None:
    resolved, _ = json.JSONDecoder().raw_decode(printed)
    deepspeed, _ = json.JSONDecoder().raw_decode(printed.split("DeepSpeed: ")[1])
    stage, rows, accumulation = {
        "seed_llama_8b": (2, 16, 4),
        "xomni_7b": (3, 4, 2),
        "illume_plus_3b": (2, 1, 1),
    }[name]
    assert deepspeed["zero_optimization"] == {"stage": stage} and deepspeed["bf16"] == {"enabled": True}
    assert deepspeed["train_micro_batch_size_per_gpu"] == rows and deepspeed["gradient_clipping"] == 1.0
    assert deepspeed["gradient_accumulation_steps"] == accumulation
    assert resolved["run"]["batch_size"] == WORLD * rows * accumulation and resolved["run"]["activation_checkpointing"]
    assert resolved["base"] == flags[3] and resolved["held_out_shards"] == "shards/held_out"
    if name == "seed_llama_8b":
        optim = pretrain.seed_llama_8b().optim
        assert optim.learning_rate(900, 30_000) == 1.5e-4
        assert optim.learning_rate(29_999, 30_000) == pytest.approx(0.05 * 1.5e-4, rel=1e-3)
    meeting = "--rdzv_backend c10d --rdzv_endpoint FIRST_NODE:29500"
    launch = f"torchrun --nnodes 8 --nproc_per_node 8 {meeting} -m rebus.train.pretrain {' '.join(flags)}"
    assert printed.endswith(f"\n{launch}    # on every node\n")


def test_memory_is_that_of_zero(name, printed) -> None:
    """Weights and gradients are in 2 bytes; weights, moments and own gradients once more in 4 bytes each."""
    weights, trainable, largest = sizes_of(name)
    own, moments = 4 * (trainable // WORLD), 12 * (trainable // WORLD)
    expected = {
        "ZeRO 1": (2 * weights, 2 * trainable + own, moments),
        "ZeRO 2": (2 * weights, 2 * trainable // WORLD + own, moments),
        "ZeRO 3": (2 * weights // WORLD + 2 * largest, 2 * largest + own, moments),
    }
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    shown = {row[0].removeprefix("> "): row[1:] for row in rows}
    for way, states in expected.items():
        assert shown[way][:3] == [gibibytes(number) for number in states]
    adapted = isinstance(pretrain.PRESETS[name]().training, LoraTraining)
    loaded = 2 * weights + (2 * trainable if adapted else 0)  # what PEFT adds to a base in bfloat16 is float32
    assert shown["ZeRO 2"][-1] == gibibytes(loaded)
    chosen = next(row[0] for row in rows if row[0].startswith("> "))
    assert chosen == f"> ZeRO {pretrain.PRESETS[name]().run.zero_stage}"


@pytest.mark.slow
def test_a_vocabulary_holds_two_levels_as_two_streams(tmp_path) -> None:
    write_base(SYSTEMS["illume_plus_3b"], tmp_path)
    streams = (Stream("semantic", 32_768), Stream("pixel", 98_304))
    model, vocabulary = empty_base(tmp_path, CodeLayout("grid", 256, streams, grid=(16, 16)))
    assert vocabulary.code_range(1) == (151_665 + 4 + 32_768, 151_665 + 4 + 131_072)
    assert sum(one.numel() for one in model.parameters()) == sizes_of("illume_plus_3b")[0]
