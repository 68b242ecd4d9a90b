"""What a model's captions of held-out scenes have in common with right ones: their facts, and their words (CIDEr)."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from PIL import Image

from rebus.data.captions import caption, description
from rebus.data.emoji import EmojiPack
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import TASKS, Scene, draw
from rebus.evaluation.benchmark import Kind, Marks, Outcome, Workbench, attempted
from rebus.evaluation.caption_facts import CaptionReader, scene_facts
from rebus.evaluation.cider import cider, cider_d

NUM_REFERENCES = 5
"""Right captions of a scene, as many as a picture of COCO has."""
_CORPUS = 120
"""Fewest scenes over which it is counted how rare words are: a mark depends on no limit that is smaller."""
_SCORES: tuple[tuple[str, Callable[..., list[float]], Kind], ...] = (
    ("cider", cider, "share"),
    ("cider_d", cider_d, "higher"),
)


@dataclass(frozen=True, kw_only=True)
class CaptionBenchmark:
    """Captions of as many scenes, the tasks in turn.

    ``caption_facts`` is the share of a scene's facts in its caption. ``caption_cider`` and ``caption_cider_d`` compare
    its words with those of right captions in several wordings (``cider.py``); what the plainest of these itself gets
    is in ``caption_right``, since no caption is worded as all others are.
    """

    number: int = 120
    """Pictures to describe."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "captions"

    @property
    def is_judged(self) -> bool:
        """Captions are read by a grammar, and compared with right ones."""
        return False

    def check(self) -> None:
        """Needs nothing."""

    def run(self, bench: Workbench) -> Outcome:
        """Has all scenes described."""
        bench.say("describing")
        samples = bench.samples
        reader = CaptionReader(samples.pack, samples.sampler.concepts)
        known = [_scene(samples.sampler, row) for row in range(max(self.number, _CORPUS))]
        scenes = {f"{row}": scene for row, scene in enumerate(known[: self.number])}

        def told(part: Sequence[Scene]) -> list[str]:
            return bench.model.captions([Image.fromarray(draw(scene, samples.pack)) for scene in part])

        texts, failed = attempted(told, scenes, bench.batch_size)
        facts = {item: scene_facts(scenes[item]) for item in texts}
        shares = {item: len(facts[item] & reader.facts(text)) / len(facts[item]) for item, text in texts.items()}
        marks = {"caption_facts": Marks(each=shares, failed=failed)}
        right = [references(scene, row, samples.pack) for row, scene in enumerate(known)]
        said = [texts.get(f"{row}", "") for row in range(len(known))]
        plainest, others = [several[0] for several in right], {}
        for name, score, kind in _SCORES:
            values, wanted = score(said, right), score(plainest, right)
            marks[f"caption_{name}"] = Marks(each={item: values[int(item)] for item in texts}, failed=failed, kind=kind)
            if texts:
                others[f"caption_right/{name}"] = fmean(wanted[int(item)] for item in texts)
        return Outcome(marks=marks, others=others)


def references(scene: Scene, row: int, pack: EmojiPack) -> list[str]:
    """Returns right captions of a scene, all with all its facts and each worded otherwise, the plainest first."""
    shown, rng = _as_described(scene), random.Random(f"references/{row}")
    found = {description(scene, pack): None}
    while len(found) < NUM_REFERENCES:
        found[caption(shown, rng, pack, style_rate=1.0, background_rate=1.0)] = None
    return [*found]


def _as_described(scene: Scene) -> Scene:
    """Returns a scene of which it is told how two things stand, as ``description`` does."""
    return replace(scene, task="position") if scene.task == "two" else scene


def _scene(sampler: SceneSampler, row: int) -> Scene:
    return sampler.scene(random.Random(f"tell/{row}"), TASKS[row % len(TASKS)])
