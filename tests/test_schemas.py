import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.data.bad_data import REASONS, BadRecord
from rebus.data.samples import Picture
from rebus.data.schemas import SCHEMAS

NAMES = ("red.png", "green.png", "deep/blue.png")


def open_picture(link):
    """Stands for a folder with pictures of these names, and for decoding their bytes, which are names here."""
    name = link.decode() if isinstance(link, bytes) else link
    if name not in NAMES:
        raise BadRecord("missing", "a picture must be there, got none")
    return Picture(np.full((1, 1, 3), NAMES.index(name), dtype=np.uint8))


def outline(sample):
    """Returns who says what, a picture by its name."""

    def said(part):
        if isinstance(part, str):
            return part
        assert part.pixels is not None
        return NAMES[part.pixels[0, 0, 0]]

    return [(message.role, *map(said, message.parts)) for message in sample.messages]


READ = {
    "captions": ({"image": "red.png", "text": "a red one"}, [("document", "a red one", "red.png")]),
    "text_to_image": (
        {"prompt": "a red one", "image": "red.png"},
        [("user", "a red one"), ("assistant", "red.png")],
    ),
    "edits": (
        {"input_image": "red.png", "edit_prompt": "make it blue", "edited_image": "deep/blue.png"},
        [("user", "red.png", "make it blue"), ("assistant", "deep/blue.png")],
    ),
    "llava": (
        {
            "id": "7",
            "image": ["red.png", "green.png"],
            "conversations": [
                {"from": "human", "value": "<image>\nWhich color?"},
                {"from": "gpt", "value": "Red."},
                {"from": "human", "value": "And this\n<image>\none?"},
                {"from": "gpt", "value": "Green."},
            ],
        },
        [
            ("user", "red.png", "Which color?"),
            ("assistant", "Red."),
            ("user", "And this", "green.png", "one?"),
            ("assistant", "Green."),
        ],
    ),
    "swift": (
        {
            "messages": [
                {"role": "user", "content": "<image>Make it blue."},
                {"role": "assistant", "content": "Here: <image>", "loss": True},
            ],
            "images": ["red.png", "deep/blue.png"],
        },
        [("user", "red.png", "Make it blue."), ("assistant", "Here: ", "deep/blue.png")],
    ),
    "openai": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "red.png"}},
                        {"type": "text", "text": "Is <image> a control token?"},
                        {"type": "image", "base64": base64.b64encode(b"green.png").decode()},
                    ],
                },
                {"role": "assistant", "content": "No."},
            ]
        },
        [("user", "red.png", "Is <image> a control token?", "green.png"), ("assistant", "No.")],
    ),
    "obelics": (
        {"texts": ["first", None, "last"], "images": [None, "red.png", None], "metadata": "[]"},
        [("document", "first", "red.png", "last")],
    ),
    "mmc4": (
        {
            "text_list": ["One.", "Two."],
            "image_info": [
                {"image_name": "green.png", "matched_text_index": 1, "matched_sim": 0.3},
                {"image_name": "red.png", "matched_text_index": 0, "matched_sim": 0.2},
            ],
        },
        [("document", "red.png", "One. ", "green.png", "Two.")],
    ),
}
READ["omnicorpus"] = READ["obelics"]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_each_format_is_read(schema):
    record, expected = READ[schema]
    assert outline(SCHEMAS[schema](record, open_picture)) == expected


def changed(schema, **fields):
    return READ[schema][0] | fields


WRONG = [
    ("captions", changed("captions", text=" \n"), "empty_text", "must not be empty"),
    ("captions", changed("captions", text="a \ud83d cat"), "schema", "must be Unicode, got half a character at 2"),
    ("captions", changed("captions", text=3), "schema", "must be a text, got int"),
    ("captions", {"text": "a"}, "schema", "must have image, got text"),
    ("llava", changed("llava", image="red.png"), "num_pictures", "2 places for 1 pictures"),
    ("llava", changed("llava", image=["red.png"] * 3), "num_pictures", "2 places for 3 pictures"),
    ("llava", {"conversations": []}, "schema", "user and assistant in turn, got none"),
    ("llava", changed("llava", conversations=["hi"]), "schema", "list of objects"),
    ("llava", changed("llava", conversations=[{"from": "system", "value": "Hi."}]), "schema", "from of a turn"),
    ("swift", changed("swift", messages=READ["swift"][0]["messages"][:1]), "num_pictures", "1 places for 2"),
    (
        "swift",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss": False}]},
        "schema",
        "loss of a message must be true",
    ),
    (
        "openai",
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]},
        "schema",
        "in turn, got assistant, user",
    ),
    ("openai", {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "schema", "got 'audio'"),
    ("obelics", changed("obelics", texts=["a"]), "num_pictures", "as many, got 1 and 3"),
    ("obelics", changed("obelics", texts=["a", "b", "c"]), "schema", "place 1 must have a text or an image, got both"),
    ("obelics", changed("obelics", texts=[None] * 3), "schema", "place 0 must have a text or an image, got none"),
    ("obelics", {"texts": [], "images": []}, "empty_text", "got none"),
    ("mmc4", changed("mmc4", text_list=["One."]), "schema", r"must be in \[0, 1\), got 1"),
]


@pytest.mark.parametrize(("schema", "record", "reason", "message"), WRONG)
def test_what_is_wrong_with_a_record_is_said(schema, record, reason, message):
    with pytest.raises(BadRecord, match=message) as caught:
        SCHEMAS[schema](record, open_picture)
    assert caught.value.reason == reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.text(max_size=9) | st.sampled_from(["<image>", "red.png"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "image",
                        "images",
                        "text",
                        "texts",
                        "prompt",
                        "messages",
                        "conversations",
                        "role",
                        "from",
                        "value",
                    ),
                    *(
                        "content",
                        "type",
                        "image_url",
                        "url",
                        "text_list",
                        "image_info",
                        "image_name",
                        "matched_text_index",
                    ),
                    *("files", "input_image", "edit_prompt", "edited_image", "bytes", "path", "base64", "loss"),
                ]
            ),
            inner | st.sampled_from(["user", "assistant", "human", "gpt", "image", "image_url", "text"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(record=st.dictionaries(st.sampled_from(["image", "text", "messages", "conversations", "images", "texts"]), JSON))
def test_no_record_can_raise_anything_else(record):
    for schema in SCHEMAS.values():
        try:
            assert schema(record, open_picture).messages
        except BadRecord as error:
            assert error.reason in REASONS
