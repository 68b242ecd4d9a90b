from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.data.rendering import canonical, parse, render, render_prompt
from rebus.data.samples import Message, Picture, Sample, pictures, with_tokens
from rebus.tokenizers.tokens import Tokens

TRAPS = ["</s>", "<|/picture|>", "<|assistant|>", "<|coarse:3|>", "\u2581", "", " "]
TEXT = st.one_of(st.sampled_from([*TRAPS, "a cat", " on the left"]), st.text(max_size=4))
PART = st.one_of(TEXT, st.integers(0, 6))  # a number stands for a picture
PARTS = st.lists(PART, max_size=4)
CHAT = st.lists(st.tuples(st.sampled_from(["user", "assistant"]), PARTS), min_size=1, max_size=4)
CONVERSATION = st.one_of(PARTS.map(lambda parts: [("document", parts)]), CHAT)


def picture(vocabulary, number):
    ids = torch.tensor([[[(number + p) % 7, (3 * number + p) % 11] for p in range(vocabulary.layout.num_positions)]])
    return Picture(tokens=Tokens(ids, torch.tensor([ids.shape[1]]), vocabulary.layout))


def build(vocabulary, conversation):
    return Sample(
        tuple(
            Message(role, tuple(part if isinstance(part, str) else picture(vocabulary, part) for part in parts))
            for role, parts in conversation
        )
    )


def plain(sample):
    return [
        (m.role, [part if isinstance(part, str) else part.tokens.ids.tolist() for part in m.parts])
        for m in sample.messages
    ]


@given(CONVERSATION)
def test_parse_inverts_render(text_tokenizer, vocabulary, conversation):
    sample = build(vocabulary, conversation)
    ids = render(sample, text_tokenizer, vocabulary).ids
    parsed = parse(ids, text_tokenizer, vocabulary)
    assert plain(parsed) == plain(canonical(sample))
    assert render(parsed, text_tokenizer, vocabulary).ids == ids
    assert parse(tuple(ids), text_tokenizer, vocabulary).is_document == sample.is_document


@given(CONVERSATION)
def test_control_and_codes_come_from_the_structure_alone(text_tokenizer, vocabulary, conversation):
    rendered = render(build(vocabulary, conversation), text_tokenizer, vocabulary)
    num_pictures = sum(isinstance(part, int) for _, parts in conversation for part in parts)
    roles = [role for role, _ in conversation]
    expected = {
        vocabulary.bos: 1,
        vocabulary.eos: len(roles),
        vocabulary.user: roles.count("user"),
        vocabulary.assistant: roles.count("assistant"),
        vocabulary.begin_picture: num_pictures,
        vocabulary.end_picture: num_pictures,
        vocabulary.unk: 0,
        vocabulary.pad: 0,
    }
    assert {token: rendered.ids.count(token) for token in expected} == expected
    assert sum(rendered.modality) == num_pictures * vocabulary.num_codes
    is_code = [int(token >= vocabulary.control_range[1]) for token in rendered.ids]
    assert rendered.modality == is_code


def spelled(rendered):
    return [None if target == -100 else target for target in rendered.targets]


def test_targets_of_a_document_are_all_but_bos(text_tokenizer, vocabulary):
    rendered = render(build(vocabulary, [("document", ["a cat", 1])]), text_tokenizer, vocabulary)
    assert spelled(rendered) == [None, *rendered.ids[1:]]


def test_targets_of_a_chat_are_what_the_assistant_says(text_tokenizer, vocabulary):
    ids = vocabulary
    question, answer = text_tokenizer.encode("how many"), text_tokenizer.encode("two")
    one = [ids.begin_picture, *ids.flatten(picture(vocabulary, 1).tokens), ids.end_picture]
    chat = [("user", [1, "how many"]), ("assistant", ["two"]), ("user", []), ("assistant", [1])]
    rendered = render(build(vocabulary, chat), text_tokenizer, vocabulary)
    unseen = [ids.bos, ids.user, *one, *question, ids.eos, ids.assistant]
    again = [ids.user, ids.eos, ids.assistant]
    assert rendered.ids == [*unseen, *answer, ids.eos, *again, *one, ids.eos]
    assert spelled(rendered) == [None] * len(unseen) + [*answer, ids.eos] + [None] * 3 + [*one, ids.eos]


def test_questions_asked_by_themselves_are_each_a_chat(text_tokenizer, vocabulary):
    asked = (("what is there", "a cat"), ("how many", "two"), ("red", ""))
    shared = build(vocabulary, [("user", ["a dog", 1])])
    rendered = render(replace(shared, asked=asked), text_tokenizer, vocabulary)
    stops = (*rendered.endings[1:], len(rendered.ids))
    for (question, answer), start, stop in zip(asked, rendered.endings, stops, strict=True):
        chat = render(
            build(vocabulary, [("user", ["a dog", 1, question]), ("assistant", [answer])]), text_tokenizer, vocabulary
        )
        for name in ("ids", "targets", "modality"):
            marks = getattr(rendered, name)
            assert marks[: rendered.endings[0]] + marks[start:stop] == getattr(chat, name)


def test_prompt_is_the_chat_up_to_the_answer(text_tokenizer, vocabulary):
    chat = build(vocabulary, [("user", ["draw", 2]), ("assistant", ["yes", 3])])
    prompt = render_prompt(chat.messages[:1], text_tokenizer, vocabulary)
    whole = render(chat, text_tokenizer, vocabulary)
    assert whole.ids[: len(prompt)] == prompt
    assert spelled(whole)[len(prompt) - 1 : len(prompt) + 1] == [None, whole.ids[len(prompt)]]
    with pytest.raises(ValueError, match="must be a chat, got a document"):
        render_prompt([Message("document", ("a",))], text_tokenizer, vocabulary)


def test_canonical_joins_texts_drops_empty_ones_and_keeps_codes_only(vocabulary):
    both = Picture(pixels=np.zeros((2, 3, 3), np.uint8), tokens=picture(vocabulary, 1).tokens)
    sample = canonical(Sample((Message("document", ("", "a ", "cat", both, "", both, "x", "")),)))
    first, second, third, fourth = sample.messages[0].parts
    assert (first, fourth) == ("a cat", "x")
    assert second.pixels is third.pixels is None and second.tokens is both.tokens


def test_parse_refuses_what_is_no_sample(text_tokenizer, vocabulary):
    ids, text = vocabulary, text_tokenizer.encode("a cat")
    one = [ids.begin_picture, *ids.flatten(picture(vocabulary, 1).tokens), ids.end_picture]
    for broken, message in [
        ([], "ids must start with bos"),
        (text, "ids must start with bos"),
        ([ids.bos], "messages must be one document or a chat"),
        ([ids.bos, *text], "message 0 must end with eos"),
        ([ids.bos, *text, ids.eos, *text, ids.eos], "one document or a chat .* got roles"),
        ([ids.bos, ids.user, ids.eos, *text, ids.eos], "one document or a chat .* got roles"),
        ([ids.bos, ids.user, *one[:-2], ids.eos], "picture must have 12 codes, got 11"),
        ([ids.bos, ids.user, *text, ids.user, ids.eos], "text ids must lie in"),
        ([ids.bos, *one[1:], ids.eos], "outside a picture, an id must be text"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse(broken, text_tokenizer, vocabulary)


def test_render_refuses_pictures_without_all_their_codes(text_tokenizer, vocabulary):
    pixels = Picture(pixels=np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="a picture must have tokens to be rendered"):
        render(Sample((Message("document", (pixels,)),)), text_tokenizer, vocabulary)
    prefix = Picture(tokens=picture(vocabulary, 1).tokens.prefix(4))
    with pytest.raises(ValueError, match="a picture must have 6 positions, got 4"):
        render(Sample((Message("document", (prefix,)),)), text_tokenizer, vocabulary)


def test_samples_hold_one_document_or_a_chat_and_real_pictures(vocabulary):
    document, user = Message("document", ("a",)), Message("user", ("a",))
    for messages in ((), (document, document), (user, document)):
        with pytest.raises(ValueError, match="messages must be one document or a chat"):
            Sample(messages)
    with pytest.raises(ValueError, match="must have pixels or tokens, got neither"):
        Picture()
    row = picture(vocabulary, 1).tokens
    with pytest.raises(ValueError, match="batch of one, got 2"):
        Picture(tokens=Tokens.cat([row, row]))


def test_with_tokens_goes_in_reading_order(vocabulary):
    sample = build(vocabulary, [("user", [1, "a", 2]), ("assistant", [3])])
    rows = [picture(vocabulary, number).tokens for number in (4, 5, 6)]
    assert [found.tokens for found in pictures(with_tokens(sample, rows))] == rows
    with pytest.raises(ValueError, match="one for each of the 3 pictures, got 2"):
        with_tokens(sample, rows[:2])
