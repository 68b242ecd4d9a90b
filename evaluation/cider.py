"""How much a caption has in common with what several people say of the picture; words of many pictures count less.

``cider`` is the metric as it was defined, in [0, 1]. ``cider_d`` is its version that repeating words does not fool, in
[0, 10]: what captioning results mean by CIDEr, often multiplied by 100.

Source: Vedantam et al., "CIDEr: Consensus-based Image Description Evaluation", https://arxiv.org/abs/1411.5726, the
sections on the metric and on gameability.
Differs: n-grams are counted, not divided by how many there are, as in the authors' code and in ``pycocoevalcap``. In
CIDEr that cancels; in CIDEr-D it decides which of two weights is the smaller. Words are split by a rule of one line
instead of the Penn Treebank's, so texts with contractions may score a little otherwise there.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LONGEST = 4
"""Words of the longest n-grams; those of each length count alike."""
SIGMA = 6.0
"""By how many words a caption may be longer or shorter before CIDEr-D counts it less: a standard deviation."""
TIMES = 10.0
"""By which CIDEr-D is multiplied to be as large as CIDEr was."""

Ngram = tuple[str, ...]
_WORD = re.compile(r"[^\W_]+(?:['.-][^\W_]+)*")


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, without punctuation: ``a cat's pop-up, 3.5 m`` has four."""
    return _WORD.findall(text.lower())


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns the CIDEr of each caption, in [0, 1]: the mean cosine of its weighted n-grams with those of a reference.

    Args:
        captions: one for each picture.
        references: right captions of each picture. How rare an n-gram is, is counted over all these pictures.

    Raises:
        ValueError: if there are fewer than two pictures, not as many references, or none for one of them.
    """
    return [min(1.0, score) for score in _scores(captions, references, _cosine)]  # rounding can pass 1


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns the CIDEr-D of each caption, in [0, 10]; the arguments are those of ``cider``.

    An n-gram counts no more often than the reference has it, and captions of another length count less.

    Raises:
        ValueError: as ``cider``.
    """
    return _scores(captions, references, lambda one, other, size: TIMES * _clipped_cosine(one, other, size))


@dataclass(frozen=True)
class _Weighed:
    """A text as the metric sees it."""

    num_words: int
    weights: tuple[Mapping[Ngram, float], ...]
    """Of the n-grams of each length, how often one occurs times how rare it is."""
    norms: tuple[float, ...]


def _scores(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    likeness: Callable[[_Weighed, _Weighed, int], float],
) -> list[float]:
    """Returns for each caption the mean of its likeness to each reference over n-grams of each length."""
    if len(captions) != len(references) or len(captions) < 2:
        got = f"{len(captions)} captions and references of {len(references)}"
        raise ValueError(f"captions must be of at least 2 pictures, with references for each, got {got}")
    if empty := [index for index, several in enumerate(references) if not several]:
        raise ValueError(f"references must be at least one for each picture, got none for {empty}")
    told = [[_ngrams(text) for text in several] for several in references]
    frequency = Counter(ngram for several in told for ngram in set().union(*several))
    rarity = {ngram: math.log(len(told) / number) for ngram, number in frequency.items()}
    unknown = math.log(len(told))  # of what no reference has, which can lengthen a caption but match nothing
    scores = []
    for caption, several in zip(captions, told, strict=True):
        said = _weighed(_ngrams(caption), rarity, unknown)
        others = [_weighed(one, rarity, unknown) for one in several]
        likes = [likeness(said, other, size) for other in others for size in range(LONGEST)]
        scores.append(math.fsum(likes) / len(likes))
    return scores


def _ngrams(text: str) -> Counter[Ngram]:
    spoken = words(text)
    lengths = range(1, LONGEST + 1)
    return Counter(tuple(spoken[at : at + size]) for size in lengths for at in range(len(spoken) - size + 1))


def _weighed(ngrams: Counter[Ngram], rarity: Mapping[Ngram, float], unknown: float) -> _Weighed:
    weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(LONGEST))
    for ngram, number in ngrams.items():
        weights[len(ngram) - 1][ngram] = number * rarity.get(ngram, unknown)
    norms = tuple(math.sqrt(math.fsum(value**2 for value in each.values())) for each in weights)
    return _Weighed(sum(number for ngram, number in ngrams.items() if len(ngram) == 1), weights, norms)


def _cosine(one: _Weighed, other: _Weighed, size: int) -> float:
    there = other.weights[size]
    product = math.fsum(value * there.get(ngram, 0.0) for ngram, value in one.weights[size].items())
    return _over_norms(product, one, other, size)


def _clipped_cosine(one: _Weighed, other: _Weighed, size: int) -> float:
    there = other.weights[size]
    pairs = ((value, there.get(ngram, 0.0)) for ngram, value in one.weights[size].items())
    product = math.fsum(min(value, most) * most for value, most in pairs)
    gap = (one.num_words - other.num_words) ** 2 / (2 * SIGMA**2)
    return math.exp(-gap) * _over_norms(product, one, other, size)


def _over_norms(product: float, one: _Weighed, other: _Weighed, size: int) -> float:
    """Returns a product of two texts' weights over their lengths; 0 where a text has no n-gram that counts."""
    norms = one.norms[size] * other.norms[size]
    return product / norms if norms else 0.0
