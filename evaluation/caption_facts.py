"""The facts that a caption states, read by the grammar of our captions, and those that a scene shows."""

import re
from collections.abc import Iterator, Sequence

from rebus.data.captions import OPPOSITES, relation
from rebus.data.emoji import STYLE_PHRASES, EmojiPack
from rebus.data.english import NUMBER_WORDS
from rebus.data.scenes import BACKGROUNDS, Scene

Fact = tuple[str, ...]
"""``(kind, value, ...)``: an object with its number, the style, the background, the sign or a relation."""

_OPENINGS = ("a picture of ", "there is ", "there are ", "just ", "a group of ")
_BACKGROUND = re.compile(rf" (?:on|against|with) an? ({'|'.join(BACKGROUNDS)}) background$")
_SIGNS = (
    re.compile(r'(?: and| with) a sign that (?:says|reads) "([^"]+)"$'),
    re.compile(r' and the word "([^"]+)" on a sign$'),
    re.compile(r'^a sign that (?:says|reads) "([^"]+)" and '),
)
_STYLES = {phrase: style for style, phrase in STYLE_PHRASES.items()}
_STYLE = "|".join(re.escape(phrase) for phrase in _STYLES)
_STYLE_PLACES = (re.compile(rf",? (?:drawn )?({_STYLE})$"), re.compile(rf"^({_STYLE}), "))
_MIRRORED = {opposite: direction for direction, opposite in OPPOSITES.items()}


def scene_facts(scene: Scene) -> frozenset[Fact]:
    """Returns all facts of a scene: objects and how many, style, background, sign, and how two things stand."""
    concepts = [item.concept_id for item in scene.items]
    facts: set[Fact] = {("object", concept, str(concepts.count(concept))) for concept in concepts}
    facts |= {("style", scene.style), ("background", scene.background)}
    if scene.sign is not None:
        facts.add(("sign", scene.sign))
    if len(set(concepts)) == 2:
        facts.add(_relation_fact(concepts[0], relation(*scene.items), concepts[1]))
    return frozenset(facts)


class CaptionReader:
    """Reads captions about a set of concepts."""

    def __init__(self, pack: EmojiPack, concepts: Sequence[str]) -> None:
        self._objects: dict[str, Fact] = {}
        self._definite: dict[str, str] = {}
        for concept in concepts:
            name = pack.concepts[concept].name
            self._definite[name.definite.lower()] = concept
            self._objects[name.singular.lower()] = ("object", concept, "1")
            for number in range(2, len(NUMBER_WORDS)):
                self._objects[name.counted(number).lower()] = ("object", concept, str(number))

    def facts(self, caption: str) -> frozenset[Fact]:
        """Returns the facts that a caption states; none at all if any part of it is not understood."""
        facts: set[Fact] = set()
        text = caption.strip().removesuffix(".")
        text = text[:1].lower() + text[1:]
        text = self._peel(text, _STYLE_PLACES, "style", facts)
        text = self._peel(text, (_BACKGROUND,), "background", facts)
        text = self._peel(text.removeprefix(_OPENINGS[0]), _SIGNS, "sign", facts)
        text = text.lower()
        for opening in ("", *_OPENINGS):  # first as it is: some names look like openings (a group of musical notes)
            text = text.removeprefix(opening)
            if things := self._things(text):
                return frozenset(facts | things)
        return frozenset()

    def _peel(self, text: str, patterns: Sequence[re.Pattern[str]], kind: str, facts: set[Fact]) -> str:
        """Returns the text without its first match of a pattern, whose group becomes a fact."""
        for pattern in patterns:
            if match := pattern.search(text):
                value = match.group(1)
                facts.add((kind, _STYLES.get(value, value)))
                return text[: match.start()] + text[match.end() :]
        return text

    def _things(self, text: str) -> set[Fact]:
        """Returns the facts of what stands on the ground: one thing, or two and perhaps how they stand."""
        if text in self._objects:
            return {self._objects[text]}
        for direction in (*OPPOSITES, *_MIRRORED):
            for one, other in _halves(text, f" {direction} "):
                if one in self._objects and other in self._objects:
                    return self._related(one, direction, other)
        for joint in (" and ", " together with "):
            for one, other in _halves(text, joint):
                if one in self._objects:
                    if other in self._objects:
                        return {self._objects[one], self._objects[other]}
                    if stated := self._restated(one, other):
                        return stated
        return set()

    def _restated(self, one: str, rest: str) -> set[Fact]:
        """Reads the rest of ``a cat and a dog, the cat is above the dog``."""
        other, _, clause = rest.partition(", ")
        for direction in (*OPPOSITES, *_MIRRORED):
            for subject, place in _halves(clause, f" is {direction} "):
                if other in self._objects and subject in self._definite and place in self._definite:
                    stated = self._objects[one], self._objects[other]
                    if {self._definite[subject], self._definite[place]} == {fact[1] for fact in stated}:
                        return {*stated, _relation_fact(self._definite[subject], direction, self._definite[place])}
        return set()

    def _related(self, one: str, direction: str, other: str) -> set[Fact]:
        first, second = self._objects[one], self._objects[other]
        return {first, second, _relation_fact(first[1], direction, second[1])}


def _relation_fact(first: str, direction: str, second: str) -> Fact:
    if direction in _MIRRORED:
        return ("relation", second, _MIRRORED[direction], first)
    return ("relation", first, direction, second)


def _halves(text: str, joint: str) -> Iterator[tuple[str, str]]:
    """Yields what stands before and after each occurrence of the joint."""
    for match in re.finditer(re.escape(joint), text):
        yield text[: match.start()], text[match.end() :]
