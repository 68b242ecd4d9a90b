"""A model that judges its own drafts: what is kept of them, the samples they become, and how good the choice is."""

import io
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rebus.data.captions import canonical_caption, description, descriptions
from rebus.data.emoji import EmojiPack
from rebus.data.judged_drafts import Draft, JudgedDrafts, assessments, drafts_file, read_drafts
from rebus.data.mini_concepts import mini_concepts
from rebus.data.mixed_samples import MixedSamples
from rebus.data.rendering import NOT_TRAINED, parse, render
from rebus.data.samples import Message, Sample, pictures
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scenes import TASKS, Item, Scene
from rebus.data.shards import Shards
from rebus.data.splits import is_held_out
from rebus.evaluation import kept_drafts
from rebus.evaluation.judges import Judge
from rebus.model.rebus import Rebus
from rebus.train import self_enhance
from rebus.train.self_enhance import SelfEnhanceConfig, enhance


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


@pytest.fixture(scope="module")
def rebus(saved_model):
    return Rebus.load(saved_model)


@pytest.fixture(scope="module")
def run(rebus, pack):
    """Enhances the tiny model, to which drafts are right whose codes add up to an even number; counts their parts."""

    def described(self, chats, **_):
        calls.append(len(chats))
        if len(calls) == run.stop_at:
            raise KeyboardInterrupt
        codes = [self.saved.vocabulary.flatten(chat[0].parts[0].tokens) for chat in chats]
        return ["odd" if sum(row) % 2 else "even" for row in codes]

    def run(output, stop_at=0, **changes):
        run.stop_at = stop_at
        calls.clear()
        config = SelfEnhanceConfig(**{"num_prompts": 4, "num_drafts": 3} | changes, model=output, output=output)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Rebus, "replies", described)
            patch.setattr(self_enhance, "descriptions", lambda scene, pack: ["even"])
            patch.setattr(self_enhance, "PROMPTS_AT_ONCE", 2)
            return enhance(config, pack, rebus, Console(file=io.StringIO()))

    calls = run.calls = []
    return run


@pytest.fixture(scope="module")
def done(run, tmp_path_factory):
    """A finished folder, and its drafts."""
    output = tmp_path_factory.mktemp("self")
    return output, run(output)


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stopped_and_resumed_makes_the_same_files(run, done, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=2)
    assert [path.name for path in (tmp_path / "drafts").iterdir()] == ["000000.jsonl"]
    run(tmp_path)
    assert run.calls == [6]  # the first two prompts are not drawn again
    assert files(tmp_path) == files(done[0])
    assert {"kept", "assessed", "drafts.png"} < {path.name for path in tmp_path.iterdir()}


def test_more_prompts_go_on_where_fewer_ended_and_other_settings_are_refused(run, done, tmp_path):
    fewer = run(tmp_path, num_prompts=3)
    more = run(tmp_path)
    assert fewer == more[:3] and more == done[1]
    with pytest.raises(ValueError, match="must be of .*'seed': 1.*, got .*'seed': 0.*; choose another output"):
        run(tmp_path, seed=1)


def test_only_training_scenes_of_the_tasks_are_asked_for_each_with_other_drafts(run, tmp_path, pack):
    judged = run(tmp_path, num_prompts=8, num_drafts=2, tasks={"sign": 1.0, "two": 2.0})
    assert not any(is_held_out(one.scene) for one in judged)
    assert {one.scene.task for one in judged} == {"sign", "two"}
    assert all(one.prompt == canonical_caption(one.scene, pack) for one in judged)
    assert len({tuple(draft.codes) for one in judged for draft in one.drafts}) == 16


def judged_of(marks, passed):
    scene = Scene((Item("1f408", 0, 0, 64),), "flat", "pink", None, "one")
    drafts = [
        Draft(codes=[index], mark=mark, description="a cat" if right else "a dog")
        for index, (mark, right) in enumerate(zip(marks, passed, strict=True))
    ]
    return JudgedDrafts(scene=scene, prompt="a cat", seed=7, wanted=["a cat"], drafts=drafts)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=8))
def test_kept_is_the_best_of_those_that_passed_and_rejected_the_worst_of_the_others(rows):
    judged = judged_of([float(mark) for mark, _ in rows], [right for _, right in rows])
    right, wrong = ([mark for mark, passed in rows if passed == wanted] for wanted in (True, False))
    assert (judged.kept and judged.kept.mark) == max(right, default=None)
    assert (judged.rejected and judged.rejected.mark) == min(wrong, default=None)
    assert judged.kept is None or judged.passed(judged.kept)
    assert judged.rejected is None or not judged.passed(judged.rejected)


def test_drafts_come_back_from_their_file(done, tmp_path):
    (tmp_path / "drafts").write_bytes(drafts_file(done[1]))
    assert read_drafts(tmp_path / "drafts") == done[1]


def chats_of(folder, rebus):
    shards, tokenizer = Shards(folder), rebus.writer.text_tokenizer
    shards.check_made_by(image_tokenizer=rebus.saved.image_tokenizer_hash, text_tokenizer=tokenizer.hash)
    for row in shards.marked(np.arange(len(shards))):
        chat = parse([max(one, ~one) for one in row.tolist()], tokenizer, shards.vocabulary)
        again = render(chat, tokenizer, shards.vocabulary)
        pairs = zip(again.ids, again.targets, strict=True)
        assert [~one if target == NOT_TRAINED else one for one, target in pairs] == row.tolist()
        yield chat


def test_shards_hold_kept_drafts_as_answers_and_an_assessment_of_both_kinds(done, rebus):
    output, judged = done
    flatten = rebus.saved.vocabulary.flatten
    kept = [one for one in judged if one.kept]
    drawn = list(chats_of(output / "kept", rebus))
    assert [chat.messages[0] for chat in drawn] == [Message("user", (one.prompt,)) for one in kept]
    assert [flatten(pictures(chat)[0].tokens) for chat in drawn] == [one.kept.codes for one in kept]
    both = [one for one in judged if one.kept and one.rejected]
    assessed = list(chats_of(output / "assessed", rebus))
    assert 0 < len(both) <= 4 and len(assessed) == 2 * len(both)
    for one, yes, no in zip(both, assessed[::2], assessed[1::2], strict=True):
        for draft, chat, verdict in ((one.kept, yes, "yes"), (one.rejected, no, "no, it shows odd")):
            assert flatten(pictures(chat)[0].tokens) == draft.codes
            assert chat.messages[0].parts[1] == f"Does the picture show {one.prompt}?"
            assert chat.messages[1] == Message("assistant", (verdict,))
    assert assessments(judged_of([1.0], [True]), rebus.saved.vocabulary) == []


@pytest.mark.parametrize("task", TASKS)
def test_a_picture_that_shows_its_scene_is_described_as_wanted(pack, task):
    sampler, rng = SceneSampler(pack, mini_concepts(pack), "train"), random.Random(task)
    for _ in range(20):
        scene = sampler.scene(rng, task)
        wanted = descriptions(scene, pack)
        assert description(scene, pack) in wanted
        assert len(set(wanted)) == len(wanted) == {"two": 4, "count": 3 if len(scene.items) == 2 else 1}.get(task, 1)
        other = replace(scene, background="red" if scene.background != "red" else "blue")
        assert description(other, pack) not in wanted


def test_mixed_samples_are_as_many_as_their_shares_and_depend_on_the_generator_alone(done, rebus):
    made = Sample((Message("user", ("hello",)), Message("assistant", ("yes",))))
    folders = [Shards(done[0] / name) for name in ("kept", "assessed")]
    mixed = MixedSamples(lambda rng: made, folders, [0.5, 0.2], rebus.writer.text_tokenizer)
    several = [mixed(random.Random(index)) for index in range(100)]
    counts = Counter("made" if one is made else type(one.messages[1].parts[0]).__name__ for one in several)
    assert counts["Picture"] == pytest.approx(50, abs=16)
    assert counts["str"] == pytest.approx(20, abs=13) and counts["made"] == pytest.approx(30, abs=15)
    first, again = (
        next(one for index in range(9) if (one := mixed(random.Random(index))) is not made) for _ in range(2)
    )
    assert first.messages[0].parts[-1] == again.messages[0].parts[-1]
    for shares in ([0.0, 0.5], [0.6, 0.5]):
        with pytest.raises(ValueError, match="shares must be positive and add up to at most 1"):
            MixedSamples(lambda rng: made, folders, shares, rebus.writer.text_tokenizer)


class Blind:
    """Finds nothing."""

    def detect(self, images):
        return [[] for _ in images]


class WellRead:
    """Reads all words that there are, whatever is drawn."""

    def __init__(self, words):
        self.words = words

    def read(self, picture):
        assert picture.shape == (24, 24, 3)
        return self.words


def test_a_choice_is_judged_by_who_had_no_part_in_it(done, rebus, pack):
    judged = [one for one in done[1] if one.scene.task != "background"]
    words = [one.scene.sign for one in judged if one.scene.sign]
    marks = kept_drafts.marks_of(judged, rebus, Judge(Blind(), WellRead(words), pack))
    assert [set(one) for one in marks] == [set(kept_drafts.chosen(one)) for one in judged]
    assert [set(row.values()) for row in marks] == [{one.scene.task == "sign"} for one in judged]
    assert len({one.scene.task == "sign" for one in judged}) == 2
    found = kept_drafts.figures(["one", "one", "sign"], [
        {"first": True, "best mark": False, "kept": True},
        {"first": False, "best mark": False, "rejected": False},
        {"first": None, "best mark": True, "kept": True, "rejected": False},
    ])  # fmt: skip
    assert {name: (one["all"].score, one["all"].n) for name, one in found.items()} == {
        "first": (0.5, 2),
        "best mark": (pytest.approx(1 / 3), 3),
        "first, where one was kept": (1.0, 1),
        "kept": (1.0, 2),
        "rejected": (0.0, 2),
    }
    assert "| kept | 1.00 (n 1) | - |" in kept_drafts.table(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_prompts": 0}, "num_prompts must be at least 1, got 0"),
        ({"num_drafts": 1}, "num_drafts must be at least 2, for only several can be compared, got 1"),
        ({"tasks": {"seven": 1.0}}, "tasks must weigh some of one, two, count, position, background, sign, got"),
        ({"tasks": {}}, "tasks must weigh some of"),
    ],
)
def test_what_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(self_enhance.mini(), **changes)


def test_a_model_that_passes_none_of_its_drafts_has_nothing_to_learn_from(rebus, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(self_enhance, "PROMPTS_AT_ONCE", 1)
    config = SelfEnhanceConfig(model=tmp_path, output=tmp_path, num_prompts=1, num_drafts=2)
    with pytest.raises(ValueError, match="model must pass some of its drafts of a prompt, and others not, got no kept"):
        enhance(config, pack, rebus, Console(file=io.StringIO()))
