"""Trains the detector that judges drawings, on composed scenes damaged the way an imperfect painter would.

    python -m rebus.train.detector --preset mini --run.output runs/detector

It sees every concept in every style, the held-out cells too: it is a judge, not a teacher. Another one, that rewards
drawings in reinforcement learning, is a teacher, and sees nothing that is held out:

    python -m rebus.train.detector --preset reward
"""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor, nn

from rebus.data.emoji import STYLES, EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_batches import pictures_of
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import SCENE_SIZE_PX, Item, Scene
from rebus.evaluation.detector import Detector, DetectorConfig, focal_loss, heat_targets
from rebus.train.config import OptimConfig, RunConfig, parse
from rebus.train.damage import DamageConfig, LabelledPictures, damaged
from rebus.train.loop import launch


@dataclass(frozen=True, kw_only=True)
class DetectorStageConfig:
    """A whole training of the judge."""

    run: RunConfig
    """Steps, batch size, folders."""
    optim: OptimConfig
    """Learning rate and its course."""
    detector: DetectorConfig
    """The model."""
    damage: DamageConfig = field(default_factory=DamageConfig)
    """The imitation of an imperfect painter."""
    num_validation: int = 256
    """Held-out scenes looked at by a validation."""
    teacher: bool = False
    """Whether it may teach others: then it learns from nothing that is held out."""


class DetectorStage:
    """Scenes in, heat maps out, focal loss."""

    def __init__(self, config: DetectorStageConfig, pack: EmojiPack) -> None:
        self.config, self.pack = config, pack
        self.parts: dict[str, str] = {}
        torch.manual_seed(config.run.seed)
        self.model: nn.Module = config.detector.build()
        self.samplers = [SceneSampler(pack, config.detector.concepts, split) for split in ("train", "held_out")]
        self.learned_from = self.samplers[:1] if config.teacher else self.samplers

    def batch(self, step: int, rank: int, world: int) -> LabelledPictures:
        """Returns this rank's rows of the step's batch: half scattered objects, half scenes of the six tasks."""
        seed, rows = self.config.run.seed, range(self.config.run.batch_size)[rank::world]
        scenes = [self._scene(random.Random(f"{seed}/{step}/{row}")) for row in rows]
        generator = torch.Generator().manual_seed(random.Random(f"{seed}/{step}/{rank}/damage").getrandbits(63))
        return damaged(self._clean(scenes), self.config.damage, generator)

    def loss(self, batch: LabelledPictures) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the focal loss of the heat map plus the error of the sizes at the true centres."""
        config = self.config.detector
        logits, sizes = self.model(batch.images)
        num_cells = logits.shape[-1]
        heat, peaks = heat_targets(batch.objects.cpu(), len(config.concepts), len(batch.images), num_cells)
        picture, row, column = peaks.to(logits.device).unbind(1)
        focal = focal_loss(logits, heat.to(logits.device))
        size = (sizes[picture, row, column] - batch.objects[:, 4] / config.image_size).abs().mean()
        return focal + size, {"focal": focal.detach(), "size": size.detach()}

    def validate(self) -> dict[str, float]:
        """Returns the share of held-out scenes whose objects are found exactly, clean and damaged."""
        scenes = [self.samplers[1].scene(random.Random(f"validate {row}")) for row in range(self.config.num_validation)]
        clean = self._clean(scenes)
        worn = damaged(clean, self.config.damage, torch.Generator().manual_seed(0))
        return {"exact": self._exact(clean, scenes), "exact_damaged": self._exact(worn, scenes)}

    def samples(self, folder: Path) -> None:
        """Writes a row of damaged pictures with a box and a name for each object found."""
        images = self.batch(0, 0, 1).images[:8]
        found = self._detector().detect(images.to(self._device()))
        pictures = [Image.fromarray(one) for one in (rearrange(images, "b c h w -> b h w c") * 255).byte().numpy()]
        for picture, objects in zip(pictures, found, strict=True):
            pen = ImageDraw.Draw(picture)
            for one in objects:
                left, top = one.x - one.size / 2, one.y - one.size / 2
                pen.rectangle((left, top, left + one.size, top + one.size), outline="magenta")
                pen.text((left, top), self.pack.concepts[one.concept_id].label, fill="magenta")
        Image.fromarray(np.concatenate([np.asarray(one) for one in pictures], axis=1)).save(folder / "found.png")

    def export(self, folder: Path) -> None:
        """Writes the judge."""
        self._detector().save(folder)

    def _detector(self) -> Detector:
        assert isinstance(self.model, Detector)
        return self.model

    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _scene(self, rng: random.Random) -> Scene:
        sampler = rng.choice(self.learned_from)
        if rng.random() >= 0.5:
            return sampler.scene(rng)
        scene = scattered_scene(sampler, rng)
        while self.config.teacher and not sampler.is_in_split(scene):
            scene = scattered_scene(sampler, rng)
        return scene

    def _clean(self, scenes: list[Scene]) -> LabelledPictures:
        channel = {identifier: index for index, identifier in enumerate(self.config.detector.concepts)}
        objects = [
            (picture, channel[item.concept_id], item.x + item.size // 2, item.y + item.size // 2, item.size)
            for picture, scene in enumerate(scenes)
            for item in scene.items
        ]
        return LabelledPictures(pictures_of(scenes, self.pack) / 255, torch.tensor(objects))

    def _exact(self, batch: LabelledPictures, scenes: list[Scene]) -> float:
        found = self._detector().detect(batch.images.to(self._device()))
        return sum(
            sorted(one.concept_id for one in objects) == sorted(item.concept_id for item in scene.items)
            for objects, scene in zip(found, scenes, strict=True)
        ) / len(scenes)


def scattered_scene(sampler: SceneSampler, rng: random.Random) -> Scene:
    """Returns one to six objects of any concepts in any places, so that no layout tells what it holds."""
    while True:
        side = rng.choice((32, 64))
        corners = [(x, y) for x in range(0, SCENE_SIZE_PX, side) for y in range(0, SCENE_SIZE_PX, side)]
        alike = rng.choice(sampler.concepts) if rng.random() < 0.4 else None
        items = []
        for x, y in rng.sample(corners, rng.randint(1, min(6, len(corners)))):
            size = 32 if side == 32 else rng.choice((48, 64))
            slack = range(0, side - size + 1, 16)
            items.append(
                Item(alike or rng.choice(sampler.concepts), x + rng.choice(slack), y + rng.choice(slack), size)
            )
        style = rng.choice(STYLES)
        grounds = sampler.backgrounds({item.concept_id for item in items}, style)
        if grounds:
            return Scene(tuple(items), style, rng.choice(grounds), None, "count")


def mini() -> DetectorStageConfig:
    """The judge of the shipped model: about 100,000 pictures, 19 minutes on one core."""
    return DetectorStageConfig(
        run=RunConfig(output=Path("runs/detector"), steps=1600, batch_size=64, validate_every=400),
        optim=OptimConfig(lr=2e-3, warmup_steps=100, cooldown_fraction=0.5, weight_decay=0.05),
        detector=DetectorConfig(concepts=mini_concepts(EmojiPack.open())),
    )


def reward() -> DetectorStageConfig:
    """The teacher of reinforcement learning, of another seed and width than the judge: 12 minutes on one core."""
    config = mini()
    return replace(
        config,
        run=replace(config.run, output=Path("runs/reward_detector"), seed=1),
        detector=replace(config.detector, width=72, depth=2),
        teacher=True,
    )


def tiny() -> DetectorStageConfig:
    """A judge of four concepts for tests, seconds on one core."""
    return DetectorStageConfig(
        run=RunConfig(output=Path("runs/tiny-detector"), steps=60, batch_size=16),
        optim=OptimConfig(lr=3e-3, warmup_steps=5, cooldown_fraction=0.5, weight_decay=0.0),
        detector=DetectorConfig(concepts=mini_concepts(EmojiPack.open())[:4], width=24, depth=1),
        num_validation=32,
    )


PRESETS = {"mini": mini, "reward": reward, "tiny": tiny}


def main(argv: list[str] | None = None) -> None:
    """Trains and exports the judge."""
    config = parse(PRESETS, argv, description=__doc__)
    launch("detector", lambda: DetectorStage(config, EmojiPack.open()), config)


if __name__ == "__main__":
    main()
