"""Where the rules of English fail on a CLDR label: what the pictured thing is called, and irregular plurals."""


def _entries(text: str) -> list[str]:
    return [entry.strip() for line in text.strip().splitlines() for entry in line.split("|")]


def _table(text: str) -> dict[str, str]:
    return dict(entry.split(" = ") for entry in _entries(text))


COUNTED_BY = {
    "pair": "cherries chopsticks eyes lungs footprints glasses sunglasses goggles jeans gloves socks briefs shorts "
    "skis scissors maracas chains",
    "bunch": "grapes blueberries",
    "stack": "books pancakes",
    "piece": "candy coral luggage sushi wood",
    "bowl": "ice_cream shaved_ice cooked_rice",
    "plate": "curry_rice spaghetti",
    "skewer": "dango oden",
    "slice": "pizza watermelon",
    "head": "broccoli garlic",
}
"""Things that are counted in another noun: ``a pair of`` each of these (``_`` for a space)."""

RENAMED = _table("""
automobile = car | oncoming automobile = oncoming car | honeybee = bee | lady beetle = ladybug | dna = strand of DNA
sport utility vehicle = SUV | grey heart = gray heart | foggy = foggy city | night with stars = starry night
camping = campsite | wedding = wedding chapel | construction = construction barrier | metro = metro train
building construction = building under construction | hot springs = hot spring | light rail = light rail train
headphone = pair of headphones | horse racing = horse race | breast-feeding = breast-feeding woman
houses = group of houses | peanuts = handful of peanuts | tennis = tennis ball | bowling = bowling ball with pins
cricket game = cricket bat | field hockey = field hockey stick | ice hockey = ice hockey stick
lacrosse = lacrosse stick | ping pong = ping pong paddle | badminton = badminton racket
american football = American football | fireworks = burst of fireworks | performing arts = pair of theater masks
flower playing cards = flower playing card | joker = joker card | mahjong red dragon = mahjong tile with a red dragon
thread = spool of thread | yarn = ball of yarn | soap = bar of soap | butter = stick of butter | salt = salt shaker
bacon = strip of bacon | bread = loaf of bread | baguette bread = baguette | beans = pile of beans
popcorn = box of popcorn | french fries = box of french fries | cooking = frying pan with an egg
soft ice cream = soft ice cream cone | canned food = can of food | fondue = pot of fondue | sake = bottle of sake
mate = cup of mate | ice = cube of ice | bubble tea = cup of bubble tea | pouring liquid = glass of pouring liquid
meat on bone = piece of meat on a bone | hot beverage = cup of coffee | paw prints = pair of paw prints | fire = flame
heart exclamation = heart exclamation mark | sweat droplets = splash of droplets | dashing away = puff of wind
dizzy = dizzy star | ZZZ = ZZZ sign | hundred points = hundred points sign
revolving hearts = pair of revolving hearts | two hearts = pair of hearts
rolling on the floor laughing = face rolling on the floor laughing | star-struck = star-struck face
face with hand over mouth = face with a hand over its mouth
face with open eyes and hand over mouth = face with open eyes and a hand over its mouth
hand with index finger and thumb crossed = hand with crossed index finger and thumb
nail polish = hand with nail polish | index pointing up = index finger pointing up
index pointing at the viewer = index finger pointing at the viewer | backhand index pointing left = hand pointing left
backhand index pointing up = back of a hand pointing up | backhand index pointing down = hand pointing down
thumbs up = thumbs-up hand | thumbs down = thumbs-down hand | crossed fingers = hand with crossed fingers
pinched fingers = hand with pinched fingers | clapping hands = pair of clapping hands
raising hands = pair of raised hands | heart hands = pair of hands forming a heart | open hands = pair of open hands
folded hands = pair of folded hands | palms up together = pair of upturned palms | flexed biceps = flexed arm
raised back of hand = raised back of a hand | people with bunny ears = pair of people with bunny ears
men with bunny ears = pair of men with bunny ears | women with bunny ears = pair of women with bunny ears
people wrestling = pair of wrestling people | men wrestling = pair of wrestling men
women wrestling = pair of wrestling women | people hugging = pair of hugging people
busts in silhouette = pair of busts in silhouette | person in suit levitating = levitating person in a suit
person: bald = bald person | man: bald = bald man | woman: bald = bald woman | sun behind cloud = sun behind a cloud
umbrella with rain drops = umbrella with raindrops | umbrella on ground = umbrella on the ground
flag in hole = golf hole with a flag | clinking glasses = pair of clinking glasses
clinking beer mugs = pair of clinking beer mugs | nesting dolls = set of nesting dolls | sparkles = group of sparkles
Japanese dolls = pair of Japanese dolls | admission tickets = pair of admission tickets
woman's clothes = woman's blouse | shopping bags = pair of shopping bags | ballet shoes = pair of ballet shoes
prayer beads = string of prayer beads | musical notes = group of musical notes | control knobs = set of control knobs
film frames = strip of film frames | bookmark tabs = page with bookmark tabs
card index dividers = set of card index dividers | bubbles = cluster of bubbles
crossed swords = pair of crossed swords | crossed flags = pair of crossed flags
money with wings = stack of money with wings | speaker low volume = speaker at low volume
speaker medium volume = speaker at medium volume | speaker high volume = speaker at high volume
hourglass done = finished hourglass | hourglass not done = running hourglass | airplane departure = departing airplane
airplane arrival = arriving airplane | dvd = DVD | link = chain link | chart increasing = rising chart
chart decreasing = falling chart | chart increasing with yen = rising chart with a yen sign | locked = closed lock
unlocked = open lock | locked with pen = closed lock with pen | locked with key = closed lock with key
multiply = multiplication sign | plus = plus sign | minus = minus sign | divide = division sign
infinity = infinity sign | trade mark = trademark sign | om = om symbol
clockwise vertical arrows = clockwise arrows sign | star of David = Star of David | wireless = wireless sign
mount fuji = Mount Fuji | Tokyo tower = Tokyo Tower | hindu temple = Hindu temple | milky way = Milky Way
kaaba = Kaaba | sign of the horns = hand making horns | person mountain biking = person riding a mountain bike
man mountain biking = man riding a mountain bike | woman mountain biking = woman riding a mountain bike
litter in bin sign = litter bin sign | no one under eighteen = minors prohibited sign
place of worship = place-of-worship sign | Japanese symbol for beginner = Japanese beginner symbol
A button (blood type) = A blood type button | AB button (blood type) = AB blood type button
B button (blood type) = B blood type button | O button (blood type) = O blood type button
Japanese "free of charge" button = Japanese "free-of-charge" button
Japanese "not free of charge" button = Japanese "not free-of-charge" button | shinto shrine = Shinto shrine
latin cross = Latin cross | ferris wheel = Ferris wheel | globe showing Americas = globe showing the Americas
leaf fluttering in wind = leaf fluttering in the wind
""")
"""Labels that are telegraphic, plural or name no thing, and the noun phrase to use for them."""

SIGNS = frozenset(
    _entries("""
potable water | restroom | men's room | women's room | water closet | passport control | customs | baggage claim
left luggage | warning | children crossing | no entry | prohibited | no bicycles | no smoking | no littering
non-potable water | no pedestrians | no mobile phones | radioactive | biohazard | cinema | information | copyright
registered | currency exchange | high voltage | vibration mode | mobile phone off | antenna bars | Aries | Taurus
Gemini | Cancer | Leo | Virgo | Libra | Scorpio | Sagittarius | Capricorn | Aquarius | Pisces | Ophiuchus
input latin uppercase | input latin lowercase | input numbers | input symbols | input latin letters
""")
)
"""Labels to which ``sign`` is added."""

PROPER = frozenset(("Santa Claus", "Mrs. Claus", "Mx Claus", "Mount Fuji", "Tokyo Tower"))
"""Names without an article."""
UNIQUE = frozenset(("Statue of Liberty", "Milky Way", "Kaaba"))
"""Names with ``the``."""
MASS = frozenset(("fog",))
"""Nouns that have neither article nor plural."""

IRREGULAR_PLURALS = _table("""
person = people | child = children | tooth = teeth | foot = feet | mouse = mice | goose = geese | ox = oxen
die = dice | leaf = leaves | knife = knives | loaf = loaves | wolf = wolves | elf = elves | scarf = scarves
sheaf = sheaves | deer = deer | moose = moose | bison = bison | shrimp = shrimp | squid = squid | cactus = cacti
moai = moai | merperson = merpeople | tomato = tomatoes | potato = potatoes | mango = mangoes | volcano = volcanoes
tornado = tornadoes | mosquito = mosquitoes | superhero = superheroes | buffalo = buffalo | lotus = lotuses
crossbones = crossbones | fleur-de-lis = fleurs-de-lis
""")
"""Plurals of words that do not follow the rules; words in ``-man`` and ``-fish`` follow rules of their own."""

TAKES_ARTICLE = frozenset(
    "arrow baby ball ballot bath boat bone bubble cane check cloud cork cover crown curl eye eyebrow face flag "
    "flash garden haircut halo hand handle head-bandage headscarf key mask massage monocle mouth pen plate "
    "position ribbon room skullcap slash smile spoon straw suit swirl tear thermometer tongue turban tuxedo "
    "umbrella veil wheelchair aid ring".split()
)
"""Nouns that CLDR leaves bare after a preposition or a verb (``man in tuxedo``) and English does not."""
