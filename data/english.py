"""English names of the emoji concepts: article, singular, plural, and whether they can be counted.

Rules do most of the work; ``english_names`` holds the exceptions.
"""

import re
import unicodedata
from dataclasses import dataclass

from rebus.data.english_names import (
    COUNTED_BY,
    IRREGULAR_PLURALS,
    MASS,
    PROPER,
    RENAMED,
    SIGNS,
    TAKES_ARTICLE,
    UNIQUE,
)

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_COUNTED_BY = {thing.replace("_", " "): unit for unit, things in COUNTED_BY.items() for thing in things.split()}
_PREPOSITIONS = "with|without|in|on|behind|over|at|from|under|wearing"
_VERBS = "tipping|raising|feeding|getting|rowing|bouncing|taking"
_PARTICIPLES = (
    "showing|facing|tilted|pointed|pointing|curving|fluttering|rolling|blowing|savoring|exhaling|vomiting|holding|"
    "screaming|forming|making"
)
_AFTER_HEAD = re.compile(
    rf" (?=(?:of|{_PREPOSITIONS}|{_PARTICIPLES})\b)"
    r"|(?<=^man) (?=\w+ing\b)|(?<=^woman) (?=\w+ing\b)|(?<=^person) (?=\w+ing\b)"
)
"""Where the part of a noun phrase ends that takes the plural."""
_VOWEL_SOUND = re.compile(
    r"(?!uni|eu|ew|one|once|NEW\b)([aeiou]|hour|herb|x-|UP!|[AEFHILMNORSX](\b|[A-Z]{1,2}\b)|[AEIO][a-z])"
)


@dataclass(frozen=True)
class Name:
    """A noun phrase in its forms."""

    article: str
    """``a``, ``an``, ``the`` or nothing."""
    noun: str
    """The singular without article: ``owl``, ``pair of jeans``."""
    plural: str
    """The plural without number: ``owls``, ``pairs of jeans``."""
    countable: bool
    """Whether it makes sense to ask how many there are."""

    @property
    def singular(self) -> str:
        """The singular with its article: ``an owl``, ``a pair of jeans``."""
        return f"{self.article} {self.noun}" if self.article else self.noun

    @property
    def definite(self) -> str:
        """The singular with ``the``: ``the owl``; proper names go without."""
        return self.noun if self.noun in PROPER else f"the {self.noun}"

    def counted(self, number: int) -> str:
        """Returns the phrase with a number word: ``an owl`` for 1, ``two owls`` for 2, ``11 owls`` beyond ten."""
        if number == 1:
            return self.singular
        return f"{NUMBER_WORDS[number] if number < len(NUMBER_WORDS) else number} {self.plural}"


def name_of_label(label: str) -> Name:
    """Returns the English name of a CLDR label."""
    noun = _noun(_ascii(label))
    if noun in MASS | PROPER:
        return Name("", noun, noun, False)
    if noun in UNIQUE:
        return Name("the", noun, plural(noun), False)
    return Name(article(noun), noun, plural(noun), True)


def article(phrase: str) -> str:
    """Returns ``a`` or ``an`` by the first sound of a phrase."""
    return "an" if _VOWEL_SOUND.match(phrase) else "a"


def with_article(phrase: str) -> str:
    """Returns a countable singular with its indefinite article: ``an orange background``."""
    return f"{article(phrase)} {phrase}"


def plural(noun: str) -> str:
    """Returns the plural of a noun phrase: its head changes, what describes the head does not."""
    noun = re.sub(r"^(wo)?man's ", lambda match: f"{match[1] or ''}men's ", noun)
    head = _AFTER_HEAD.split(noun, maxsplit=1)[0]
    rest = noun[len(head) :]
    return " and ".join(_plural_of_last_word(part) for part in head.split(" and ")) + rest


def _ascii(label: str) -> str:
    plain = label.translate({0x2019: "'", 0x201C: '"', 0x201D: '"'})
    return unicodedata.normalize("NFKD", plain).encode("ascii", "ignore").decode()


def _noun(label: str) -> str:
    """Returns the noun phrase that names what a label stands for."""
    if label in _COUNTED_BY:
        return f"{_COUNTED_BY[label]} of {label}"
    if label in SIGNS:
        return f"{label} sign"
    if label.startswith("keycap: "):
        return f"keycap with {label.removeprefix('keycap: ')}"
    if re.search(r"o'clock|-thirty", label):
        return f"clock at {label}"
    noun = RENAMED.get(label, label)
    noun = re.sub(r"^(\w+): beard$", r"\1 with a beard", noun)
    noun = re.sub(r"^(\w+): (.* hair)$", r"\1 with \2", noun)
    noun = re.sub(rf"^man (?!\w+ing\b|(?:{_PREPOSITIONS})\b)", "male ", noun)
    noun = re.sub(rf"^woman (?!\w+ing\b|(?:{_PREPOSITIONS})\b)", "female ", noun)
    return re.sub(rf"\b({_PREPOSITIONS}|{_VERBS}) ((?!an? |the |its )(?:[\w-]+ ){{0,2}}?)([\w-]+)$", _put_article, noun)


def _put_article(match: re.Match[str]) -> str:
    verb, adjectives, noun = match.groups()
    return f"{verb} {with_article(adjectives + noun)}" if noun in TAKES_ARTICLE else match.group()


def _plural_of_last_word(phrase: str) -> str:
    before, space, word = phrase.rpartition(" ")
    return before + space + _plural_of_word(word)


def _plural_of_word(word: str) -> str:
    if word in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[word]
    if word.endswith("fish"):
        return word
    if word.endswith("man"):
        return word[:-3] + "men"
    if re.search(r"[^aeiou]y$", word):
        return word[:-1] + "ies"
    return word + ("es" if re.search(r"(s|x|z|ch|sh)$", word) else "s")
