"""Which emoji show a thing of each class that GenEval asks for.

Source: the 80 class names of https://github.com/djghosh13/geneval (prompts/object_names.txt), those of COCO.
Differs: the emoji show 66 of them. There is none of a baseball bat, baseball glove, bench, dining table, fire hydrant,
hair drier, microwave, oven, parking meter, refrigerator, sink, tennis racket, toaster or tv remote.
"""

from collections.abc import Mapping, Sequence

_HOURS = "one two three four five six seven eight nine ten eleven twelve".split()
_BIRDS = (
    *("bird", "black bird", "duck", "owl", "penguin", "eagle", "dove", "swan", "flamingo", "parrot", "peacock"),
    *("goose", "chicken", "rooster", "turkey", "baby chick", "front-facing baby chick", "dodo"),
)
_PEOPLE = (
    *("person", "man", "woman", "child", "boy", "girl", "baby", "older person", "old man", "old woman"),
    *("person standing", "man standing", "woman standing", "person walking", "man walking", "woman walking"),
)
_BALLS = (
    *("soccer ball", "basketball", "volleyball", "baseball", "softball", "tennis", "american football"),
    "rugby football",
)
CLASS_LABELS: Mapping[str, Sequence[str]] = {
    "person": _PEOPLE,
    "bicycle": ("bicycle",),
    "car": ("automobile", "oncoming automobile", "taxi", "oncoming taxi", "sport utility vehicle", "racing car")
    + ("police car", "oncoming police car"),
    "motorcycle": ("motorcycle",),
    "airplane": ("airplane", "small airplane"),
    "bus": ("bus", "oncoming bus", "minibus", "trolleybus"),
    "train": ("train", "locomotive", "high-speed train", "bullet train"),
    "truck": ("delivery truck", "articulated lorry", "pickup truck", "fire engine"),
    "boat": ("sailboat", "motor boat", "speedboat", "canoe", "ferry", "ship", "passenger ship"),
    "traffic light": ("vertical traffic light", "horizontal traffic light"),
    "stop sign": ("stop sign",),
    "bird": _BIRDS,
    "cat": ("cat", "black cat", "cat face"),
    "dog": ("dog", "dog face", "poodle", "guide dog", "service dog"),
    "horse": ("horse", "horse face"),
    "sheep": ("ewe", "ram"),
    "cow": ("cow", "cow face"),
    "elephant": ("elephant",),
    "bear": ("bear", "polar bear"),
    "zebra": ("zebra",),
    "giraffe": ("giraffe",),
    "backpack": ("backpack",),
    "umbrella": ("umbrella", "closed umbrella", "umbrella with rain drops", "umbrella on ground"),
    "handbag": ("handbag", "clutch bag", "purse"),
    "tie": ("necktie",),
    "suitcase": ("luggage",),
    "frisbee": ("flying disc",),
    "skis": ("skis",),
    "snowboard": ("snowboarder",),  # who stands on one
    "sports ball": _BALLS,
    "kite": ("kite",),
    "skateboard": ("skateboard",),
    "surfboard": ("person surfing", "man surfing", "woman surfing"),
    "bottle": ("bottle with popping cork", "baby bottle", "lotion bottle"),
    "wine glass": ("wine glass",),
    "cup": ("hot beverage", "teacup without handle", "cup with straw"),
    "fork": ("fork and knife", "fork and knife with plate"),
    "knife": ("kitchen knife", "fork and knife", "fork and knife with plate"),
    "spoon": ("spoon", "bowl with spoon"),
    "bowl": ("bowl with spoon", "steaming bowl"),
    "banana": ("banana",),
    "apple": ("red apple", "green apple"),
    "sandwich": ("sandwich",),
    "orange": ("tangerine",),
    "broccoli": ("broccoli",),
    "carrot": ("carrot",),
    "hot dog": ("hot dog",),
    "pizza": ("pizza",),
    "donut": ("doughnut",),
    "cake": ("birthday cake", "shortcake"),
    "chair": ("chair",),
    "couch": ("couch and lamp",),
    "potted plant": ("potted plant",),
    "bed": ("bed",),
    "toilet": ("toilet",),
    "tv": ("television",),
    "laptop": ("laptop",),
    "computer mouse": ("computer mouse",),
    "computer keyboard": ("keyboard",),
    "cell phone": ("mobile phone",),
    "book": ("closed book", "open book", "green book", "blue book", "orange book"),
    "clock": (
        "alarm clock",
        "mantelpiece clock",
        *(f"{hour} o\N{RIGHT SINGLE QUOTATION MARK}clock" for hour in _HOURS),
    ),
    "vase": ("amphora",),
    "scissors": ("scissors",),
    "teddy bear": ("teddy bear",),
    "toothbrush": ("toothbrush",),
}
"""CLDR labels of the emoji of each class, the plainest first."""
