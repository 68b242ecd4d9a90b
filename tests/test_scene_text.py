import random
import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rebus.data import contact_sheet
from rebus.data.captions import canonical_caption, caption, description, plain_caption, relation
from rebus.data.emoji import EmojiPack
from rebus.data.english import NUMBER_WORDS
from rebus.data.mini_concepts import mini_concepts, other_concepts
from rebus.data.samples import Picture
from rebus.data.scene_edits import EDIT_TASKS, edit, story
from rebus.data.scene_questions import QUESTION_KINDS, drill, questions
from rebus.data.scene_sampler import SceneSampler
from rebus.data.scene_text import DESCRIBE_REQUEST, TASK_WEIGHTS, SceneSamples
from rebus.data.scenes import BACKGROUNDS, TASKS, Item, Scene, draw
from rebus.data.splits import held_out_pair, held_out_word

PACK = EmojiPack.open()
SAMPLER = SceneSampler(PACK, mini_concepts(PACK), "train")
SAMPLES = SceneSamples(SAMPLER)
SEEDS = st.integers(0, 10**6)


SIDES = {
    "left": lambda item: item.x,
    "right": lambda item: -item.x,
    "top": lambda item: item.y,
    "bottom": lambda item: -item.y,
}


def item(label, x=0, y=0, size=64):
    return Item(PACK.find(label).id, x, y, size)


def names(scene):
    return [PACK.concepts[item.concept_id].name for item in scene.items]


CANONICAL = [
    (Scene((item("cat"),), "flat", "pink", None, "one"), "a cat on a pink background, in flat style"),
    (Scene((item("owl"),), "3d", "orange", None, "background"), "an owl on an orange background, in 3D style"),
    (Scene((item("owl"), item("jeans", 64)), "noto", "white", None, "two"),
     "an owl and a pair of jeans on a white background, in Noto style"),
    (Scene((item("cat"), item("dog", 64)), "flat", "red", None, "position"),
     "a cat to the left of a dog on a red background, in flat style"),
    (Scene((item("key"), item("bus", 0, 64)), "flat", "gray", None, "position"),
     "a key above a bus on a gray background, in flat style"),
    (Scene((item("fish", 0, 0, 48), item("fish", 64, 0, 48)), "flat", "red", None, "count"),
     "two fish on a red background, in flat style"),
    (Scene((item("owl"),), "flat", "blue", "HELLO", "sign"),
     'an owl and a sign that says "HELLO" on a blue background, in flat style'),
]  # fmt: skip


@pytest.mark.parametrize("scene, expected", CANONICAL)
def test_canonical_captions(scene, expected):
    assert canonical_caption(scene, PACK) == expected


def test_plain_captions_leave_out_what_is_not_asked_for():
    scene, background = CANONICAL[0][0], CANONICAL[1][0]
    assert plain_caption(scene, PACK, has_style=False, has_background=False) == "a cat"
    assert plain_caption(scene, PACK, has_style=True, has_background=False) == "a cat, in flat style"
    assert plain_caption(background, PACK, has_style=False, has_background=False) == "an owl on an orange background"
    assert description(CANONICAL[2][0], PACK).startswith("an owl to the left of a pair of jeans on")


@given(seed=SEEDS, task=st.sampled_from(TASKS))
@settings(max_examples=100, deadline=None)
def test_captions_state_all_facts_of_their_task(seed, task):
    scene = SAMPLER.scene(random.Random(seed), task)
    text = caption(scene, random.Random(seed), PACK)
    if task == "count":
        assert names(scene)[0].counted(len(scene.items)) in text
    else:
        assert all(name.singular in text for name in names(scene))
    if task == "position":
        first, second = (re.search(rf"{name.singular}\b", text).start() for name in names(scene))  # no car in carrots
        ordered = scene.items if first < second else scene.items[::-1]
        assert relation(*ordered) in text
    assert task != "background" or f"{scene.background} background" in text
    assert task != "sign" or f'"{scene.sign}"' in text
    assert text[0].islower() and text == text.strip() and not text.endswith(".")


def test_captions_vary_and_can_be_made_to_mention_style_and_background():
    scene = CANONICAL[0][0]
    texts = {caption(scene, random.Random(seed), PACK) for seed in range(200)}
    assert len(texts) > 20
    for seed in range(50):
        full = caption(scene, random.Random(seed), PACK, style_rate=1.0, background_rate=1.0)
        bare = caption(scene, random.Random(seed), PACK, style_rate=0.0, background_rate=0.0)
        assert "flat style" in full and "pink background" in full
        assert "style" not in bare and "background" not in bare


@given(seed=SEEDS, task=st.sampled_from(TASKS), ask=st.sampled_from((questions, drill)))
@settings(max_examples=100, deadline=None)
def test_answers_are_what_the_scene_shows(seed, task, ask):
    scene = SAMPLER.scene(random.Random(seed), task)
    for one in ask(scene, random.Random(seed), SAMPLER):
        shown = names(scene)
        if one.kind == "color":
            assert one.answer == scene.background
        elif one.kind == "style":
            assert one.answer.lower() == scene.style
        elif one.kind == "count":
            assert one.answer == NUMBER_WORDS[len(scene.items)] and shown[0].plural in one.question
        elif one.kind == "presence":
            assert one.answer == ("yes" if any(f" {name.singular}" in one.question for name in shown) else "no")
        elif one.kind == "object":
            assert one.answer == (shown[0].plural if task == "count" else shown[0].singular)
        elif one.kind == "text":
            assert one.answer == scene.sign
        elif scene.sign is not None:
            assert one.answer == ("top" if scene.sign_on_top else "bottom")
        elif found := re.fullmatch("Is there (.*) (?:at the|on the) (.*)[?]", one.question):
            shown_there = shown[min((0, 1), key=lambda index: SIDES[found[2]](scene.items[index]))]
            assert one.answer == ("yes" if found[1] == shown_there.singular else "no")
        elif one.question.startswith("What is "):
            answered = next(i for i, name in enumerate(shown) if name.singular == one.answer)
            expected = relation(scene.items[answered], scene.items[1 - answered])
            assert one.question == f"What is {expected} {shown[1 - answered].definite}?"
        else:
            asked = min((0, 1), key=lambda index: one.question.index(shown[index].definite))
            assert one.answer in relation(scene.items[asked], scene.items[1 - asked])


def test_all_kinds_of_questions_are_asked_and_yes_is_as_frequent_as_no():
    rng = random.Random(0)
    asked = [one for _ in range(400) for one in questions(SAMPLER.scene(rng), rng, SAMPLER)]
    assert {one.kind for one in asked} == set(QUESTION_KINDS)
    answers = Counter(one.answer for one in asked if one.kind == "presence")
    assert 0.8 < answers["yes"] / answers["no"] < 1.25
    counts = Counter(one.answer for one in asked if one.kind == "count")
    assert max(counts.values()) < 4 * min(counts.values()) and len(counts) == 6


@given(seed=SEEDS, task=st.sampled_from(TASKS))
@settings(max_examples=100, deadline=None)
def test_no_question_is_asked_twice_or_gives_another_ones_answer_away(seed, task):
    asked = questions(SAMPLER.scene(random.Random(seed), task), random.Random(seed), SAMPLER)
    kinds = [one.kind for one in asked]
    assert 3 <= len(asked) == len(set(kinds)) <= 6
    assert sum(kind in ("presence", "object", "position") for kind in kinds) == (2 if task == "sign" else 1)


def test_a_drill_asks_where_two_things_are_in_all_ways():
    scene = Scene((item("cat"), item("dog", 64)), "flat", "red", None, "two")
    drills = [drill(scene, random.Random(seed), SAMPLER) for seed in range(200)]
    asked = Counter((one.question, one.answer) for found in drills for one in found if one.kind == "position")
    named = Counter(
        answer for (question, answer), number in asked.items() for _ in range(number) if "Is there" in question
    )
    assert 0.35 < named["yes"] / named.total() < 0.55
    expected = {
        ("What is to the left of the dog?", "a cat"),
        ("Is the cat to the left of or to the right of the dog?", "left"),
        ("Is the dog to the left of or to the right of the cat?", "right"),
        ("Is there a cat on the left?", "yes"),
        ("Is there a cat on the right?", "no"),
    }
    assert expected <= set(asked)
    assert all(len({one.question for one in found}) == len(found) > 6 for found in drills)


def test_a_chat_that_drills_asks_all_by_itself_and_tells_no_name_of_other_things():
    others = SceneSampler(PACK, other_concepts(PACK), "train")
    samples, rng = SceneSamples(SAMPLER, others, {"drill": 1.0}), random.Random(0)
    chats = [samples.chat(rng) for _ in range(100)]
    assert all(isinstance(part, Picture) for chat in chats for message in chat.messages for part in message.parts)
    assert all(chat.asked for chat in chats)
    told = [answer for chat in chats for question, answer in chat.asked if question == DESCRIBE_REQUEST]
    assert 10 < len(told) < 40
    unnamed = [
        chat for chat in chats if not any("there a" in question or "show a" in question for question, _ in chat.asked)
    ]
    assert 5 < len(unnamed) < 30


def test_half_of_the_signs_are_shuffled_and_none_shows_a_held_out_word():
    rng = random.Random(0)
    signs = [scene.sign for scene, _ in (SAMPLES.questions(rng) for _ in range(400)) if scene.sign]
    known = sum(sign in SAMPLER.words for sign in signs)
    assert 0.4 < known / len(signs) < 0.65
    assert not any(held_out_word(sign) for sign in signs)


@pytest.mark.parametrize("kind", EDIT_TASKS)
def test_edits_change_what_they_say_and_nothing_else(kind):
    rng = random.Random(0)
    for _ in range(30):
        before, change = SAMPLES.edit(rng, kind)
        after = change.scene
        assert change.kind == kind and before.task in EDIT_TASKS[kind]
        assert (after.style != before.style) == (kind == "style")
        assert (after.background != before.background) == (kind == "background")
        assert (after.sign != before.sign) == (kind == "word") and after.sign_on_top == before.sign_on_top
        assert len(after.items) - len(before.items) == {"add": 1, "remove": -1}.get(kind, 0)
        if kind == "background":
            assert after.background in change.instruction and after.background in change.narration
        elif kind == "word":
            assert f'"{after.sign}"' in change.instruction and f'"{after.sign}"' in change.narration
        elif kind == "add":
            (new,) = set(after.items) - set(before.items)
            side = relation(new, *before.items).removeprefix("to the ").removesuffix(" of")
            assert side in change.instruction and side in change.narration
            assert PACK.concepts[new.concept_id].name.singular in change.instruction
        elif kind == "remove":
            (gone,) = set(before.items) - set(after.items)
            assert PACK.concepts[gone.concept_id].name.definite in change.instruction
        if kind in ("add", "remove", "word"):
            changed = (draw(before, PACK) != draw(after, PACK)).any(axis=-1)
            assert 0 < changed.mean() <= 0.25


def test_edits_of_training_name_no_held_out_pair_together():
    rng = random.Random(0)
    for _ in range(200):
        before, change = SAMPLES.edit(rng, "replace")
        named = {item.concept_id for item in (*before.items, *change.scene.items)}
        assert not any(held_out_pair(*pair) for pair in combinations(named, 2))


def test_edits_that_do_not_apply():
    scene = CANONICAL[0][0]
    assert edit(scene, random.Random(0), SAMPLER, "word") is None
    with pytest.raises(ValueError, match="kind must be one of"):
        edit(scene, random.Random(0), SAMPLER, "blur")


def test_stories_start_with_all_facts_and_go_on_with_changes():
    rng = random.Random(0)
    lengths = Counter()
    for _ in range(60):
        told = story(rng, SAMPLER)
        lengths[len(told)] += 1
        assert told[0][0].endswith(f"{canonical_caption(told[0][1], PACK)}.")
        assert told[0][0].startswith(("There is ", "There are "))
        assert all(sentence.startswith("Then ") and sentence.endswith(".") for sentence, _ in told[1:])
        assert len({scene for _, scene in told}) == len(told)
    assert set(lengths) == {2, 3}


def shape(sample):
    return "|".join(
        message.role[0] + "".join("P" if isinstance(part, Picture) else "t" for part in message.parts)
        for message in sample.messages
    )


def test_documents_and_chats_come_in_all_their_forms():
    rng = random.Random(0)
    documents = Counter(shape(SAMPLES.document(rng)) for _ in range(250))
    assert set(documents) == {"dtP", "dPt", "dP", "dPtP", "dtPtP", "dtPtPtP"}
    assert 0.02 < documents["dP"] / 250 < 0.1
    chats = Counter(shape(SAMPLES.chat(rng)) for _ in range(250))
    asked = {"uPt|at" + number * "|ut|at" for number in range(2, 6)}
    assert set(chats) - asked == {"ut|aP", "u|aP", "uPt|at", "uPt|aP", "ut|atPtP", "ut|atPtPtP"}
    assert len(asked & set(chats)) > 2 and set(TASK_WEIGHTS) == set(TASKS)
    assert 0.02 < chats["u|aP"] / 250 < 0.1


def test_pictures_of_samples_are_the_drawn_scenes():
    scene, text = SAMPLES.prompt(random.Random(3), "sign")
    assert text == canonical_caption(scene, PACK) and scene.task == "sign"
    sample = SAMPLES.document(random.Random(3))
    picture = next(part for part in sample.messages[0].parts if isinstance(part, Picture))
    assert picture.pixels is not None and picture.pixels.shape == (128, 128, 3)
    again = SAMPLES.document(random.Random(3)).messages[0].parts
    assert [p for p in again if isinstance(p, str)] == [p for p in sample.messages[0].parts if isinstance(p, str)]


def test_contact_sheet_is_written(tmp_path, capsys):
    contact_sheet.main(["--output", str(tmp_path / "sheet.png"), "--seed", "1"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet)
    assert all((pixels == color).all(axis=-1).any() for color in BACKGROUNDS.values())
    assert "wrote" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="0"):
        contact_sheet.main(["--help"])
    assert "picture to write" in capsys.readouterr().out
