"""The 32 concepts of the small model that ships, countable things that look unlike one another; and all others."""

from rebus.data.emoji import EmojiPack

MINI_CONCEPTS = (
    *("cat", "dog", "rabbit", "elephant", "penguin", "owl", "duck", "frog", "turtle", "octopus", "butterfly"),
    *("honeybee", "red apple", "banana", "pineapple", "strawberry", "watermelon", "carrot", "mushroom", "pizza"),
    *("hamburger", "doughnut", "ice cream", "automobile", "bicycle", "airplane", "rocket", "sailboat", "house"),
    *("umbrella", "balloon", "guitar"),
)
"""Their CLDR labels."""
_GROUPS_OF_THINGS = ("animals-nature", "food-drink", "travel-places", "objects", "activities")


def mini_concepts(pack: EmojiPack) -> tuple[str, ...]:
    """Returns the ids of the 32 concepts."""
    return tuple(pack.find(label).id for label in MINI_CONCEPTS)


def other_concepts(pack: EmojiPack) -> tuple[str, ...]:
    """Returns the ids of all other things in the pack: animals, plants, food, places and objects."""
    known = set(mini_concepts(pack))
    return tuple(one.id for one in pack.concepts.values() if one.group in _GROUPS_OF_THINGS and one.id not in known)
