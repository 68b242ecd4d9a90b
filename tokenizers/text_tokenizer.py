"""Text to ids and back: what every text tokenizer does, and the project's own, which loses nothing, by SentencePiece.

Both kinds are saved so that ``transformers`` loads the same tokenizer.

Source: Kudo and Richardson, "SentencePiece: A simple and language independent subword tokenizer and detokenizer",
https://arxiv.org/abs/1808.06226; byte-pair encoding with byte fallback.
"""

import hashlib
import io
import string
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import tokenizers
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer, sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers

from rebus.tokenizers.tokens import CodeLayout
from rebus.tokenizers.vocabulary import SpecialIds, Vocabulary

MODEL_FILE = "tokenizer.model"
SPELLED = string.ascii_uppercase + string.digits
SPECIAL_NAMES = ("<unk>", "<s>", "</s>", "<pad>")
SPACE_MARK = "\u2581"  # what SentencePiece writes for a space within a piece
SKIPPED = "\u2585"  # SentencePiece does not train on a line that holds this character


@runtime_checkable
class TextTokenizer(Protocol):
    """Ids of text; text never becomes a special id or one beyond the text pieces, whatever it spells."""

    @property
    def special(self) -> SpecialIds:
        """Which of the ids are special."""
        ...

    @property
    def hash(self) -> str:
        """The first 16 hex digits of a SHA-256: what tells it from any other."""
        ...

    @property
    def num_pieces(self) -> int:
        """Number of ids, with the special ones."""
        ...

    def vocabulary(self, layout: CodeLayout) -> Vocabulary:
        """Returns the one id space of these pieces and the codes of pictures."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ids."""
        ...

    def save(self, folder: Path | str, vocabulary: Vocabulary | None = None) -> None:
        """Writes files that ``load`` and ``transformers.AutoTokenizer`` read."""
        ...

    @staticmethod
    def load(folder: Path | str) -> "TextTokenizer":
        """Returns the text tokenizer that was saved into a folder, of whichever kind it is.

        Raises:
            ValueError: if there is none.
        """
        from rebus.tokenizers.pretrained_text_tokenizer import PretrainedTextTokenizer  # which imports from here

        own = (Path(folder) / MODEL_FILE).is_file()
        return SentencePieceTokenizer.load(folder) if own else PretrainedTextTokenizer.load(folder)


class SentencePieceTokenizer:
    """The project's own text tokenizer, learned from its texts.

    Every capital letter A-Z and digit is a piece of its own, so that a model spells words with them.
    """

    special = SpecialIds()

    def __init__(self, model_proto: bytes):
        """Takes a serialized SentencePiece model such as ``train`` makes.

        Raises:
            ValueError: if the model is not byte-pair encoding, would alter text, or has other special or user-defined
                pieces.
        """
        self.model_proto = model_proto
        _check(model_proto)
        self._processor = SentencePieceProcessor(model_proto=model_proto)
        self.hash = hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()[:16]
        self._space_mark_ids = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode()]

    @classmethod
    def train(cls, texts: Iterable[str], num_pieces: int) -> "SentencePieceTokenizer":
        """Returns a tokenizer learned from ``texts``; the same texts in the same order give the same tokenizer.

        Raises:
            ValueError: if ``texts`` cannot yield ``num_pieces`` pieces, ``num_pieces`` is less than the fixed ones
                (specials, bytes, printable ASCII), or the texts hold no space.
        """
        written = io.BytesIO()
        # SentencePiece stops adding required characters once these cover the texts, so the space mark, which is in
        # every text, must not be one of them.
        letters = "".join(chr(code) for code in range(ord("!"), ord("~") + 1) if chr(code) not in SPELLED)
        try:
            SentencePieceTrainer.train(
                sentence_iterator=_lines(texts),
                model_writer=written,
                model_type="bpe",
                vocab_size=num_pieces,
                unk_id=cls.special.unk,
                bos_id=cls.special.bos,
                eos_id=cls.special.eos,
                pad_id=cls.special.pad,
                user_defined_symbols=list(SPELLED),
                required_chars=letters,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                byte_fallback=True,
                max_sentence_length=1 << 20,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"num_pieces must suit the texts, got {num_pieces} (SentencePiece: {error})") from error
        return cls(written.getvalue())

    @property
    def num_pieces(self) -> int:
        """Number of ids, with the four special ones."""
        return self._processor.get_piece_size()

    def vocabulary(self, layout: CodeLayout) -> Vocabulary:
        """Returns the one id space of these pieces and the codes of pictures."""
        return Vocabulary(self.num_pieces, layout, self.special)

    def encode(self, text: str) -> list[int]:
        """Returns the ids of ``text``; ``decode`` gives back every character.

        Raises:
            ValueError: if ``text`` holds half of a surrogate pair, which is not a character.
        """
        utf8(text)
        # A space mark that the user typed would decode to a space, so its bytes are written out.
        first, *others = text.split(SPACE_MARK)
        ids = self._processor.encode(first)
        for other in others:
            ids += self._space_mark_ids + self._processor.encode(other)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: if an id is special or no text piece.
        """
        for token in ids:
            if not self.special.pad < token < self.num_pieces:
                raise ValueError(f"text ids must lie in ({self.special.pad}, {self.num_pieces}), got {token}")
        return self._processor.decode(list(ids))

    def save(self, folder: Path | str, vocabulary: Vocabulary | None = None) -> None:
        """Writes ``tokenizer.model`` and the files from which ``transformers.AutoTokenizer`` loads the same tokenizer.

        With a vocabulary, AutoTokenizer also knows the names of its control tokens and codes. It reads none of them
        out of text unless it is called with ``split_special_tokens=False``, and codes not even then.

        Raises:
            ValueError: if the vocabulary counts other text pieces, or a text piece bears the name of another id.
        """
        if vocabulary is not None and vocabulary.num_text != self.num_pieces:
            raise ValueError(f"vocabulary must have {self.num_pieces} text pieces, got {vocabulary.num_text}")
        # Imported here, since that takes longer than all that a loaded tokenizer is asked for.
        from transformers import PreTrainedTokenizerFast

        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / MODEL_FILE).write_bytes(self.model_proto)
        unk, bos, eos, pad = SPECIAL_NAMES
        PreTrainedTokenizerFast(
            tokenizer_object=self._backend(vocabulary.names_beyond_text() if vocabulary else []),
            unk_token=unk,
            bos_token=bos,
            eos_token=eos,
            pad_token=pad,
            extra_special_tokens=[*vocabulary.control_names, *vocabulary.size_names] if vocabulary else [],
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path | str) -> "SentencePieceTokenizer":
        """Returns the tokenizer that ``save`` wrote."""
        return cls((Path(folder) / MODEL_FILE).read_bytes())

    def _backend(self, names_beyond_text: list[str]) -> tokenizers.Tokenizer:
        # Pieces hold real spaces here, so that a typed space mark is an unknown character and falls back to bytes.
        names = [self._processor.id_to_piece(index).replace(SPACE_MARK, " ") for index in range(self.num_pieces)]
        names += names_beyond_text
        ids = {name: index for index, name in enumerate(names)}
        if len(ids) < len(names):
            raise ValueError("text pieces must not bear the names of control tokens or codes, got one that does")
        backend = tokenizers.Tokenizer(models.BPE(ids, self._merges(names), unk_token=names[0], byte_fallback=True))
        backend.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(f"[{SPELLED}]"), "isolated")
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        return backend

    def _merges(self, names: list[str]) -> list[tuple[str, str]]:
        processor = self._processor
        fixed = (processor.is_byte, processor.is_control, processor.is_unknown)
        learned = [names[i] for i in range(self.num_pieces) if not any(is_fixed(i) for is_fixed in fixed)]
        known = set(learned).difference(SPELLED)
        # A piece is merged from any two pieces that it is made of, the more frequent (earlier) piece first.
        return [
            (piece[:cut], piece[cut:])
            for piece in learned
            for cut in range(1, len(piece))
            if piece[:cut] in known and piece[cut:] in known
        ]


def utf8(text: str) -> bytes:
    """Returns the bytes of a text.

    Raises:
        ValueError: if it holds half of a surrogate pair, which is not a character.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text must be characters, got a lone surrogate at {error.start}") from error


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from (line for line in text.replace(SKIPPED, "\n").splitlines() if line)


def _check(model_proto: bytes):
    model = sentencepiece_model_pb2.ModelProto.FromString(model_proto)  # pyright: ignore[reportAttributeAccessIssue]
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    special = (trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id)
    if SpecialIds(*special) != SpecialIds():
        raise ValueError(f"unk, bos, eos and pad must have ids 0, 1, 2 and 3, got {special}")
    if trainer.model_type != trainer.BPE or not trainer.byte_fallback:
        raise ValueError("the model must be byte-pair encoding with byte fallback, got another kind")
    if normalizer.precompiled_charsmap or normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces:
        raise ValueError("the model must leave text as it is, got a normalizer that alters it")
    spelled = {piece.piece for piece in model.pieces if piece.type == piece.USER_DEFINED}
    if spelled != set(SPELLED):
        raise ValueError(f"user-defined pieces must be the letters A-Z and digits, got {sorted(spelled)}")
    if not any(piece.piece == SPACE_MARK for piece in model.pieces):
        raise ValueError("the model must have a piece for the space, got none (train it on texts with spaces)")
