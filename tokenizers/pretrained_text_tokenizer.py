"""The text tokenizer of any pretrained ``transformers`` model whose pieces are byte-pair encoded.

Its special and added tokens keep their ids but are taken out of what reads text, so that no text can spell one.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import pre_tokenizers

from rebus.tokenizers.text_tokenizer import utf8
from rebus.tokenizers.tokens import CodeLayout
from rebus.tokenizers.vocabulary import SpecialIds, Vocabulary

BACKEND_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
_READS_TEXT = ("normalizer", "pre_tokenizer", "decoder", "model")
"""Keys of ``tokenizer.json`` that decide how text is read and written."""


class PretrainedTextTokenizer:
    """Ids of text as a pretrained model knows them; see ``TextTokenizer`` for the contract.

    Text never becomes a special id, nor any other that was added to the pieces, whatever it spells. ``decode`` gives
    back what was encoded as far as the tokenizer does: one that normalizes text (Qwen2.5: NFC) gives that.
    """

    def __init__(self, backend: dict[str, Any], special: SpecialIds) -> None:
        """Takes the values of a ``tokenizer.json`` in which each id has a name in the model's table.

        Raises:
            ValueError: if the model is no byte-pair encoding of bytes, or ids are missing between others.
        """
        model = backend["model"]
        if model["type"] != "BPE":
            raise ValueError(f"the text tokenizer must be byte-pair encoding, got {model['type']}")
        self.names = sorted(model["vocab"], key=model["vocab"].__getitem__)
        if list(map(model["vocab"].__getitem__, self.names)) != list(range(len(self.names))):
            raise ValueError(f"ids of the text tokenizer must be 0 to {len(self.names) - 1} without a gap, got others")
        self.backend, self.special = backend, special
        self._not_text = frozenset(special.all)
        self._text_only = _text_only(backend, {self.names[index] for index in special.all})
        self._reader = tokenizers.Tokenizer.from_str(json.dumps(self._text_only))
        self._unknown_bytes = _unknown_bytes(self._text_only)
        told = json.dumps([self._text_only, self.names, self.special.to_dict()], sort_keys=True)
        self.hash = hashlib.sha256(told.encode()).hexdigest()[:16]

    @staticmethod
    def of_stock(folder: Path | str) -> "PretrainedTextTokenizer":
        """Returns the tokenizer of a stock ``transformers`` model from its folder; no code in there is run.

        Where the model has no token to open a text or to fill up rows, the one that closes a text takes its place.

        Raises:
            ValueError: if the folder holds no fast tokenizer, or one of a kind that is not read here.
        """
        # Imported here, since that takes longer than all that a loaded tokenizer is asked for.
        from transformers import AutoTokenizer

        try:
            stock = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except OSError as error:
            raise ValueError(f"{folder} must hold a tokenizer of transformers: {error}") from error
        if not stock.is_fast or stock.eos_token_id is None:
            got = "without an end of text" if stock.is_fast else "of another kind"
            raise ValueError(f"{folder} must hold a fast tokenizer with an end of text, got one {got}")
        backend = json.loads(stock.backend_tokenizer.to_str())
        backend["model"]["vocab"] = stock.get_vocab()
        return PretrainedTextTokenizer(backend, _special_ids(stock))

    @property
    def num_pieces(self) -> int:
        """Number of ids, with the special ones."""
        return len(self.names)

    def vocabulary(self, layout: CodeLayout) -> Vocabulary:
        """Returns the one id space of these pieces and the codes of pictures."""
        return Vocabulary(self.num_pieces, layout, self.special)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ``text``.

        Raises:
            ValueError: if ``text`` holds half of a surrogate pair, or a byte for which there is no piece.
        """
        utf8(text)  # refuses what is no text
        normalizer = self._reader.normalizer
        read = text if normalizer is None else normalizer.normalize_str(text)
        if unknown := self._unknown_bytes.intersection(utf8(read)):
            raise ValueError(f"text must be of bytes that the tokenizer knows, got {bytes(sorted(unknown))!r}")
        return self._reader.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is special or no text piece.
        """
        for token in ids:
            if not 0 <= token < self.num_pieces or token in self._not_text:
                raise ValueError(f"text ids must lie in [0, {self.num_pieces}) and not be special, got {token}")
        return self._reader.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: Path | str, vocabulary: Vocabulary | None = None) -> None:
        """Writes the files from which ``load`` and ``transformers.AutoTokenizer`` read the same tokenizer.

        With a vocabulary, AutoTokenizer also knows the names of its control tokens and codes. It reads none of them
        out of text unless it is called with ``split_special_tokens=False``, and codes not even then.

        Raises:
            ValueError: if the vocabulary is that of another tokenizer, or a text piece bears the name of another id.
        """
        if vocabulary is not None and vocabulary != self.vocabulary(vocabulary.layout):
            wanted = f"{self.num_pieces} text pieces with {self.special}"
            raise ValueError(f"vocabulary must have {wanted}, got {vocabulary.num_text} with {vocabulary.special}")
        from transformers import PreTrainedTokenizerFast

        beyond = vocabulary.names_beyond_text() if vocabulary else []
        ids = {name: index for index, name in enumerate([*self.names, *beyond])}
        if len(ids) < len(self.names) + len(beyond):
            raise ValueError("text pieces must not bear the names of control tokens or codes, got one that does")
        model = {**self._text_only["model"], "vocab": ids}
        added = [self.names[index] for index in self.special.all]
        added += [*vocabulary.control_names, *vocabulary.size_names] if vocabulary else []
        entries = [_added_token(ids[name], name) for name in added]
        written = {**self.backend, "model": model, "added_tokens": entries, "post_processor": None}
        roles = {"bos": self.special.bos, "eos": self.special.eos, "pad": self.special.pad, "unk": self.special.unk}
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(written)),
            **{f"{role}_token": self.names[index] for role, index in roles.items() if index is not None},
            extra_special_tokens=added,
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            text_pieces={"number": self.num_pieces, "special": self.special.to_dict()},
        ).save_pretrained(str(folder))

    @staticmethod
    def load(folder: Path | str) -> "PretrainedTextTokenizer":
        """Returns the tokenizer that ``save`` wrote, or else that of a stock model.

        Raises:
            ValueError: if the folder holds neither.
        """
        settings = Path(folder) / SETTINGS_FILE
        pieces = json.loads(settings.read_text()).get("text_pieces") if settings.is_file() else None
        if pieces is None:
            return PretrainedTextTokenizer.of_stock(folder)
        backend = json.loads((Path(folder) / BACKEND_FILE).read_text())
        vocab = {name: index for name, index in backend["model"]["vocab"].items() if index < pieces["number"]}
        backend["model"]["vocab"] = vocab
        return PretrainedTextTokenizer(backend, SpecialIds.from_dict(pieces["special"]))


def _text_only(backend: dict[str, Any], special: set[str]) -> dict[str, Any]:
    """Returns the values of a ``tokenizer.json`` without special pieces."""
    model = backend["model"]
    vocab = {name: index for name, index in model["vocab"].items() if name not in special}
    merges = [pair for pair in model["merges"] if not special.intersection((*pair, "".join(pair)))]
    kept = {key: backend.get(key) for key in _READS_TEXT}
    return {**kept, "version": "1.0", "added_tokens": [], "model": {**model, "vocab": vocab, "merges": merges}}


def _special_ids(stock: Any) -> SpecialIds:
    """Returns the special ids of a stock tokenizer; whatever was added to its pieces is special."""
    roles = SpecialIds(
        unk=stock.unk_token_id,
        eos=stock.eos_token_id,
        bos=stock.eos_token_id if stock.bos_token_id is None else stock.bos_token_id,
        pad=stock.eos_token_id if stock.pad_token_id is None else stock.pad_token_id,
    )
    others = {*stock.added_tokens_decoder, *stock.all_special_ids} - {*roles.all}
    return SpecialIds(roles.unk, roles.bos, roles.eos, roles.pad, tuple(sorted(others)))


def _unknown_bytes(backend: dict[str, Any]) -> frozenset[int]:
    """Returns the bytes that have no piece; SmolLM2, for one, lacks some that few texts hold."""
    vocab = backend["model"]["vocab"]
    steps = json.dumps([backend["normalizer"], backend["pre_tokenizer"]])
    if backend["model"]["byte_fallback"]:
        return frozenset(byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab)
    if '"ByteLevel"' not in steps:
        raise ValueError("the text tokenizer must have pieces for bytes, got one for characters only")
    # A printable byte is written as the character of that number, the others as those from 256 on.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = [ord(character) for character in alphabet if ord(character) < 256]
    order = [*printable, *(byte for byte in range(256) if byte not in printable)]
    return frozenset(byte for byte, name in zip(order, alphabet, strict=True) if name not in vocab)


def _added_token(index: int, name: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": name, **flags}
