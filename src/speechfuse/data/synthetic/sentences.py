"""A small grammar of English: more than 200 words, many thousands of short sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

WORDS: dict[str, str] = {
    "name": "anna peter maria thomas julia robert laura victor emma oscar nina felix clara hugo",
    "person": "baker teacher doctor farmer sailor painter driver singer lawyer gardener neighbor "
    "cousin tailor captain nurse student hunter builder waiter pilot writer guest",
    "adjective": "old young tall quiet clever lazy brave tired friendly careful famous hungry "
    "nervous gentle proud honest strange busy",
    "color": "red green blue yellow white black brown purple orange silver golden gray",
    "size": "small large heavy tiny broken wooden empty cheap lovely dusty narrow round",
    "number": "two three four five six seven eight nine ten twelve fifteen twenty thirty",
    "thing": "baskets bottles letters pictures windows chairs candles boxes flowers ladders "
    "carpets mirrors pillows blankets kettles hammers buttons lanterns cupboards tables "
    "barrels ribbons needles notebooks umbrellas suitcases",
    "food": "bread cheese butter honey soup rice coffee sugar pepper lemon chicken salad pasta "
    "chocolate mushrooms",
    "did": "carried painted counted cleaned bought sold found lost moved opened borrowed "
    "repaired ordered hid dropped washed collected noticed measured delivered",
    "ate": "cooked tasted ordered shared wanted refused",
    "place": "kitchen garden station market harbor village library office forest theater "
    "museum castle church hospital valley bakery cellar island factory tunnel",
    "time": "yesterday today tonight early late again already often never sometimes",
    "when": "before breakfast|after lunch|in the morning|on monday|on friday|at midnight|"
    "last winter|this summer|during the storm|every sunday",
    "manner": "slowly quickly quietly suddenly carefully happily secretly proudly gently",
    "near": "near behind beside inside outside",
}
TEMPLATES = (
    "the {adjective} {person} {did} {number} {color} {thing}",
    "{name} {manner} {did} the {size} {thing} in the {place}",
    "{time} the {person} {did} {number} {thing} {near} the {place}",
    "{name} and {name} {ate} the {food} {when}",
    "my {adjective} {person} {ate} {food} and {food} {near} the {place}",
    "{when} a {person} {did} the {color} {thing}",
    "did the {person} really {near} the {place} see {number} {thing}",
    "we {did} {number} {size} {thing} for {name} {when}",
    "nobody {did} the {color} {thing} of the {adjective} {person}",
)
_CHOICES = {slot: words.split("|" if "|" in words else None) for slot, words in WORDS.items()}
_SLOT = re.compile(r"\{(\w+)\}")


def vocabulary() -> list[str]:
    """Every word that a sentence can hold, sorted."""
    fixed = _SLOT.sub(" ", " ".join(TEMPLATES))
    choices = " ".join(choice for words in _CHOICES.values() for choice in words)
    return sorted(set(f"{fixed} {choices}".split()))


def draw_sentence(random: Generator) -> str:
    """One sentence in lower case without punctuation."""
    template = TEMPLATES[random.integers(len(TEMPLATES))]

    def choose(slot: re.Match[str]) -> str:
        words = _CHOICES[slot[1]]
        return words[random.integers(len(words))]

    return _SLOT.sub(choose, template)
