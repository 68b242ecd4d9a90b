"""The 32 concepts of the small model that ships: countable things that look unlike one another."""

from rebus.data.emoji import EmojiPack

MINI_CONCEPTS = (
    *("cat", "dog", "rabbit", "elephant", "penguin", "owl", "duck", "frog", "turtle", "octopus", "butterfly"),
    *("honeybee", "red apple", "banana", "pineapple", "strawberry", "watermelon", "carrot", "mushroom", "pizza"),
    *("hamburger", "doughnut", "ice cream", "automobile", "bicycle", "airplane", "rocket", "sailboat", "house"),
    *("umbrella", "balloon", "guitar"),
)
"""Their CLDR labels."""


def mini_concepts(pack: EmojiPack) -> tuple[str, ...]:
    """Returns the ids of the 32 concepts."""
    return tuple(pack.find(label).id for label in MINI_CONCEPTS)
