import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer, LlamaConfig

from rebus.tokenizers.text_tokenizer import SPELLED, SentencePieceTokenizer
from rebus.tokenizers.vocabulary import Vocabulary

TRAPS = ["</s>", "<s>", "<unk>", "<pad>", "<0x41>", "<|picture|>", "<|/picture|>", "<|user|>", "<|assistant|>"]
TRAPS += [
    "<|coarse:3|>",
    "\u2581",
    "\u2585",
    " \u2047 ",
    "  ",
    "\n",
    "\r\n",
    "\t",
    "\x00",
    "\ufeff",
    "e\u0301",
    "\ufffd",
]
KNOWN = ["cat", "banana", "anagram", "hahaha", "aaaa", " the", "Noto", "3D", "CAT"]
TEXT = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(TRAPS), st.sampled_from(KNOWN))).map("".join)


@pytest.fixture(scope="module", params=["tokenizer alone", "beside a model"])
def stock(request, text_tokenizer, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "beside a model":
        LlamaConfig(vocab_size=vocabulary.size, hidden_size=8, num_attention_heads=2).save_pretrained(folder)
    text_tokenizer.save(folder, vocabulary)
    return AutoTokenizer.from_pretrained(folder)


@given(TEXT)
def test_text_survives_and_stays_text(text_tokenizer, text):
    ids = text_tokenizer.encode(text)
    assert text_tokenizer.decode(ids) == text
    assert all(text_tokenizer.special.pad < token < text_tokenizer.num_pieces for token in ids)


def test_every_kind_of_character_survives(text_tokenizer):
    characters = [chr(code) for code in (*range(0x2600), *range(0x2600, 0xD800, 211), *range(0xE000, 0x110000, 211))]
    for start in range(0, len(characters), 64):
        text = "".join(characters[start : start + 64])
        assert text_tokenizer.decode(text_tokenizer.encode(text)) == text


@given(TEXT)
def test_transformers_gives_the_same_ids_and_text(text_tokenizer, stock, text):
    ids = text_tokenizer.encode(text)
    assert stock(text)["input_ids"] == ids
    assert stock.decode(ids) == text


def test_transformers_knows_the_ids_beyond_text_by_name(stock, vocabulary):
    assert len(stock) == vocabulary.size
    names = ["<unk>", "<s>", "</s>", "<pad>", *vocabulary.names_beyond_text()]
    ids = [0, 1, 2, 3, *range(vocabulary.num_text, vocabulary.size)]
    assert stock.convert_tokens_to_ids(names) == ids
    assert stock.convert_ids_to_tokens(ids) == names
    special = (stock.unk_token_id, stock.bos_token_id, stock.eos_token_id, stock.pad_token_id)
    assert special == (vocabulary.unk, vocabulary.bos, vocabulary.eos, vocabulary.pad)


def test_transformers_reads_control_out_of_text_only_on_demand_and_codes_never(stock, vocabulary):
    control = "".join(["<s>", "</s>", *vocabulary.control_names])
    on_demand = [vocabulary.bos, vocabulary.eos, *range(*vocabulary.control_range)]
    assert stock(control, split_special_tokens=False)["input_ids"] == on_demand
    assert max(stock(control)["input_ids"]) < vocabulary.num_text
    assert max(stock("<|coarse:3|>", split_special_tokens=False)["input_ids"]) < vocabulary.num_text


def test_save_and_load(text_tokenizer, tmp_path):
    text_tokenizer.save(tmp_path / "new" / "folder")
    assert SentencePieceTokenizer.load(tmp_path / "new" / "folder").model_proto == text_tokenizer.model_proto
    stock = AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert len(stock) == text_tokenizer.num_pieces
    assert stock("a <s> cat")["input_ids"] == text_tokenizer.encode("a <s> cat")


def test_capitals_and_digits_are_spelled_and_words_are_not(text_tokenizer):
    assert len({token for letter in SPELLED for token in text_tokenizer.encode(letter)}) == len(SPELLED) == 36
    assert len(text_tokenizer.encode("CATS2025")) == 8
    assert len(text_tokenizer.encode("banana")) < 6


def test_training_repeats_and_reads_every_line():
    texts = ["a red cat", "a red dog\nthe bug", "", "fun\u2585fun", "a\u2581cat"] * 20
    first, second = SentencePieceTokenizer.train(texts, 367), SentencePieceTokenizer.train(texts, 367)
    assert first.model_proto == second.model_proto
    assert first.num_pieces == 367
    assert len(first.encode("bug")) == len(first.encode("fun")) == 1


def test_printable_characters_never_need_bytes(text_tokenizer):
    assert [code for code in range(32, 127) if len(text_tokenizer.encode(chr(code))) != 1] == []


def test_train_refuses_texts_without_a_space():
    with pytest.raises(ValueError, match="must have a piece for the space"):
        SentencePieceTokenizer.train(["cat", "catcat"] * 9, 306)


@pytest.mark.parametrize("num_pieces", [100, 5000])
def test_train_refuses_sizes_the_texts_cannot_give(num_pieces):
    with pytest.raises(ValueError, match=f"num_pieces must suit the texts, got {num_pieces}"):
        SentencePieceTokenizer.train(["a cat and a dog"] * 9, num_pieces)


def train_other(**options):
    written = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "pad_id": 3, "unk_id": 0, **options}
    identity = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
    options = {**identity, "hard_vocab_limit": False, "minloglevel": 2, **options}
    options = {"user_defined_symbols": list(SPELLED), **options}
    SentencePieceTrainer.train(sentence_iterator=iter(["the cat sat", "<|user|>"] * 9), model_writer=written, **options)
    return written.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pad_id": -1}, r"ids 0, 1, 2 and 3, got \(0, 1, 2, -1\)"),
        ({"model_type": "unigram"}, "byte-pair encoding"),
        ({"byte_fallback": False}, "with byte fallback"),
        ({"user_defined_symbols": ["<|user|>"]}, r"letters A-Z and digits, got \['<\|user\|>'\]"),
        ({"add_dummy_prefix": True}, "leave text as it is"),
        ({"remove_extra_whitespaces": True}, "leave text as it is"),
        ({"normalization_rule_name": "nfkc"}, "leave text as it is"),
    ],
)
def test_refuses_models_that_would_alter_text(options, message):
    with pytest.raises(ValueError, match=message):
        SentencePieceTokenizer(train_other(**options))


def test_refuses_what_is_no_text(text_tokenizer):
    with pytest.raises(ValueError, match="text must be characters, got a lone surrogate at 2"):
        text_tokenizer.encode("a \ud800")
    for token in (-1, 0, 1, 2, 3, text_tokenizer.num_pieces):
        with pytest.raises(ValueError, match=rf"text ids must lie in \(3, 421\), got {token}"):
            text_tokenizer.decode([9, token])


def test_save_refuses_a_vocabulary_that_does_not_fit(text_tokenizer, layout, tmp_path):
    with pytest.raises(ValueError, match="vocabulary must have 421 text pieces, got 420"):
        text_tokenizer.save(tmp_path, Vocabulary(420, layout))
    greedy = SentencePieceTokenizer(train_other(split_by_unicode_script=False))
    assert len(greedy.encode("<|user|>")) == 1
    with pytest.raises(ValueError, match="must not bear the names of control tokens"):
        greedy.save(tmp_path, Vocabulary(greedy.num_pieces, layout))
