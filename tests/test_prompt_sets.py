"""Public sets of prompts: their schemas, what is wrong with bad ones, and pictures where their own scorers look."""

import json
import re
from types import SimpleNamespace

import pytest
from PIL import Image

from rebus.data.emoji import EmojiPack
from rebus.data.mini_concepts import mini_concepts
from rebus.evaluation.detector import Detection
from rebus.evaluation.prompt_sets import lines
from rebus.evaluation.prompt_sets.compbench import read_compbench
from rebus.evaluation.prompt_sets.contract import PlannedPicture, limited
from rebus.evaluation.prompt_sets.dpg import read_dpg
from rebus.evaluation.prompt_sets.drawing import draw_planned, drawable
from rebus.evaluation.prompt_sets.geneval import read_geneval, reworded, uncovered
from rebus.evaluation.prompt_sets.geneval_classes import CLASS_LABELS
from rebus.evaluation.prompt_sets.geneval_rules import judged, ways
from rebus.evaluation.prompt_sets.longtext import read_longtext
from rebus.evaluation.prompt_sets.parti import read_parti
from rebus.evaluation.prompt_sets.word_recall import text_score, word_recall

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "a photo of a car"},
    {
        "tag": "counting",
        "include": [{"class": "pizza", "count": 2}],
        "exclude": [{"class": "pizza", "count": 3}],
        "prompt": "a photo of two pizzas",
    },
    {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
        "prompt": "a photo of a dog right of a cat",
    },
    {
        "tag": "two_object",
        "include": [{"class": "cat", "count": 1}, {"class": "umbrella", "count": 1}],
        "prompt": "a photo of a cat and an umbrella",
    },
    {
        "tag": "colors",
        "include": [{"class": "car", "count": 1, "color": "pink"}],
        "prompt": "a photo of a pink car",
    },
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
]
LONGTEXT = [
    {"category": "sign", "length": "short", "prompt": "A sign", "text": ["Fresh bread!"], "prompt_id": 7},
    {"category": "poster", "length": "long", "prompt": "A poster", "text": ["One", "two one"], "prompt_id": 12},
]
PARTI = [
    "Prompt\tCategory\tChallenge\tNote",
    "bond\tAbstract\tBasic\tmany meanings",
    'A sign that says "Very Deep Learning".\tWorld Knowledge\tWriting & Symbols\t',
]
DPG = [
    "item_id,text,keywords,proposition_id,question_natural_language",
    'partiprompts1,"A red truck, parked.",,1,Is there a truck?',
    'partiprompts1,"A red truck, parked.",,2,Is it red?',
    "coco_2,Two men.,,1,Are there men?",
]


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


def written(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


# Schemas


def test_geneval_is_read_and_covered_by_what_the_emoji_show(tmp_path, pack):
    prompts = read_geneval(written(tmp_path / "prompts.jsonl", GENEVAL))
    assert [prompt.id for prompt in prompts] == [f"{index:05d}" for index in range(6)]
    assert [prompt.task for prompt in prompts] == [row["tag"] for row in GENEVAL]
    assert [json.loads(prompt.record) for prompt in prompts] == GENEVAL
    assert prompts[2].include[1].position == ("right of", 0) and prompts[1].exclude[0].count == 3
    mini = mini_concepts(pack)
    assert [uncovered(prompt, pack, mini) for prompt in prompts] == [None] * 4 + [
        "with_color",
        "without_emoji",
    ]
    no_dog = [concept for concept in mini if concept != pack.find("dog").id]
    assert uncovered(prompts[2], pack, no_dog) == "without_emoji"
    assert [reworded(prompt, pack, mini) for prompt in prompts[:4]] == [
        "a car",
        "two slices of pizza",
        "a dog to the right of a cat",
        "a cat and an umbrella",
    ]


def test_the_emoji_show_66_of_the_80_classes(pack):
    assert len(CLASS_LABELS) == 66
    assert all(pack.find(label) for labels in CLASS_LABELS.values() for label in labels)


def test_longtext_parti_dpg_and_compbench_are_read(tmp_path):
    first, second = read_longtext(written(tmp_path / "text.jsonl", LONGTEXT))
    assert (first.id, first.groups, first.texts) == ("0007", ("sign", "short"), ("Fresh bread!",))
    assert second.texts == ("One", "two one")
    bond, sign = read_parti(written(tmp_path / "parti.tsv", PARTI))
    assert (bond.id, bond.groups, bond.texts) == ("00000", ("Abstract", "Basic"), ())
    assert sign.texts == ("Very Deep Learning",)
    table = read_dpg(written(tmp_path / "dpg.csv", DPG))
    assert [(one.id, one.text) for one in table] == [("partiprompts1", "A red truck, parked."), ("coco_2", "Two men.")]
    (tmp_path / "texts").mkdir()
    for one in table:
        written(tmp_path / "texts" / f"{one.id}.txt", [one.text])
    assert sorted(read_dpg(tmp_path / "texts"), key=lambda one: one.id) == sorted(table, key=lambda one: one.id)
    bowls = read_compbench(written(tmp_path / "color_val.txt", ["a blue bowl\r", "a red cup\tunseen"]))
    assert [(one.text, one.groups) for one in bowls] == [("a blue bowl", ("color",)), ("a red cup", ("color",))]


def changed(row, **changes):
    return {**row, **changes}


LONG, CAT = LONGTEXT[0], GENEVAL[0]
WRONG = [
    (read_geneval, [CAT, "{"], "prompts:2: a line must be a JSON object, got Expecting property name"),
    (read_geneval, ["[]"], "prompts:1: a line must be a JSON object, got list"),
    (read_geneval, ["[" * 60_000], "prompts:1: a line must be a JSON object, got "),
    (
        read_geneval,
        [CAT, "", changed(CAT, tag="shape")],
        "prompts:3: tag must be one of single_object, .*, got 'shape'",
    ),
    (read_geneval, [changed(CAT, prompt=" ")], "prompts:1: prompt must be a text that is not empty, got ' '"),
    (read_geneval, [changed(CAT, include=[])], "prompts:1: include must ask for at least one object, got none"),
    (read_geneval, [changed(CAT, include="car")], "prompts:1: include must be a list of objects, got 'car'"),
    (
        read_geneval,
        [changed(CAT, include=[{"class": "car", "count": True}])],
        r"prompts:1: include\[0\]: count must be a whole number of at least 1, got True",
    ),
    (
        read_geneval,
        [changed(CAT, exclude=[{"class": "car", "count": 1, "color": 3}])],
        r"prompts:1: exclude\[0\]: color must be a text, got 3",
    ),
    (
        read_geneval,
        [changed(CAT, include=[{"class": "car", "count": 1, "position": ["above", 0]}])],
        r"prompts:1: include\[0\]: position must be one of left of, .* and an earlier number, got \['above', 0\]",
    ),
    (read_geneval, [], "prompts must hold at least one prompt, got none"),
    (read_longtext, [LONG, LONG], "prompts:2: prompt_id must be that of no other line, got 0007 again"),
    (read_longtext, [changed(LONG, prompt_id=-1)], "prompts:1: prompt_id must be a whole number of at least 0, got -1"),
    (read_longtext, [changed(LONG, length="tall")], "prompts:1: length must be one of short, long, got 'tall'"),
    (read_longtext, [changed(LONG, text="Hi")], "prompts:1: text must be a list of texts, got 'Hi'"),
    (read_longtext, [changed(LONG, text=["!"])], "prompts:1: text must hold at least one word, got"),
    (read_longtext, [changed(LONG, text=["\u4f60\u597d"])], "prompts:1: text must be English, got Chinese"),
    (read_parti, PARTI[1:], "prompts:1: the first line must name the columns Prompt, .*, got 'bond"),
    (read_parti, [*PARTI[:1], "a\tb"], r"prompts:2: a line must have Prompt, .*, got 'a\\tb'"),
    (read_dpg, DPG[1:], "prompts:1: the first line must name item_id and text, got 'partiprompts1"),
    (read_dpg, [DPG[0], "a,b"], "prompts:2: a row must have 5 cells, got 2"),
    (read_dpg, [DPG[0], "../a,b,,1,c"], "prompts:2: item_id must have letters, digits, - and _ alone, got '../a'"),
    (read_dpg, [*DPG, "coco_2,Two women.,,2,Who?"], "prompts:5: text must be the same for all lines of item coco_2"),
    (read_dpg, [DPG[0], 'a,"b"c,,1,d'], "prompts:2: a row must be one of a CSV table, got"),
    (read_compbench, ["a/b"], "prompts:1: a prompt must be a part of a file's name without _, got 'a/b'"),
    (read_compbench, ["a" * 250], "prompts:1: a prompt must be short enough for a file's name, got 250 letters"),
]


@pytest.mark.parametrize(("read", "rows", "message"), WRONG)
def test_what_is_wrong_is_told_with_its_line(read, rows, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "prompts", rows))


def test_files_are_read_up_to_a_length_and_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MOST_LINES", 3)
    monkeypatch.setattr(lines, "LONGEST_LINE_BYTES", 20)
    path = tmp_path / "color_val.txt"
    assert len(read_compbench(written(path, ["a cat"] * 3))) == 3
    with pytest.raises(ValueError, match="must have at most 3 lines, got more"):
        read_compbench(written(path, ["a cat"] * 4))
    with pytest.raises(ValueError, match="txt:2: a line must have at most 20 bytes, got more"):
        read_compbench(written(path, ["a cat", "a" * 21]))
    path.write_bytes(b"a c\xe4t\n")
    with pytest.raises(ValueError, match="txt:1: a line must be UTF-8"):
        read_compbench(path)
    with pytest.raises(ValueError, match="must be a file of prompts, got none"):
        read_compbench(tmp_path / "nothing.txt")


# Words


def test_recall_of_words_by_hand():
    recall = word_recall(["ONE, two", "don't one"], ["two ONE!", "three dont"])
    assert (recall.num_read, recall.num_asked, recall.share) == (3, 4, 0.75)
    assert word_recall(["a b", "b!"], ["c", "B, a", "b"]).share == 1
    assert text_score([recall, word_recall(["a b c d e f"], [])]) == 0.3
    with pytest.raises(ValueError, match="asked must hold at least one word"):
        word_recall(["..."], ["a"])
    with pytest.raises(ValueError, match="recalls must be at least one"):
        text_score([])


# GenEval's rules


def seen(pack, label, x=32.0, y=32.0, score=0.9):
    return Detection(pack.find(label).id, x, y, 32.0, score)


def test_geneval_asks_for_enough_and_rules_out_too_many(tmp_path, pack):
    car, pizzas, *_ = read_geneval(written(tmp_path / "prompts.jsonl", GENEVAL))
    mini = mini_concepts(pack)

    def reason(prompt, *labels):
        result = judged(prompt, prompt.planned(1)[0], [seen(pack, label) for label in labels], pack, mini)
        assert result.correct == (not result.reason)
        return result.reason

    assert reason(car, "automobile", "cat") == reason(car, "automobile", "automobile") == ""
    assert reason(car, "cat") == "expected car>=1, found 0"
    assert reason(pizzas, "pizza", "pizza", "cat") == ""
    assert reason(pizzas, "pizza") == "expected pizza>=2, found 1"
    assert reason(pizzas, *["pizza"] * 3) == "expected pizza<3, found 3"


def test_geneval_looks_where_the_surest_objects_stand(tmp_path, pack):
    prompt = read_geneval(written(tmp_path / "prompts.jsonl", GENEVAL))[2]
    cat, dog = seen(pack, "cat"), seen(pack, "dog", x=96.0, y=40.0)

    def reason(*objects):
        return judged(prompt, prompt.planned(1)[0], objects, pack, mini_concepts(pack)).reason

    assert reason(cat, dog) == reason(dog, cat) == ""
    assert reason(cat, seen(pack, "dog", x=32.0, y=96.0)) == "expected dog right of target, found below target"
    assert (
        reason(cat, dog, seen(pack, "dog", x=2.0, score=0.95)) == "expected dog right of target, found left of target"
    )
    assert reason(dog) == "expected cat>=1, found 0\nno target for dog to be right of"


@pytest.mark.parametrize(
    ("x", "y", "names"),
    [(60, 0, {"right of"}), (-60, 0, {"left of"}), (40, 40, {"right of", "below"}), (0, -60, {"above"}), (6, 6, set())],
)
def test_ways_by_hand(pack, x, y, names):
    # Sizes of 32 take 6.4 off each way: 40 aside leaves 33.6 of a distance of 56.6, which is more than half.
    assert ways(seen(pack, "cat", x=50.0 + x, y=50.0 + y), seen(pack, "dog", x=50.0, y=50.0)) == names


def test_results_have_the_names_that_genevals_summary_reads(tmp_path, pack):
    car = read_geneval(written(tmp_path / "prompts.jsonl", GENEVAL))[0]
    found = [seen(pack, "automobile", score=0.5), seen(pack, "automobile", x=80.0)]
    result = judged(car, car.planned(2)[1], found, pack, mini_concepts(pack))
    assert result.record(tmp_path) == {
        "filename": str(tmp_path / "00000/samples/00001.png"),
        "tag": "single_object",
        "prompt": "a photo of a car",
        "correct": True,
        "reason": "",
        "metadata": json.dumps(GENEVAL[0]),
        "details": json.dumps({"car": [[64.0, 16.0, 96.0, 48.0, 0.9], [16.0, 16.0, 48.0, 48.0, 0.5]]}),
    }


# Pictures


class Painter:
    """Draws its seed, and refuses prompts that shout."""

    def __init__(self):
        self.drawn = []

    def check(self, prompts):
        if any("!" in prompt for prompt in prompts):
            raise ValueError("a prompt must not shout")

    def draw(self, prompts, *, seed):
        self.drawn += zip(prompts, seed, strict=True)
        return [SimpleNamespace(image=Image.new("RGB", (2, 2), (one, 0, 0))) for one in seed]


def test_pictures_lie_where_scorers_look(tmp_path):
    sets = {
        "geneval": read_geneval(written(tmp_path / "1", GENEVAL[:1])),
        "longtext": read_longtext(written(tmp_path / "2", LONGTEXT[:1])),
        "parti": read_parti(written(tmp_path / "3", PARTI)),
        "dpg": read_dpg(written(tmp_path / "4", DPG)),
        "color": read_compbench(written(tmp_path / "color_val.txt", ["a blue bowl", "a red cup."])),
    }
    for name, prompts in sets.items():
        plan = [one for prompt in prompts for one in prompt.planned(4 if name == "dpg" else 2)]
        draw_planned(Painter(), plan, tmp_path / name, {}, batch_size=3)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/**/*.*") if path.name != "drawn_by.json"}
    assert files == {
        *("geneval/00000/metadata.jsonl", "geneval/00000/samples/00000.png", "geneval/00000/samples/00001.png"),
        *("longtext/0007_1.png", "longtext/0007_2.png"),
        *(f"parti/0000{row}_{sample}.png" for row in (0, 1) for sample in (1, 2)),
        *("dpg/partiprompts1.png", "dpg/coco_2.png"),
        *(f"color/samples/a blue bowl_00000{number}.png" for number in (0, 1)),
        *(f"color/samples/a red cup._00000{number}.png" for number in (2, 3)),
    }
    assert json.loads((tmp_path / "geneval/00000/metadata.jsonl").read_text()) == GENEVAL[0]
    with Image.open(tmp_path / "dpg/coco_2.png") as grid:
        assert grid.size == (4, 4)
        assert [grid.getpixel(place)[0] for place in ((0, 0), (2, 0), (0, 2), (2, 2))] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="samples must be 1 or 4 for DPG-Bench, got 2"):
        sets["dpg"][0].planned(2)


def test_drawing_goes_on_where_it_stopped_and_only_by_the_same(tmp_path):
    plan = [PlannedPicture(f"{row}", 0, f"prompt {row}", f"{row}.png", (row,)) for row in range(3)]
    first, second = Painter(), Painter()
    draw_planned(first, plan[:2], tmp_path / "out", {"model": "a"})
    (tmp_path / "out/0.png").unlink()
    draw_planned(second, plan, tmp_path / "out", {"model": "a"})
    assert first.drawn == [("prompt 0", 0), ("prompt 1", 1)] and second.drawn == [("prompt 0", 0), ("prompt 2", 2)]
    with pytest.raises(ValueError, match="out must be empty or hold pictures drawn alike, got others: see"):
        draw_planned(first, plan, tmp_path / "out", {"model": "b"})
    with pytest.raises(ValueError, match=re.escape("got files without drawn_by.json")):
        draw_planned(first, plan, tmp_path, {"model": "a"})


def test_prompts_that_a_model_refuses_are_left_out_with_the_reason():
    plan = [PlannedPicture(text, sample, text, "", (0,)) for text in ("hi", "oh!") for sample in (0, 1)]
    kept, refused = drawable(Painter(), plan)
    assert kept == plan[:2] and refused == {"oh!": "a prompt must not shout"}


def test_a_limit_is_one_for_each_task(tmp_path):
    prompts = read_geneval(written(tmp_path / "prompts.jsonl", GENEVAL))
    assert [prompt.id for prompt in limited(prompts, 1)] == ["00000", "00001", "00002", "00003", "00004"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        limited(prompts, 0)
