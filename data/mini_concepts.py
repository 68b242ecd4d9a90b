"""The 48 concepts of the small model that ships: countable things that look unlike one another."""

from rebus.data.emoji import EmojiPack

MINI_CONCEPTS = (
    *("cat", "dog", "rabbit", "elephant", "giraffe", "zebra", "pig", "cow", "penguin", "owl"),
    *("duck", "frog", "turtle", "snake", "fish", "octopus", "crab", "butterfly", "honeybee", "red apple"),
    *("banana", "pineapple", "strawberry", "watermelon", "carrot", "broccoli", "mushroom", "pizza", "hamburger"),
    *(
        "doughnut",
        "cupcake",
        "ice cream",
        "automobile",
        "bus",
        "bicycle",
        "airplane",
        "rocket",
        "sailboat",
        "house",
        "umbrella",
    ),
    *("balloon", "guitar", "key", "camera", "alarm clock", "jeans", "cactus", "sunflower"),
)
"""Their CLDR labels."""


def mini_concepts(pack: EmojiPack) -> tuple[str, ...]:
    """Returns the ids of the 48 concepts."""
    return tuple(pack.find(label).id for label in MINI_CONCEPTS)
