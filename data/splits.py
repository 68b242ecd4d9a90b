"""What training never shows: held-out concept pairs, counts, (concept, style) cells and sign words, by rule.

Every rule is a stable hash of the names, so the split is the same on every machine and for every set of concepts. No
concept loses more than one of its styles and one of its counts, so each one is always seen in training.
"""

import hashlib
from itertools import combinations

from rebus.data.emoji import STYLES
from rebus.data.scenes import Scene

COUNTS = (2, 3, 4, 5, 6)
"""How many times a concept may appear in a scene that counts it."""


def held_out_pair(concept_a: str, concept_b: str) -> bool:
    """Whether two concepts never appear together: 10 % of the pairs, in whatever order."""
    return _hash("pair", *sorted((concept_a, concept_b))) % 10 == 0


def held_out_count(concept: str, count: int) -> bool:
    """Whether a concept never appears this often: one of the counts 2 to 6 for every second concept, 10 % of all."""
    value = _hash("count", concept)
    return value % 2 == 0 and count == COUNTS[value // 2 % len(COUNTS)]


def held_out_cell(concept: str, style: str) -> bool:
    """Whether a concept never appears in this style: one of the 3 styles for 30 % of the concepts, 10 % of all."""
    value = _hash("cell", concept)
    return value % 10 < 3 and style == STYLES[value // 10 % len(STYLES)]


def held_out_word(word: str) -> bool:
    """Whether a word is never on a sign: 15 % of the words."""
    return _hash("word", word) % 100 < 15


def held_out_facts(scene: Scene) -> frozenset[str]:
    """Returns which kinds of held-out things a scene shows, out of ``cell``, ``pair``, ``count`` and ``word``."""
    concepts = [item.concept_id for item in scene.items]
    facts = {
        "cell": any(held_out_cell(concept, scene.style) for concept in concepts),
        "pair": any(held_out_pair(*pair) for pair in combinations(sorted(set(concepts)), 2)),
        "count": any(held_out_count(concept, concepts.count(concept)) for concept in set(concepts)),
        "word": scene.sign is not None and held_out_word(scene.sign),
    }
    return frozenset(kind for kind, held_out in facts.items() if held_out)


def is_held_out(scene: Scene) -> bool:
    """Whether a scene shows anything that training must not show."""
    return bool(held_out_facts(scene))


def _hash(*names: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(names).encode()).digest()[:8], "big")
