import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from rebus.model.grammar import Grammar
from rebus.tokenizers.pretrained_text_tokenizer import PretrainedTextTokenizer
from rebus.tokenizers.text_tokenizer import SentencePieceTokenizer, TextTokenizer
from rebus.tokenizers.vocabulary import SpecialIds, Vocabulary

SENTENCES = ["a cat and a dog", "it's 3D: yes!", "two bananas, hahaha", "na\u00efve caf\u00e9", "end_of text im"] * 9
SPECIAL = ["<unk>", "<s>", "</s>", "<|extra|>"]
TRAPS = [*SPECIAL, "<tool>", "<s", "s>", " <s>", "<|picture|>", "<|user|>", "<|coarse:3|>", "\u2581", "\n", "\x00"]
TEXT = st.lists(st.one_of(st.text(max_size=5), st.sampled_from(TRAPS), st.sampled_from(SENTENCES))).map("".join)


def like_qwen() -> PreTrainedTokenizerFast:
    """Byte-level, special tokens behind the pieces, no bos, one added token that is not called special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    stock = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    stock.add_special_tokens({"extra_special_tokens": ["<s>", "<|extra|>"]})
    stock.add_tokens(["<tool>"])
    return stock


def like_llama() -> PreTrainedTokenizerFast:
    """Spaces marked, bytes as a fallback, special tokens first, no pad; ``<s>`` is what two pieces merge to."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    first = [*SPECIAL[:3], *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=first)
    backend.train_from_iterator(["<s> < s> s>"] * 99 + SENTENCES, trainer)
    values = json.loads(backend.to_str())
    assert all(piece in values["model"]["vocab"] for piece in ("<", "s>"))
    values["model"]["merges"] += [["<", "s>"]]
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] in SPECIAL]
    backend = Tokenizer.from_str(json.dumps(values))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


@pytest.fixture(scope="module", params=[like_qwen, like_llama])
def stock(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stock")
    request.param().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pretrained(stock):
    return PretrainedTextTokenizer.of_stock(stock)


@given(TEXT)
def test_text_survives_and_stays_text(pretrained, text):
    ids = pretrained.encode(text)
    assert not set(ids) & set(pretrained.special.all) and all(token < pretrained.num_pieces for token in ids)
    if "\u2581" not in text or pretrained.special.bos == pretrained.special.eos:  # Llama has it mean a space
        assert pretrained.decode(ids) == text


def test_the_stock_tokenizer_does_read_special_ids_out_of_text(stock, pretrained):
    """Else the property above would hold of any tokenizer."""
    read = AutoTokenizer.from_pretrained(stock)("a <s> cat", add_special_tokens=False)["input_ids"]
    assert set(read) & set(pretrained.special.all)


def test_text_without_special_tokens_has_the_ids_of_the_stock_tokenizer(stock, pretrained):
    plain = AutoTokenizer.from_pretrained(stock)
    for text in SENTENCES[:5]:
        assert pretrained.encode(text) == plain(text, add_special_tokens=False)["input_ids"]


def test_special_ids_are_those_of_the_model_and_what_it_lacks_is_its_end_of_text(stock, pretrained):
    plain = AutoTokenizer.from_pretrained(stock)
    special = pretrained.special
    assert special.eos == special.pad == plain.eos_token_id
    assert special.bos == (plain.eos_token_id if plain.bos_token_id is None else plain.bos_token_id)
    assert {*plain.added_tokens_decoder} == {*special.all}
    assert pretrained.num_pieces == len(plain)


def test_transformers_and_we_read_back_what_was_saved(pretrained, layout, tmp_path):
    vocabulary = pretrained.vocabulary(layout)
    LlamaConfig(vocab_size=vocabulary.size, hidden_size=8, num_attention_heads=2).save_pretrained(tmp_path)
    pretrained.save(tmp_path, vocabulary)
    again, plain = TextTokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.hash == pretrained.hash and again.vocabulary(layout) == vocabulary
    assert len(plain) == vocabulary.size
    names = [*vocabulary.control_names, *vocabulary.names_beyond_text()[-3:]]
    ids = [*range(*vocabulary.control_range), *range(vocabulary.size - 3, vocabulary.size)]
    assert plain.convert_tokens_to_ids(names) == ids
    assert (plain.bos_token_id, plain.eos_token_id, plain.pad_token_id, plain.unk_token_id) == (
        vocabulary.bos,
        vocabulary.eos,
        vocabulary.pad,
        vocabulary.unk,
    )
    for text in ["".join(TRAPS), "a cat, it's caf\u00e9", "<|user|> <s>"]:
        assert plain(text)["input_ids"] == again.encode(text) == pretrained.encode(text)
        assert plain.decode(again.encode(text)) == again.decode(again.encode(text))
    assert plain("<|user|>", split_special_tokens=False)["input_ids"] == [vocabulary.user]


def test_the_hash_tells_tokenizers_apart(pretrained):
    other = PretrainedTextTokenizer(pretrained.backend, SpecialIds(None, 1, 1, 1))
    assert other.hash != pretrained.hash


def test_the_model_may_write_text_and_its_end_but_no_other_special_id(pretrained, layout):
    vocabulary = pretrained.vocabulary(layout)
    grammar = Grammar(vocabulary)
    legal = [token for start, stop in grammar.legal(grammar.start()) for token in range(start, stop)]
    never = {*vocabulary.special.all} - {vocabulary.eos}
    assert legal == sorted({*range(vocabulary.num_text), vocabulary.begin_picture} - never)
    for token in vocabulary.special.all:
        if token in (vocabulary.bos, vocabulary.eos):
            assert grammar.advance(grammar.start(), token) == grammar.start()
        else:
            with pytest.raises(ValueError, match="outside a picture, an id must be text"):
                grammar.advance(grammar.start(), token)


def test_what_a_folder_holds_decides(text_tokenizer, stock, pretrained, tmp_path):
    assert TextTokenizer.load(stock).hash == pretrained.hash
    text_tokenizer.save(tmp_path)
    assert isinstance(TextTokenizer.load(tmp_path), SentencePieceTokenizer)
    with pytest.raises(ValueError, match="none must hold a tokenizer of transformers"):
        TextTokenizer.load(tmp_path / "none")


def test_vocabulary_survives_json(pretrained, layout, vocabulary):
    own = pretrained.vocabulary(layout)
    assert Vocabulary.from_dict(json.loads(json.dumps(own.to_dict()))) == own
    assert set(vocabulary.to_dict()) == {"num_text", "layout"}  # so that what was saved before keeps its hash


def test_refusals(pretrained, layout, vocabulary, tmp_path):
    with pytest.raises(ValueError, match="text must be characters, got a lone surrogate at 2"):
        pretrained.encode("a \ud800")
    for token in (-1, pretrained.special.eos, pretrained.num_pieces):
        with pytest.raises(ValueError, match=f"not be special, got {token}"):
            pretrained.decode([token])
    with pytest.raises(ValueError, match="vocabulary must have .* text pieces with"):
        pretrained.save(tmp_path, vocabulary)
    backend = pretrained.backend
    no_bytes = {**backend, "normalizer": None, "pre_tokenizer": None, "model": {**backend["model"]}}
    no_bytes["model"]["byte_fallback"] = False
    for change, message in (
        ({"model": {"type": "Unigram", "vocab": {}}}, "must be byte-pair encoding, got Unigram"),
        ({"model": {**backend["model"], "vocab": {"a": 0, "b": 2}}}, "must be 0 to 1 without a gap"),
        (no_bytes, "must have pieces for bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            PretrainedTextTokenizer({**backend, **change}, pretrained.special)
    with pytest.raises(ValueError, match="must hold a tokenizer of transformers"):
        PretrainedTextTokenizer.of_stock(tmp_path / "none")


def test_bytes_without_a_piece_are_refused_and_not_dropped():
    backend = json.loads(like_qwen().backend_tokenizer.to_str())
    letters = {name: index for index, name in enumerate("abc")}
    backend["model"] |= {"vocab": {**letters, "</s>": 3}, "merges": []}
    few = PretrainedTextTokenizer(backend, SpecialIds(None, 3, 3, 3))
    assert few.encode("cab") == [2, 0, 1]
    with pytest.raises(ValueError, match=r"bytes that the tokenizer knows, got b'\\x04d'"):
        few.encode("a\x04d")
