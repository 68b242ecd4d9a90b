"""Which share of the words that a picture should show can be read in it.

Source: the text score of LongText-Bench, https://github.com/X-Omni-Team/X-Omni (textbench/summary_scores.py), in Geng
et al., "X-Omni", https://arxiv.org/abs/2507.22058.
Differs: RapidOCR reads instead of Qwen2.5-VL, and all letters count as letters, whatever their accents.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class WordRecall:
    """Words of one picture."""

    num_read: int
    """How many of the words asked for can be read, each as often as it is asked for."""
    num_asked: int

    @property
    def share(self) -> float:
        """The share of them, in [0, 1]."""
        return self.num_read / self.num_asked


def word_recall(asked: Iterable[str], lines: Iterable[str]) -> WordRecall:
    """Compares the texts asked for with the lines that were read; order, case and punctuation do not matter.

    Raises:
        ValueError: if no word is asked for.
    """
    wanted, read = (Counter(words(" ".join(texts))) for texts in (asked, lines))
    if not wanted:
        raise ValueError("asked must hold at least one word, got none")
    return WordRecall((wanted & read).total(), wanted.total())


def words(text: str) -> list[str]:
    """Returns the words of a text in small letters; what is neither letter nor digit is left out and parts no words."""
    return "".join(letter for letter in text.lower() if letter.isalnum() or letter.isspace()).split()


def text_score(recalls: Sequence[WordRecall]) -> float:
    """Returns LongText-Bench's score: the share of the words of all pictures together.

    Raises:
        ValueError: if there are no pictures.
    """
    if not recalls:
        raise ValueError("recalls must be at least one, got none")
    return sum(one.num_read for one in recalls) / sum(one.num_asked for one in recalls)
