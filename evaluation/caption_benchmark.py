"""How many of the facts of held-out scenes a model's captions state."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from rebus.data.scenes import TASKS, Scene, draw
from rebus.evaluation.benchmark import Marks, Outcome, Workbench, attempted
from rebus.evaluation.caption_facts import CaptionReader, scene_facts


@dataclass(frozen=True, kw_only=True)
class CaptionBenchmark:
    """Captions of as many scenes, the tasks in turn; a mark is the share of a scene's facts in its caption."""

    number: int = 120
    """Pictures to describe."""

    @property
    def name(self) -> str:
        """By which it is chosen."""
        return "captions"

    @property
    def is_judged(self) -> bool:
        """Facts are read by the grammar of our captions."""
        return False

    def check(self) -> None:
        """Needs nothing."""

    def run(self, bench: Workbench) -> Outcome:
        """Has all scenes described."""
        bench.say("describing")
        samples = bench.samples
        reader = CaptionReader(samples.pack, samples.sampler.concepts)
        tasks = (TASKS[index % len(TASKS)] for index in range(self.number))
        scenes = {f"{row}": samples.sampler.scene(random.Random(f"tell/{row}"), task) for row, task in enumerate(tasks)}

        def shares(part: Sequence[Scene]) -> list[float]:
            told = bench.model.captions([Image.fromarray(draw(scene, samples.pack)) for scene in part])
            known = [scene_facts(scene) for scene in part]
            return [len(facts & reader.facts(text)) / len(facts) for facts, text in zip(known, told, strict=True)]

        each, failed = attempted(shares, scenes, bench.batch_size)
        return Outcome(marks={"caption_facts": Marks(each=each, failed=failed)})
