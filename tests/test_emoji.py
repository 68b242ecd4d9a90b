import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rebus.data.emoji import SOURCE_SIZE_PX, STYLES, EmojiPack
from rebus.data.mini_concepts import MINI_CONCEPTS, mini_concepts


@pytest.fixture(scope="module")
def pack():
    return EmojiPack.open()


def test_pack_holds_every_concept_in_every_style(pack):
    assert len(pack.concepts) == 1564
    folders = {"3d": "fluent3d", "flat": "flat", "noto": "noto"}
    files = set(pack._archive.namelist())
    assert {f"{folders[style]}/{id}.webp" for id in pack.concepts for style in STYLES} <= files


def test_concepts_are_found_by_id_and_label(pack):
    owl = pack.find("owl")
    assert pack.concepts[owl.id] is owl
    assert (owl.name.singular, owl.name.plural, owl.group) == ("an owl", "owls", "animals-nature")


@pytest.mark.parametrize("size_px", [32, 48, 64, 96, SOURCE_SIZE_PX])
def test_sprite_has_the_size_asked_for(pack, size_px):
    sprite = pack.sprite(pack.find("owl").id, "flat", size_px)
    assert sprite.shape == (size_px, size_px, 4) and sprite.dtype == np.uint8
    assert sprite[..., 3].max() == 255 and sprite[0, 0, 3] == 0


def test_sprite_is_cached_and_cannot_be_written_to(pack):
    sprite = pack.sprite(pack.find("cat").id, "noto", 64)
    assert sprite is pack.sprite(pack.find("cat").id, "noto", 64)
    with pytest.raises(ValueError, match="read-only"):
        sprite[0, 0, 0] = 1


def test_styles_look_different(pack):
    first, second, third = (pack.sprite(pack.find("penguin").id, style, 64).astype(int) for style in STYLES)
    assert abs(first - second).mean() > 5 and abs(second - third).mean() > 5


@pytest.mark.parametrize(
    "concept_id, style, match", [("nothing", "flat", "concept_id must"), ("1f989", "oil", "style must")]
)
def test_unknown_sprites_are_refused(pack, concept_id, style, match):
    with pytest.raises(ValueError, match=match):
        pack.sprite(concept_id, style, 64)


def test_unknown_label_is_refused(pack):
    with pytest.raises(ValueError, match="label must be that of a concept in the pack, got 'gryphon'"):
        pack.find("gryphon")


def test_mini_concepts_are_32_different_countable_things(pack):
    ids = mini_concepts(pack)
    assert len(ids) == len(set(ids)) == len(MINI_CONCEPTS) == 32
    assert all(pack.concepts[id].name.countable for id in ids)
    assert "dog face" not in MINI_CONCEPTS


@pytest.fixture(scope="module")
def rebuild_emoji():
    path = Path(__file__).parent.parent / "assets" / "rebuild_emoji.py"
    spec = importlib.util.spec_from_file_location("rebuild_emoji", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rebuild_names_concepts_as_the_pack_does(pack, rebuild_emoji):
    assert rebuild_emoji.concept_id("0023-FE0F-20E3") == pack.find("keycap: #").id
    assert rebuild_emoji.concept_id("1F468-200D-1F9B0") == pack.find("man: red hair").id
    assert not rebuild_emoji.LEFT_OUT & set(pack.concepts)


def test_rebuild_lists_what_every_style_has_drawn(rebuild_emoji):
    def entry(hexcode, order, **fields):
        return {
            "hexcode": hexcode,
            "order": order,
            "emoji": hexcode,
            "label": hexcode,
            "tags": [],
            "subgroup": 5,
        } | fields

    groups = {"groups": {"3": "animals"}, "subgroups": {"5": "birds"}}
    entries = [
        *(entry("1F989", 2, group=3), entry("1F986", 1, group=3), entry("1F3FB", 3, group=2), entry("1F1E6", 4)),
        *(entry("1F4CE", 5, group=3), entry("1F9A4", 6, group=3)),
    ]
    drawn = {"1f989", "1f986", "1f3fb", "1f1e6", "1f4ce"}
    concepts = rebuild_emoji.list_concepts(entries, groups, {"1F989": ["wise"]}, drawn)
    assert [(concept["id"], concept["keywords"]) for concept in concepts] == [("1f986", []), ("1f989", ["wise"])]
    assert concepts[0]["group"] == "animals" and concepts[0]["subgroup"] == "birds"


def test_rebuild_follows_aliases_and_keeps_the_format(pack, rebuild_emoji):
    icons = {
        "icons": {"owl": {"body": "<g/>", "width": 16}},
        "aliases": {"bird": {"parent": "owl"}},
        "width": 32,
        "height": 32,
    }
    assert rebuild_emoji.svg_of(icons, "bird") == rebuild_emoji.svg_of(icons, "owl")
    assert 'viewBox="0 0 16 32"><g/></svg>' in rebuild_emoji.svg_of(icons, "owl")
    again = Image.open(io.BytesIO(rebuild_emoji.webp(Image.new("RGBA", (256, 256), "red"), method=4)))
    assert (again.size, again.format) == ((128, 128), "WEBP")
