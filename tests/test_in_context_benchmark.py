import numpy as np
import pytest

from rebus.data.captions import description
from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.samples import Picture
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import draw
from rebus.evaluation import in_context_benchmark
from rebus.evaluation.benchmark import Workbench
from rebus.evaluation.in_context_benchmark import NUMBERS, InContextBenchmark, caption_lesson, chat_of, naming_lesson

NUMBER = 4


class Learner:
    """A model that calls what it was told the name of by that name, and captions as it was shown to."""

    def __init__(self, pack):
        self.pack, self.scenes, self.sizes = pack, [], []

    def draw(self, scene, pack, *, seed=None):
        """Draws a scene as its number."""
        self.scenes.append(scene)
        return np.full((1, 1, 3), len(self.scenes) - 1, dtype=np.uint8)

    rebuild = answers = captions = print

    def look(self, image):
        return Picture(pixels=np.asarray(image))

    def replies(self, chats):
        self.sizes.append((len(chats), len(chats[0])))
        return [self.reply(chat) for chat in chats]

    def reply(self, chat):
        scenes = [self.scenes[message.parts[0].pixels.max()] for message in chat[::2]]
        told = [message.parts[0] for message in chat[1::2]]
        if "Describe" in chat[-1].parts[1]:
            text = description(scenes[-1], self.pack)
            return text.split(" on a")[0].capitalize() if told else text
        names = {scene.items[0].concept_id: name for scene, name in zip(scenes, told, strict=False)}
        return names.get(scenes[-1].items[0].concept_id, "a thing")

    def log_likelihoods(self, chats, texts):
        return [np.array([0.0, -1.0 * (self.reply(chat) != text)]) for chat, text in zip(chats, texts, strict=True)]


@pytest.fixture(scope="module")
def sampler():
    pack = EmojiPack.open()
    return SceneSampler(pack, mini_concepts(pack)[:5], "train")


def test_who_learns_from_examples_does_better_with_more(sampler, monkeypatch):
    model = Learner(sampler.pack)
    monkeypatch.setattr(in_context_benchmark, "draw", model.draw)
    bench = Workbench(model=model, samples=SceneSamples(sampler), batch_size=3)
    marks = InContextBenchmark(number=NUMBER).run(bench).marks
    assert {*model.sizes} == {(size, 2 * number + 1) for size in (3, 1) for number in NUMBERS}
    assert all([*one.each] == [str(index) for index in range(NUMBER)] for one in marks.values())
    scores = {name.removeprefix("in_context/"): sum(one.each.values()) / NUMBER for name, one in marks.items()}
    last_is_asked = [naming_lesson(sampler, index, 1).examples[0][1] for index in range(NUMBER)]
    seen = sum(naming_lesson(sampler, index, 1).right == name for index, name in enumerate(last_is_asked)) / NUMBER
    assert [scores[f"naming_{number}"] for number in NUMBERS] == [0, seen, 1, 1, 1] and 0 < seen < 1
    assert [scores[f"choice_{number}"] for number in NUMBERS] == [0.5, 0.5 + seen / 2, 1, 1, 1]
    assert scores["captions_0"] == 0 and scores["captions_1"] > 0.5
    assert [scores[f"facts_{number}"] for number in NUMBERS] == [1] * 5


@pytest.mark.parametrize("lesson", [naming_lesson, caption_lesson])
def test_more_examples_ask_the_same_and_end_with_the_fewer(lesson, sampler):
    most = lesson(sampler, 3, 8)
    for number in NUMBERS:
        fewer = lesson(sampler, 3, number)
        assert (fewer.scene, fewer.right, len(fewer.examples)) == (most.scene, most.right, number)
        assert fewer.examples == most.examples[8 - number :]
    assert lesson(sampler, 4, 2) != lesson(sampler, 5, 2)


def test_examples_name_two_things_by_turns_in_pictures_that_differ(sampler):
    for index in range(NUMBER):
        lesson = naming_lesson(sampler, index, 4)
        things = [scene.items[0].concept_id for scene, _ in lesson.examples]
        names = [name for _, name in lesson.examples]
        assert things[::2] == [things[0]] * 2 and things[1::2] == [things[1]] * 2 and len({*things}) == 2
        assert names[::2] == [names[0]] * 2 and {*names} == {lesson.right, lesson.wrong}
        assert lesson.right in (names[things.index(lesson.scene.items[0].concept_id)],)


class Forgetful(Learner):
    """Reads no more than one example."""

    def replies(self, chats):
        if len(chats[0]) > 3:
            raise ValueError("a prompt must be at most 85 tokens long, got 99")
        return super().replies(chats)


def test_lessons_too_long_to_read_are_failed_ones(sampler, monkeypatch):
    model = Forgetful(sampler.pack)
    monkeypatch.setattr(in_context_benchmark, "draw", model.draw)
    marks = InContextBenchmark(number=1).run(Workbench(model=model, samples=SceneSamples(sampler))).marks
    for name, one in marks.items():
        fits = name.endswith(("_0", "_1"))
        assert (len(one.each), len(one.failed)) == ((1, 0) if fits else (0, 1))
    assert marks["in_context/naming_2"].failed == {"0": "ValueError: a prompt must be at most 85 tokens long, got 99"}


def test_a_model_that_cannot_talk_is_refused(sampler):
    class Silent:
        draw = rebuild = answers = captions = print

    with pytest.raises(ValueError, match="in_context must have a model that replies to chats, got Silent"):
        InContextBenchmark().run(Workbench(model=Silent(), samples=SceneSamples(sampler)))


def test_an_example_is_a_picture_with_a_request_and_an_answer(sampler):
    lesson = naming_lesson(sampler, 0, 1)
    first, answer, last = chat_of(lesson, sampler.pack, Learner(sampler.pack).look)
    assert [one.role for one in (first, answer, last)] == ["user", "assistant", "user"]
    assert answer.parts == (lesson.examples[0][1],) and first.parts[1] == last.parts[1] == "What is in the picture?"
    assert (last.parts[0].pixels == draw(lesson.scene, sampler.pack)).all()


def test_a_sampler_of_one_thing_is_refused(sampler):
    lonely = SceneSampler(sampler.pack, sampler.concepts[:2], "train")
    lonely.concepts = lonely.concepts[:1]
    with pytest.raises(ValueError, match="concepts must hold two with train scenes, got 1 concepts"):
        naming_lesson(lonely, 0, 1)
