import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from rebus.data.emoji import EmojiPack
from rebus.data.picture_links import PictureLinks
from rebus.data.pretokenize import pretokenize
from rebus.data.pretokenizer import PretokenizeConfig
from rebus.data.records import JsonRecords
from rebus.data.shards import Shards
from rebus.data.sources import Source
from rebus.tokenizers.layouts.nested_queries import NestedQueriesConfig
from rebus.train import language_stage, pretrain, sft
from rebus.train import tokenizer as tokenizer_stage
from rebus.train.loop import train


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory):
    """Folder of an untrained image tokenizer for whole scenes."""
    folder = tmp_path_factory.mktemp("image_tokenizer")
    torch.manual_seed(0)
    tokenizer_stage.tiny().tokenizer.build().save(folder)
    return folder


def config_of(image_tokenizer, output, **run):
    config = pretrain.tiny()
    run = replace(config.run, output=output, log_every=1, **run)
    return replace(config, image_tokenizer=image_tokenizer, run=run)


def losses(output, key="loss"):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.fixture(scope="module")
def pretrained(pack, image_tokenizer, tmp_path_factory):
    """Folder of a short pretraining of one process."""
    config = config_of(image_tokenizer, tmp_path_factory.mktemp("pretrain"))
    assert train(pretrain.pretrain_stage(config, pack), config.run, config.optim, config)
    return config.run.output


def test_pretraining_learns_and_plain_transformers_opens_what_it_exports(pretrained):
    course = losses(pretrained)
    assert course[-1] < 0.85 * course[0]
    assert (pretrained / "samples" / "drawn.png").is_file()
    model = AutoModelForCausalLM.from_pretrained(pretrained / "export")
    tokenizer = AutoTokenizer.from_pretrained(pretrained / "export")
    assert model.dtype == torch.bfloat16
    assert torch.isfinite(model(torch.tensor([tokenizer("a cat")["input_ids"]])).logits).all()


@pytest.mark.slow
def test_micro_batches_and_recomputed_activations_change_no_loss(pack, image_tokenizer, pretrained, tmp_path):
    config = config_of(image_tokenizer, tmp_path, steps=5, accumulation=2, activation_checkpointing=True)
    config = replace(config, optim=replace(config.optim, cooldown_fraction=0.0))
    assert train(pretrain.pretrain_stage(config, pack), config.run, config.optim, config)
    assert losses(tmp_path) == pytest.approx(losses(pretrained)[:5], rel=1e-5)
    assert losses(tmp_path, "code_loss") == pytest.approx(losses(pretrained, "code_loss")[:5], rel=1e-5)


@pytest.mark.slow
def test_a_model_learns_to_draw_by_level_where_there_are_levels(pack, image_tokenizer, tmp_path):
    nested = replace(tokenizer_stage.tiny().tokenizer, layout=NestedQueriesConfig(depth=1, num_heads=2))
    torch.manual_seed(0)
    nested.build().save(tmp_path / "nested")
    config = replace(config_of(tmp_path / "nested", tmp_path / "run"), by_level=True)
    assert train(pretrain.pretrain_stage(config, pack), config.run, config.optim, config)
    course = losses(tmp_path / "run")
    assert course[-1] < 0.85 * course[0] and (tmp_path / "run" / "samples" / "drawn.png").is_file()
    with pytest.raises(ValueError, match="by_level must be False for an image tokenizer without levels, got True"):
        pretrain.pretrain_stage(replace(config, image_tokenizer=image_tokenizer), pack)


def test_the_word_of_a_sign_is_spelled_letter_by_letter(pack):
    text_tokenizer = language_stage.train_text_tokenizer(language_stage.scene_samples(pack)[0], 500, 300)
    letters = [text_tokenizer.encode(letter)[-1] for letter in "HOUSE"]
    ids = text_tokenizer.encode('a cat and a sign that says "HOUSE"')
    assert any(ids[start : start + 5] == letters for start in range(len(ids)))


def test_finetuning_goes_on_from_the_export(pack, image_tokenizer, pretrained, tmp_path):
    config = replace(
        sft.tiny(),
        run=replace(sft.tiny().run, output=tmp_path, log_every=1),
        pretrained=pretrained / "export",
        image_tokenizer=image_tokenizer,
    )
    assert train(sft.sft_stage(config, pack), config.run, config.optim, config)
    assert losses(tmp_path)[0] < losses(pretrained)[0]
    text = losses(tmp_path, "text_loss")  # of the codes, each batch has more or fewer copies
    assert sum(text[-3:]) < 0.97 * sum(text[:3])


def shards_of(folder, image_tokenizer, text_tokenizer):
    """Folder of shards of three captioned pictures, again and again."""
    folder.mkdir()
    lines = []
    for index in range(3):
        Image.new("RGB", (9, 9), (80 * index, 255 - 80 * index, 40)).save(folder / f"{index}.png")
        lines.append(json.dumps({"prompt": f"number {index}", "image": f"{index}.png"}))
    (folder / "pairs.jsonl").write_text("\n".join(16 * lines))
    links = PictureLinks(size_px=1, root=folder)
    pretokenize(
        PretokenizeConfig(
            source=Source(records=JsonRecords(folder / "pairs.jsonl"), schema="text_to_image", links=links),
            image_tokenizer=image_tokenizer,
            text_tokenizer=text_tokenizer,
            output=folder / "shards",
            max_ids=512,
        )
    )
    return folder / "shards"


def test_finetuning_learns_what_is_in_shards(pack, image_tokenizer, pretrained, tmp_path):
    shards = shards_of(tmp_path / "mine", image_tokenizer, pretrained / "export")
    config = replace(
        sft.tiny(),
        run=replace(sft.tiny().run, output=tmp_path / "run", log_every=1, validate_every=5),
        pretrained=pretrained / "export",
        image_tokenizer=image_tokenizer,
        shards={str(shards): 1.0},
        held_out_shards=shards,
    )
    stage = sft.sft_stage(config, pack)
    before, again = stage.validate(), stage.validate()
    assert before == again and all(stage.validate() == before for _ in range(2))
    assert train(stage, config.run, config.optim, config)
    course = losses(tmp_path / "run", "code_loss")
    assert course[-1] < 0.8 * course[0]
    measured = losses(tmp_path / "run", "validation/code_loss")
    assert len(measured) == 2 and measured[-1] < 0.8 * before["code_loss"]
    scenes = sft.sft_stage(replace(config, held_out_shards=None), pack)  # which it saw none of
    scenes.model.load_state_dict(stage.model.state_dict())
    assert scenes.validate()["code_loss"] > 1.2 * stage.validate()["code_loss"]
    (shards / "manifest.json").unlink()
    for name, value in (("shards", {str(shards): 1.0}), ("held_out_shards", shards)):
        with pytest.raises(ValueError, match="must hold finished shards"):
            sft.sft_stage(replace(config, **{"shards": {}, "held_out_shards": None, name: value}), pack)


def test_finetuning_takes_samples_of_shards_among_scenes(pack, image_tokenizer, pretrained, tmp_path):
    folder = shards_of(tmp_path / "mine", image_tokenizer, pretrained / "export")
    config = replace(sft.tiny(), pretrained=pretrained / "export", image_tokenizer=image_tokenizer)
    loader = sft.sft_stage(replace(config, mixed={str(folder): 0.5}), pack).train_loader
    shards = Shards(folder)
    known = {tuple(max(one, ~one) for one in row.tolist()) for row in shards.marked(np.arange(len(shards)))}
    batches = [loader.batch(step) for step in range(4)]
    read = [
        tuple(batch.ids[row, batch.documents[row] == document].tolist())
        for batch in batches
        for row in range(len(batch.ids))
        for document in range(int(batch.documents[row].max()) + 1)
    ]
    assert len(known) == 3 and 0.2 < sum(one in known for one in read) / len(read) < 0.8
    assert torch.equal(loader.batch(1).ids, batches[1].ids)  # nothing is kept of where a run stands
    with pytest.raises(ValueError, match="mixed must be none where shards take the place of scenes, got"):
        replace(config, mixed={str(folder): 0.5}, shards={str(folder): 1.0})
    with pytest.raises(ValueError, match="row_length must be at least the 512 ids of a mixed sample, got 64"):
        sft.sft_stage(replace(config, mixed={str(folder): 0.5}, row_length=64), pack)


def test_codes_of_another_tokenizer_are_refused(pack, pretrained, tmp_path):
    torch.manual_seed(1)
    tokenizer_stage.tiny().tokenizer.build().save(tmp_path)
    config = replace(sft.tiny(), pretrained=pretrained / "export", image_tokenizer=tmp_path)
    with pytest.raises(ValueError, match=r"image_tokenizer must be [0-9a-f]{16}, as in pretraining, got [0-9a-f]{16}"):
        sft.sft_stage(config, pack)


def test_a_model_of_another_vocabulary_is_refused(pack, image_tokenizer, pretrained, tmp_path):
    torch.manual_seed(0)
    other = tokenizer_stage.mini_scalar().tokenizer.build()
    other.save(tmp_path)
    config = replace(sft.tiny(), pretrained=pretrained / "export", image_tokenizer=tmp_path)
    with pytest.raises(ValueError, match=r"vocabulary must have the tokenizers' \d+ ids, got \d+ in the model"):
        sft.sft_stage(config, pack)
    with pytest.raises(ValueError, match="pretrained must be an exported language model"):
        sft.sft_stage(replace(config, pretrained=tmp_path / "none"), pack)


def test_finetuning_drills_questions_and_keeps_how_a_teacher_draws(pack, image_tokenizer, pretrained, tmp_path):
    config = replace(
        sft.tiny(),
        run=replace(sft.tiny().run, output=tmp_path, log_every=1),
        chats={"drill": 0.7, "draw": 0.3},
        pretrained=pretrained / "export",
        teacher=pretrained / "export",
        image_tokenizer=image_tokenizer,
    )
    assert train(sft.sft_stage(config, pack), config.run, config.optim, config)
    text, distances = losses(tmp_path, "text_loss"), losses(tmp_path, "code_distance")
    assert sum(text[-3:]) < 0.97 * sum(text[:3])
    assert distances[0] == pytest.approx(0, abs=1e-5) and max(distances) > 0


def test_chats_and_a_teacher_that_do_not_fit_are_refused(pack, image_tokenizer, pretrained, tmp_path):
    for chats in ({"sing": 1.0}, {"draw": 0.0}, {"draw": -1.0, "drill": 2.0}):
        with pytest.raises(ValueError, match="chats must weigh some of draw, questions, describe, edit, story, drill"):
            replace(sft.tiny(), chats=chats)
    config = replace(sft.tiny(), pretrained=pretrained / "export", image_tokenizer=image_tokenizer)
    with pytest.raises(ValueError, match="teacher must be an exported language model"):
        sft.sft_stage(replace(config, teacher=tmp_path), pack)
    with pytest.raises(ValueError, match="teacher must have the text tokenizer of the model that learns"):
        sft.sft_stage(replace(config, teacher=Path("assets/mini")), pack)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("zero_stage", ["0", "3"])
def test_two_processes_under_deepspeed_have_the_losses_of_one(zero_stage, image_tokenizer, pretrained, tmp_path):
    flags = ["--preset", "tiny", "--image_tokenizer", str(image_tokenizer), "--run.output", str(tmp_path)]
    # Only the first steps: the learning rate of the level part does not depend on their number.
    flags += ["--run.steps", "8", "--optim.cooldown_fraction", "0", "--run.log_every", "1", "--run.threads", "1"]
    flags += ["--run.zero_stage", zero_stage]
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "rebus.train.pretrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    done = subprocess.run([sys.executable, *command, *flags], env=environment, capture_output=True, text=True)
    # The export is the last thing written; a launcher's own exit code tells less.
    assert (tmp_path / "export" / "model.safetensors").exists(), done.stderr[-3000:]
    assert losses(tmp_path) == pytest.approx(losses(pretrained)[:8], abs=1e-4)
