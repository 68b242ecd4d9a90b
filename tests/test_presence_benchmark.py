from collections import Counter

import pytest

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import SceneSamples
from rebus.data.scenes import draw
from rebus.evaluation.benchmark import Workbench
from rebus.evaluation.presence_benchmark import (
    NEGATIVES,
    POPULAR,
    PresenceBenchmark,
    presence_figures,
    probes,
)

EMOJI = EmojiPack.open()


@pytest.fixture(scope="module")
def sampler():
    return SceneSampler(EMOJI, mini_concepts(EMOJI)[:12], "held_out")


@pytest.fixture(scope="module")
def asked(sampler):
    return probes(sampler, 24)


def concept_of(probe, sampler):
    thing = probe.question.removeprefix("Is there ").removesuffix(" in the picture?")
    names = {sampler.pack.concepts[concept].name.singular: concept for concept in sampler.concepts}
    return sampler.pack.concepts[names[thing]]


def test_right_answers_are_right_and_questions_balanced(asked, sampler):
    for probe in asked:
        shown = {item.concept_id for item in probe.scene.items}
        assert (concept_of(probe, sampler).id in shown) == (probe.right == "yes")
        assert sampler.is_in_split(probe.scene)
    for name in NEGATIVES:
        assert Counter(probe.right for probe in asked if name in probe.negatives) == {"yes": 24, "no": 24}
    assert asked[:8] == probes(sampler, 2)


def test_what_is_not_there_is_chosen_as_its_set_says(asked, sampler):
    chosen = {name: set() for name in NEGATIVES}
    for probe in asked:
        if probe.right == "no":
            absent = concept_of(probe, sampler)
            chosen[probe.negatives[0]].add(absent.id)
            shown = [sampler.pack.concepts[item.concept_id] for item in probe.scene.items]
            if probe.negatives == ("adversarial",):
                assert any(one.group == absent.group for one in shown)
    assert len(chosen["popular"]) <= POPULAR < len(chosen["random"])


class Tempted:
    """A model that sees what is there, and besides it what is like it; it breaks down at what is popular alone."""

    draw = rebuild = captions = print

    def __init__(self, asked):
        self.kinds, self.sizes = {}, []
        for one in asked:  # one thing may be asked for in two ways
            kinds = ("there",) if one.right == "yes" else one.negatives
            self.kinds.setdefault((one.question, picture_of(one)), set()).update(kinds)

    def answers(self, images, questions):
        self.sizes.append(len(images))
        kinds = [self.kinds[question, image.tobytes()] for image, question in zip(images, questions, strict=True)]
        if {"popular"} in kinds:
            raise RuntimeError("too popular")
        return ["Yes." if one & {"there", "adversarial"} else "No" for one in kinds]


def picture_of(probe):
    return draw(probe.scene, EMOJI).tobytes()


def test_a_model_that_sees_what_is_like_it_fails_on_adversarial_questions_alone(sampler):
    asked = probes(sampler, 6)
    model = Tempted(asked)
    outcome = PresenceBenchmark(number=6).run(Workbench(model=model, samples=SceneSamples(sampler), batch_size=8))
    for name in NEGATIVES:
        marks = outcome.marks[f"pope/{name}"]
        wrong = {
            one.item
            for one in asked
            if one.negatives == (name,) and "adversarial" in model.kinds[one.question, picture_of(one)]
        }
        assert {item for item, mark in marks.each.items() if mark == 0} == wrong
        assert {*marks.each, *marks.failed} == {f"{index}/{kind}" for index in range(6) for kind in ("yes", name)}
        assert (len(wrong) == 6) == (name == "adversarial")
    assert {*outcome.marks["pope/popular"].failed.values()} == {"RuntimeError: too popular"}
    others = outcome.others
    assert others["pope_yes_share/adversarial"] == others["pope_recall/adversarial"] == 1
    assert others["pope_precision/adversarial"] == 0.5 and others["pope_f1/adversarial"] == pytest.approx(2 / 3)
    assert others["pope_f1/random"] > 0.8 and others["pope_neither_share/random"] == 0


def test_other_answers_are_counted(asked):
    given = {one.item: "no" if index % 4 else "perhaps" for index, one in enumerate(asked)}
    figures = presence_figures(asked, given)
    for name in NEGATIVES:
        assert all(figures[f"pope_{kind}/{name}"] == 0 for kind in ("precision", "recall", "f1", "yes_share"))
        assert figures[f"pope_neither_share/{name}"] == 0.5  # all that is to be answered yes
    assert presence_figures(asked, {}) == {}


def test_things_of_which_none_are_alike_are_refused(sampler):
    different = [sampler.pack.find(label).id for label in ("cat", "guitar", "house", "pizza", "balloon", "umbrella")]
    with pytest.raises(ValueError, match="several of one kind, got 4"):
        probes(SceneSampler(sampler.pack, [*different[:2], *different[3:5]], "train"), 1)
