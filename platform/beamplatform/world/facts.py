"""The small world behind the embedded data: invented things and people, and what is true of them.

Every thing belongs to a realm (animals, plants, made things) and has one value for each relation of that realm; every
person has one value for each relation of people. Rules say what follows from a value (a thing of glass breaks), so
some questions take two steps. A quarter of the (thing, relation) pairs is held out: the pretraining text states these
pairs like all others, but only test questions ask about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from beamplatform.world.prng import Prng

SEED = 2502_13604

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey")
WILD = ("forest", "river", "cave", "meadow", "desert", "mountain", "swamp", "island")
ROOMS = ("kitchen", "cellar", "attic", "barn", "school", "market", "tower", "mill")

#: realm -> relation -> the values it can take
RELATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "animal": {
        "kind": ("bird", "fish", "insect", "beast"),
        "colour": COLOURS,
        "place": WILD,
        "food": ("seeds", "leaves", "worms", "honey", "roots", "berries", "nuts", "moss"),
    },
    "plant": {
        "kind": ("tree", "flower", "herb", "mushroom"),
        "colour": COLOURS,
        "place": WILD,
        "season": ("spring", "summer", "autumn", "winter"),
    },
    "made": {
        "material": ("wood", "iron", "glass", "wool", "paper", "clay"),
        "colour": COLOURS,
        "place": ROOMS,
        "use": (
            "cut rope", "dig holes", "carry water", "mend shoes",
            "catch mice", "grind corn", "sweep floors", "open doors",
        ),
    },
    "person": {
        "trait": ("kind", "shy", "brave", "lazy", "greedy", "honest", "curious", "proud"),
        "job": ("baker", "smith", "farmer", "doctor", "tailor", "painter", "sailor", "teacher"),
        "love": ("music", "chess", "tea", "snow", "stars", "cats", "books", "dancing"),
    },
}  # fmt: skip

#: relation -> value -> the consequence of the value; no other value has the same consequence
RULES: dict[str, dict[str, str]] = {
    "kind": {
        "bird": "feathers", "fish": "gills", "insect": "feelers", "beast": "fur",
        "tree": "bark", "flower": "petals", "herb": "scent", "mushroom": "caps",
    },
    "place": {
        "forest": "shady", "river": "wet", "cave": "dark", "meadow": "sunny",
        "desert": "dry", "mountain": "cold", "swamp": "muddy", "island": "windy",
        "kitchen": "hot", "cellar": "damp", "attic": "dusty", "barn": "smelly",
        "school": "noisy", "market": "crowded", "tower": "high", "mill": "loud",
    },
    "material": {
        "wood": "floats", "iron": "rusts", "glass": "breaks", "wool": "warms", "paper": "tears", "clay": "cracks",
    },
    "trait": {
        "kind": "help", "shy": "hide", "brave": "fight", "lazy": "sleep",
        "greedy": "steal", "honest": "confess", "curious": "ask", "proud": "boast",
    },
    "job": {
        "baker": "flour", "smith": "coal", "farmer": "grain", "doctor": "pills",
        "tailor": "thread", "painter": "brushes", "sailor": "maps", "teacher": "chalk",
    },
}  # fmt: skip

#: what happens to a person -> how the person feels
FEELINGS: dict[str, str] = {
    "lost a friend": "sad", "broke a leg": "hurt", "won a race": "happy", "saw a ghost": "afraid",
    "missed a boat": "angry", "ran a mile": "tired", "skipped lunch": "hungry", "got a gift": "thankful",
    "told a lie": "guilty", "fell in mud": "dirty", "waited all day": "bored", "passed a test": "relieved",
}  # fmt: skip

#: activity -> its steps in order (third person, after a name)
ACTIVITIES: dict[str, tuple[str, str, str, str]] = {
    "baking": ("mixes the dough", "heats the oven", "bakes the loaf", "slices the loaf"),
    "fishing": ("digs for bait", "casts the line", "reels the line", "fries the catch"),
    "sewing": ("measures the cloth", "cuts the cloth", "stitches the hem", "wears the dress"),
    "gardening": ("rakes the soil", "plants the bulbs", "waters the bed", "picks the bloom"),
    "camping": ("packs the tent", "pitches the tent", "lights the fire", "sings by the fire"),
    "painting": ("stretches the canvas", "sketches the face", "adds the paint", "frames the picture"),
    "rowing": ("unties the boat", "grabs the oars", "crosses the lake", "lands the boat"),
    "washing": ("fills the tub", "scrubs the shirt", "rinses the shirt", "irons the shirt"),
    "riding": ("brushes the horse", "saddles the horse", "mounts the horse", "gallops away"),
    "writing": ("sharpens the pencil", "drafts the letter", "seals the letter", "posts the letter"),
    "climbing": ("ties the knot", "grips the rock", "reaches the top", "enjoys the view"),
    "building": ("draws the plan", "lays the bricks", "raises the roof", "hangs the curtains"),
}

_ONSETS = (*"bdfgklmnprstvwz", "bl", "dr", "fl", "gr", "kr", "pl", "sn", "tr")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("b", "d", "g", "k", "l", "m", "n", "p", "r", "x", "z")
_NAME_ENDS = ("na", "ra", "lo", "mi", "ko", "du", "vi", "to")

THINGS_PER_REALM = 24
PEOPLE = 24
HELD_OUT = 4  # 1 / HELD_OUT of the (thing, relation) pairs is for the test split only


@dataclass(frozen=True)
class Thing:
    """A thing or person: its name, its realm and its value for each relation of that realm."""

    name: str
    realm: str
    values: dict[str, str]

    @property
    def person(self) -> bool:
        return self.realm == "person"


@dataclass(frozen=True)
class World:
    """All things and people, and the (name, relation) pairs that only the test split may ask about."""

    things: tuple[Thing, ...]
    held_out: frozenset[tuple[str, str]]

    def of(self, *realms: str) -> list[Thing]:
        """The things of these realms, in the world's order."""
        return [thing for thing in self.things if thing.realm in realms]


def _names(prng: Prng, count: int, person: bool, taken: set[str]) -> list[str]:
    names: list[str] = []
    while len(names) < count:
        name = prng.choice(_ONSETS) + prng.choice(_VOWELS)
        name = (name + prng.choice(_NAME_ENDS)).capitalize() if person else name + prng.choice(_CODAS)
        if name.lower() not in taken:
            taken.add(name.lower())
            names.append(name)
    return names


def _common_words() -> set[str]:
    """Every word of the fixed vocabulary, so that no invented name is a word with a meaning."""
    texts = [v for relations in RELATIONS.values() for values in relations.values() for v in values]
    texts += [word for rule in RULES.values() for word in rule.values()]
    texts += [*FEELINGS, *FEELINGS.values(), *(step for steps in ACTIVITIES.values() for step in steps)]
    short = (
        "bad bag bed beg bib bid big bin bog bud bug bun bus but dad den did dig dim din dip dog dug fad fan "
        "far fat fed fib fig fin fix fog for fox fun gag gap gem get god gum gun had ham hen her him his hot "
        "hug kid kin lab lad lap led leg let lid lip log lot low mad man map mar men mix mob mop mud mug nab "
        "nag nap net nip nod nor not nun nut pad pan peg pen pet pig pin pit pod pop pot pub pun put rag ram "
        "ran rap rat red rib rid rig rim rip rob rod rug rum run sad sag sap sin sip sir sit six sob sum sun "
        "tab tag tan tap tar tax ten tin tip top tug van vex wax web wed wet wig win zap zip blob drag drip "
        "drop drum flag flap flat flip flop grab grim grin grip plan plug plum plan snag snap snip snug trap "
        "trim trip tram trod drab drug flog"
    )
    return {word for text in [*texts, short] for word in text.split()}


@cache
def world() -> World:
    """The one embedded world: 72 things, 24 people."""
    prng = Prng(SEED)
    taken = _common_words()
    things: list[Thing] = []
    for realm, relations in RELATIONS.items():
        names = _names(prng, PEOPLE if realm == "person" else THINGS_PER_REALM, realm == "person", taken)
        # Every value of a relation goes to (nearly) equally many things, so that no value is the safe guess.
        columns = {
            relation: prng.shuffled([values[i % len(values)] for i in range(len(names))])
            for relation, values in relations.items()
        }
        things += [
            Thing(name, realm, {relation: column[i] for relation, column in columns.items()})
            for i, name in enumerate(names)
        ]
    pairs = [(thing.name, relation) for thing in things for relation in thing.values]
    pairs += [(event, "feeling") for event in FEELINGS]
    pairs += [(step, "next") for steps in ACTIVITIES.values() for step in steps[:-1]]
    held_out = prng.sample(pairs, len(pairs) // HELD_OUT)
    return World(tuple(things), frozenset(held_out))
