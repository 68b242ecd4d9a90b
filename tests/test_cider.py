import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.evaluation.cider import cider, cider_d, words

TEXTS = st.lists(st.sampled_from("a the cat dog red on sits mat".split()), min_size=1, max_size=9).map(" ".join)
PICTURES = st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=2, max_size=4)
CAPTIONS = ["a cat on a red mat", "two dogs run", "the the the the house", "a small boat"]
REFERENCES = [
    ["a cat on a red mat", "a red mat with a cat on it"],
    ["two dogs are running on grass", "dogs run on the grass", "a pair of dogs"],
    ["the white house", "a house on a hill"],
    ["a boat at sea in the evening light of a cold day"],
]
COCO = [7.268417257370897, 1.723879502851455, 1.3368495411034949, 0.199290322240063]
"""What pycocoevalcap 1.2 says of these."""


def test_values_by_hand():
    # Each word is in one of two pictures, so all n-grams weigh log 2, which cancels.
    references = [["red cat"], ["blue dog"]]
    # "red": 1-grams 1 / sqrt 2, no 2-grams; "blue dog sits": 2 of 3 and 2 words, 1 of 2 and 1 pair of words
    expected = [(1 / math.sqrt(2)) / 4, (2 / math.sqrt(3 * 2) + 1 / math.sqrt(2)) / 4]
    assert cider(["red", "blue dog sits"], references) == pytest.approx(expected)
    shorter = math.exp(-1 / 72)
    assert cider_d(["red", "blue dog sits"], references) == pytest.approx([10 * shorter * one for one in expected])
    # A word of both pictures weighs nothing; "red red" has (2, 0) beside (1, 1) and is clipped to (1, 0).
    assert cider(["a red red", "a"], [["a red cat"], ["a dog"]])[0] == pytest.approx(_triple(2 / 2 / math.sqrt(2)))
    clipped = cider_d(["a red red", "a"], [["a red cat"], ["a dog"]])
    assert clipped == pytest.approx([10 * _triple(1 / 2 / math.sqrt(2)), 0.0])


def _triple(single):
    """Returns the mean over lengths: of two pairs of words, "a red" is shared; the only triples differ."""
    return (single + 1 / 2) / 4


def test_cider_d_is_that_of_the_code_of_coco():
    assert cider_d(CAPTIONS, REFERENCES) == pytest.approx(COCO)


@given(PICTURES)
def test_ranges_and_perfection(pictures):
    captions, references = [one for one, _ in pictures], [several for _, several in pictures]
    plain, guarded = cider(captions, references), cider_d(captions, references)
    assert all(0 <= other / 10 <= one + 1e-9 <= 1 + 2e-9 for one, other in zip(plain, guarded, strict=True))
    first = [several[0] for several in references]
    alone = [several[:1] for several in references]
    for own, best in zip(cider(captions, alone), cider(first, alone), strict=True):
        assert own <= best + 1e-9


@given(PICTURES, st.randoms(use_true_random=False))
def test_order_of_references_and_case_do_not_matter(pictures, rng):
    captions, references = [one for one, _ in pictures], [several for _, several in pictures]
    shuffled = [rng.sample(several, len(several)) for several in references]
    shouted = [f"{one.upper()}!" for one in captions]
    assert cider_d(shouted, shuffled) == pytest.approx(cider_d(captions, references))


def test_repeating_a_rare_word_pays_in_cider_alone():
    references = [["a cat on the mat"], ["a dog on the mat"], ["a bird on the roof"]]
    others = ["a dog", "a bird"]
    assert cider(["cat cat cat", *others], references)[0] == pytest.approx(cider(["cat", *others], references)[0])
    repeated, once = (cider_d([text, *others], references)[0] for text in ("cat cat cat", "cat"))
    assert repeated < once / 2


def test_words_are_lower_case_without_punctuation():
    assert words('A cat\'s pop-up, 3.5 m; "STOP".') == ["a", "cat's", "pop-up", "3.5", "m", "stop"]


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        (["a"], [["a"]], "at least 2 pictures"),
        (["a", "b"], [["a"]], "got 2 captions and references of 1"),
        (["a", "b"], [["a"], []], r"got none for \[1\]"),
    ],
)
def test_wrong_arguments_are_refused(captions, references, message):
    with pytest.raises(ValueError, match=message):
        cider(captions, references)
