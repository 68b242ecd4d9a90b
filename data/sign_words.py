"""The words that signs say: about a thousand common ones, taken from the labels and tags of the emoji pack."""

import re
from collections import Counter

from rebus.data.emoji import EmojiPack

_MIN_CONCEPTS = 2
_LEFT_OUT = frozenset(
    "abcd adorbs alcohol arrest bae bald bathing bday beer beg behind belly bent bestie bff blame blessed blind "
    "bloated blood bomb booze bro bust cancer chuck claus colada combat cop dating dead deaf death demon devil "
    "disease djinn drinks drunk duel dunno dying elderly evil explode fangs fleek flirt flu gait gasp gay gesture "
    "gibbous glbt glbtq grapple grimace gross haha halt hehe hindu hmm homie horns horror hump hurl hurt idk ily "
    "index injury irish islam jew jewish jinn judaism keycap latin lesbian lgbt lgbtq lgbtqia lmao lob lol london "
    "mad massage meh mexican miss muah muslim nanny nursing omg omw oops organ ouch overeat peep penalty pga "
    "pissed pity pouting pray prayer probing putt queer rad rage ramadan rofl roflmao sarcasm sassy scowl sexy "
    "shh shot sick skull slap slay smell smh smoking smooch soldier sorcery steamy stink sulk swag sweat tango "
    "tbt tee toilet trans ttyl turban ugh undead vampire villain virus vomit war weapon whine whoa witch woah "
    "woohoo woozy wtv xmas xoxo yikes yogi yolo zombie zzz".split()
)
"""Slang, odd words, and words that one would not put on a sign at random."""


def sign_words(pack: EmojiPack) -> tuple[str, ...]:
    """Returns the words in capital letters, 3 to 7 letters A to Z each, in alphabetical order."""
    num_concepts: Counter[str] = Counter()
    for concept in pack.concepts.values():
        words = {word for word in (*concept.label.split(), *concept.tags) if re.fullmatch("[a-z]{3,7}", word)}
        num_concepts.update(words)
    common = (word for word, count in num_concepts.items() if count >= _MIN_CONCEPTS and word not in _LEFT_OUT)
    return tuple(sorted(word.upper() for word in common))
