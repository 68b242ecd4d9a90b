import pytest
from PIL import Image

from rebus.data.captions import description
from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.evaluation import caption_benchmark
from rebus.evaluation.benchmark import Workbench
from rebus.evaluation.caption_benchmark import CaptionBenchmark, references
from rebus.evaluation.caption_facts import CaptionReader, scene_facts


class Teller:
    """A model that describes scenes as its function does; pictures are their numbers."""

    rebuild = answers = print

    def __init__(self, tell):
        self.tell, self.scenes = tell, []

    def draw(self, scene, pack=None, *, seed=None):
        self.scenes.append(scene)
        return Image.new("L", (1, 1), len(self.scenes) - 1)

    def captions(self, images):
        return [self.tell(self.scenes[image.getpixel((0, 0))]) for image in images]


@pytest.fixture(scope="module")
def sampler():
    pack = EmojiPack.open()
    return SceneSampler(pack, mini_concepts(pack)[:12], "held_out")


@pytest.fixture
def outcome(sampler, monkeypatch):
    def run(tell, number):
        model = Teller(tell)
        monkeypatch.setattr(caption_benchmark, "_CORPUS", 30)
        monkeypatch.setattr(caption_benchmark, "draw", model.draw)
        monkeypatch.setattr(caption_benchmark.Image, "fromarray", lambda picture: picture)
        return CaptionBenchmark(number=number).run(Workbench(model=model, samples=SceneSamples(sampler), batch_size=4))

    return run


def test_the_plainest_right_caption_gets_what_is_said_of_it_and_others_less(outcome, sampler):
    right = outcome(lambda scene: description(scene, sampler.pack), 6)
    blurred = outcome(lambda scene: description(scene, sampler.pack).replace(" on a", " near a"), 6)
    for name, most, kind in (("cider", 1, "share"), ("cider_d", 10, "higher")):
        marks = right.marks[f"caption_{name}"]
        mean = sum(marks.each.values()) / 6
        assert len(marks.each) == 6 and marks.kind == kind
        assert right.others[f"caption_right/{name}"] == pytest.approx(mean) and 0.3 * most < mean < most
        others = blurred.marks[f"caption_{name}"].each
        assert all(other < marks.each[item] for item, other in others.items())
    assert set(right.marks["caption_facts"].each.values()) == {1}


def test_a_mark_depends_on_no_limit_and_on_no_other_caption(outcome, sampler):
    def breaking(scene):
        if scene.task == "two":
            raise RuntimeError("no")
        return description(scene, sampler.pack)

    few, more = outcome(breaking, 3), outcome(lambda scene: description(scene, sampler.pack), 4)
    for name, marks in few.marks.items():
        assert marks.failed == {"1": "RuntimeError: no"} and [*marks.each] == ["0", "2"]
        assert all(mark == more.marks[name].each[item] for item, mark in marks.each.items())
    nothing = outcome(lambda scene: 1 / 0, 1)
    assert nothing.others == {} and all(len(marks.failed) == 1 for marks in nothing.marks.values())


def test_references_differ_in_words_and_state_all_facts(sampler):
    reader = CaptionReader(sampler.pack, sampler.concepts)
    for row in range(12):
        scene = caption_benchmark._scene(sampler, row)
        several = references(scene, row, sampler.pack)
        assert len({*several}) == 5 and several[0] == description(scene, sampler.pack)
        assert all(reader.facts(text) == scene_facts(scene) for text in several)
