r"""Has a saved model draw, judge its own drawings, and write both down as samples from which it can be finetuned.

python -m rebus.train.self_enhance --model assets/mini --output runs/self
python -m rebus.train.sft --preset mini --pretrained assets/mini --image_tokenizer assets/mini/image_tokenizer \
    --mixed '{"runs/self/kept": 0.3, "runs/self/assessed": 0.1}' --run.output runs/self_sft

For each prompt of the training split it draws several drafts, marks and describes each (``data/judged_drafts.py``).
Under ``--output`` come ``drafts``, all of them; the shards ``kept``, requests answered by the best draft; the shards
``assessed``, whether drafts show what was asked for; and ``drafts.png``, a sheet to look at. Codes go into the shards
as they were drawn: no picture is encoded again. How good the choice is says ``rebus.evaluation.kept_drafts``.

A run that was killed goes on where it was; every file is a pure function of the model and the settings.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from rebus.data.captions import descriptions
from rebus.data.emoji import EmojiPack
from rebus.data.judged_drafts import Draft, JudgedDrafts, assessments, drafts_file, drawn_sample, read_drafts
from rebus.data.mini_concepts import mini_concepts
from rebus.data.rendering import render
from rebus.data.samples import Message, Picture, Sample
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import TASK_WEIGHTS, SceneSamples
from rebus.data.scenes import TASKS
from rebus.data.shards import MANIFEST, ShardsInfo, shard_path, write_manifest, write_shard
from rebus.model.command_line import refusing
from rebus.model.drawing_files import write_whole
from rebus.model.rebus import Rebus
from rebus.model.writing import MOST_ROWS
from rebus.tokenizers.tokens import Tokens
from rebus.train.config import parse
from rebus.train.rollout_sheet import rollout_sheet
from rebus.train.rollouts import Asked, asked_for

PROMPTS_AT_ONCE = 8
"""Prompts of a file of drafts."""
_SETTINGS = "settings.json"
_LONGEST_DESCRIPTION = 64
_SHOWN_OF_A_TASK = 2


@dataclass(frozen=True, kw_only=True)
class SelfEnhanceConfig:
    """What is drawn and judged."""

    model: Path
    """Folder of the saved model, which draws with the settings that it names."""
    output: Path
    """Folder of drafts, shards and sheet."""
    num_prompts: int = 1000
    """Scenes of the training split that are asked for."""
    num_drafts: int = 8
    """Drawings of each."""
    tasks: dict[str, float] = field(default_factory=lambda: dict(TASK_WEIGHTS))
    """How often scenes of each task are asked for."""
    seed: int = 0
    """Decides the prompts and every draft."""
    device: str = "cpu"
    """A torch device."""

    def __post_init__(self) -> None:
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}")
        if self.num_drafts < 2:
            raise ValueError(f"num_drafts must be at least 2, for only several can be compared, got {self.num_drafts}")
        if not (set(self.tasks) <= set(TASKS) and any(self.tasks.values()) and min(self.tasks.values()) >= 0):
            raise ValueError(f"tasks must weigh some of {', '.join(TASKS)}, got {self.tasks}")


def enhance(config: SelfEnhanceConfig, pack: EmojiPack, rebus: Rebus, console: Console) -> list[JudgedDrafts]:
    """Writes everything that is not there yet, and returns the drafts of each prompt.

    Raises:
        ValueError: if the folder is of other settings, or the model passes all of its drafts or none.
    """
    _claim(config, rebus)
    samples = SceneSamples(SceneSampler(pack, mini_concepts(pack), "train"))
    judged = []
    for first in track(range(0, config.num_prompts, PROMPTS_AT_ONCE), "drafts", console=console):
        path = config.output / "drafts" / f"{first:06}.jsonl"
        if not path.exists():  # a whole file even where fewer are wanted: what is in it depends on nothing else
            places = [f"self_enhance/{config.seed}/{first + number}" for number in range(PROMPTS_AT_ONCE)]
            asked = [asked_for(samples, config.tasks, place, 1) for place in places]
            write_whole({path: drafts_file(judged_drafts(rebus, asked, pack, config.num_drafts))})
        judged += read_drafts(path)
    del judged[config.num_prompts :]
    vocabulary = rebus.saved.vocabulary
    kept = [drawn_sample(one.prompt, one.kept, vocabulary) for one in judged if one.kept is not None]
    assessed = [sample for one in judged for sample in assessments(one, vocabulary)]
    for name, several in (("kept", kept), ("assessed", assessed)):
        if not several:
            raise ValueError(f"model must pass some of its drafts of a prompt, and others not, got no {name} ones")
        _write_shards(config.output / name, rebus, several)
    _sheet(rebus, judged).save(config.output / "drafts.png")
    return judged


def judged_drafts(rebus: Rebus, asked: Sequence[Asked], pack: EmojiPack, number: int) -> list[JudgedDrafts]:
    """Returns so many drafts for each prompt, as the model draws and judges them."""
    messages = [Message("user", (one.prompt,)) for one in asked]
    seeds = [one.seeds[0] for one in asked]
    tokens, marks = rebus.writer.drafts(messages, rebus.saved.settings, seeds, [number] * len(asked))
    chats = [(Message("user", (Picture(tokens=draft), rebus.saved.caption_request)),) for draft in tokens]
    told = [
        description
        for start in range(0, len(chats), MOST_ROWS)
        for description in rebus.replies(chats[start : start + MOST_ROWS], max_text_tokens=_LONGEST_DESCRIPTION)
    ]
    drafts = [
        Draft(codes=rebus.saved.vocabulary.flatten(draft), mark=mark, description=description)
        for draft, mark, description in zip(tokens, marks, told, strict=True)
    ]
    return [
        JudgedDrafts(
            scene=one.scene,
            prompt=one.prompt,
            seed=one.seeds[0],
            wanted=descriptions(one.scene, pack),
            drafts=drafts[index * number : (index + 1) * number],
        )
        for index, one in enumerate(asked)
    ]


def _claim(config: SelfEnhanceConfig, rebus: Rebus) -> None:
    """Writes down of what the folder is, or looks whether it is of this."""
    settings = {key: value for key, value in asdict(config).items() if key in ("num_drafts", "tasks", "seed")}
    settings |= {"model": rebus.saved.hash}
    path = config.output / _SETTINGS
    if not path.exists():
        write_whole({path: (json.dumps(settings) + "\n").encode()})
    elif (found := json.loads(path.read_text())) != settings:
        raise ValueError(f"{config.output} must be of {settings}, got {found}; choose another output")


def _write_shards(folder: Path, rebus: Rebus, samples: Sequence[Sample]) -> None:
    """Writes samples as one shard, in place of what was there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    tokenizer, vocabulary = rebus.writer.text_tokenizer, rebus.saved.vocabulary
    rendered = [render(sample, tokenizer, vocabulary) for sample in samples]
    info = ShardsInfo(
        image_tokenizer=rebus.saved.image_tokenizer_hash,
        text_tokenizer=tokenizer.hash,
        vocabulary=vocabulary.to_dict(),
        source=f"drafts of model {rebus.saved.hash}",
        schema=folder.name,
        records_per_shard=len(rendered),
        max_ids=max(len(one.ids) for one in rendered),
    )
    info.write(folder)
    write_manifest(folder, [write_shard(shard_path(folder, 0), rendered, {})])


def _sheet(rebus: Rebus, judged: Sequence[JudgedDrafts]) -> Image.Image:
    """Returns a sheet of the first prompts of each task, all drafts with what the model says of them."""
    by_task = {task: [one for one in judged if one.scene.task == task] for task in TASKS}
    shown = [one for several in by_task.values() for one in several[:_SHOWN_OF_A_TASK]]
    rows = [Tokens.cat([rebus.saved.vocabulary.unflatten(draft.codes) for draft in one.drafts]) for one in shown]
    pictures = [
        [drawing.image for drawing in rebus.paint(row, seed=[one.seed] * len(one.drafts))]
        for one, row in zip(shown, rows, strict=True)
    ]
    told = [
        {
            "mark": [draft.mark for draft in one.drafts],
            "passed": [float(one.passed(draft)) for draft in one.drafts],
            "kept": [float(draft is one.kept) for draft in one.drafts],
        }
        for one in shown
    ]
    return rollout_sheet([one.prompt for one in shown], pictures, told)


def mini() -> SelfEnhanceConfig:
    """The shipped model; 35 minutes on one core."""
    return SelfEnhanceConfig(model=Path("assets/mini"), output=Path("runs/self"))


PRESETS = {"mini": mini}


def main(argv: list[str] | None = None) -> None:
    """Draws, judges and writes as the command line says."""
    config = parse(PRESETS, argv, __doc__)
    with refusing("self_enhance"):
        rebus = Rebus.load(config.model, device=config.device)
        judged = enhance(config, EmojiPack.open(), rebus, Console(stderr=True))
    for task in TASKS:
        own = [one for one in judged if one.scene.task == task]
        kept, both = ([one for one in own if one.kept], [one for one in own if one.kept and one.rejected])
        print(f"{task}: {len(own)} prompts, {len(kept)} with a kept draft, {len(both)} with assessments")


if __name__ == "__main__":
    main()
