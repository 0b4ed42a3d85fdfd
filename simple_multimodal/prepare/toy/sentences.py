"""The language of the signed toy world: its signs, how they differ, and the German sentences they stand for."""

import math
from collections.abc import Iterator
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np

from simple_multimodal.defaults import Difficulty
from simple_multimodal.errors import InputError

DAYS = ("montag", "dienstag", "mittwoch", "donnerstag", "freitag", "samstag", "sonntag")
PARTS_OF_DAY = {"morgen": "am morgen", "mittag": "am mittag", "abend": "am abend", "nacht": "in der nacht"}
PLACES = {
    "norden": "im norden",
    "süden": "im süden",
    "osten": "im osten",
    "westen": "im westen",
    "gebirge": "im gebirge",
    "flachland": "im flachland",
    "küste": "an der küste",
    "nordsee": "an der nordsee",
    "mitte": "in der mitte",
    "alpen": "in den alpen",
}
GENDERS = {  # of each kind of weather: masculine, feminine or neuter
    "nebel": "m",
    "regen": "m",
    "schnee": "m",
    "wind": "m",
    "frost": "m",
    "bewölkung": "f",
    "kälte": "f",
    "wärme": "f",
    "gewitter": "n",
    "tauwetter": "n",
}
ENDINGS = {"m": "er", "f": "e", "n": "es"}
STRENGTHS = ("schwach", "leicht", "mäßig", "stark", "kräftig", "anhaltend")

CATEGORIES: tuple[tuple[str, ...], ...] = (tuple(PLACES), DAYS, tuple(PARTS_OF_DAY), tuple(GENDERS), STRENGTHS)
"""Names of the signs in the order in which they are signed: place, day, part of the day, weather, strength."""

PART_OF_DAY = 2  # number of the category that a sentence may lack
SPOTS = ("chest", "face", "side", "belly", "cheek")  # where a hand moves
MOVEMENTS = ("up", "outwards", "circle", "nod", "down", "inwards", "reverse", "shake")
SHAPES = ("point", "fork", "flat", "fist", "thumb")  # of a hand
NUM_HARD_SHAPES = 3  # shapes that differ by fingers stretched beside the index finger


class Sign(NamedTuple):
    """
    How a sign is made.

    Args:
        spot (`str`): Where the right hand moves, one of `SPOTS`.
        movement (`str`): How it moves, one of `MOVEMENTS`.
        shape (`str`): Its shape, one of `SHAPES`.
        is_two_handed (`bool`): Whether the left hand mirrors the right one, instead of resting.
    """

    spot: str
    movement: str
    shape: str
    is_two_handed: bool


def make_signs(difficulty: Difficulty) -> dict[str, Sign]:
    """
    Return how each sign is made.

    `"easy"`: every sign has another pair of spot and movement, and both hands make it, so that one hand alone tells
    all signs apart. `"hard"`: up to six signs of a category share their spot and movement; three shapes tell them
    apart, and of the two with the same shape, the left hand rests in one and mirrors the right hand in the other.
    """
    signs: dict[str, Sign] = {}
    num_paths = 0
    for names in CATEGORIES:
        for number, name in enumerate(names):
            if difficulty == "easy":
                row, column = divmod(len(signs), len(SPOTS))
                signs[name] = Sign(SPOTS[column], MOVEMENTS[row], SHAPES[(row + column) % len(SHAPES)], True)
            else:
                path, variant = divmod(number, 2 * NUM_HARD_SHAPES)
                path += num_paths
                shape, hands = divmod(variant, 2)
                signs[name] = Sign(SPOTS[path % len(SPOTS)], MOVEMENTS[path], SHAPES[shape], hands == 1)
        num_paths += math.ceil(len(names) / (2 * NUM_HARD_SHAPES))
    return signs


def sentence_of(signs: tuple[str, ...]) -> str:
    """
    Translate signs into German, such as `("gebirge", "freitag", "nacht", "nebel", "schwach")` into "am freitag in der
    nacht schwacher nebel im gebirge".

    Words stand in another order than signs; prepositions and articles have no sign; the ending of the strength depends
    on the weather.

    Args:
        signs (`tuple[str, ...]`): Names of the signs in their order; the part of the day may be missing.
    """
    place, day, *part_of_day, weather, strength = signs
    parts = [PARTS_OF_DAY[part] for part in part_of_day]
    return " ".join(["am", day, *parts, strength + ENDINGS[GENDERS[weather]], weather, PLACES[place]])


def num_sentences() -> int:
    """Return the number of different sentences."""
    return math.prod(len(choices) for choices in _choices())


def _choices() -> list[tuple[str | None, ...]]:
    return [(*names, None) if number == PART_OF_DAY else names for number, names in enumerate(CATEGORIES)]


def draw_sentences(
    num_train: int, num_held_out: int, generator: np.random.Generator
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """
    Draw the sentences of a world, as signs.

    Args:
        num_train (`int`): Number of sentences for training. They differ while there are enough, and the first ones
            contain all signs and all words.
        num_held_out (`int`): Number of other sentences, all different, of which none is for training; less than
            [`num_sentences`].
        generator (`np.random.Generator`): Source of random numbers.

    Returns:
        `list[tuple[str, ...]]`: The sentences for training.
        `list[tuple[str, ...]]`: The others.

    Raises:
        ValueError: `num_train` sentences are too few for all signs and words.
    """
    order = generator.permutation(num_sentences())
    sentences = [_combination(int(number)) for number in order]
    held_out, rest = sentences[:num_held_out], sentences[num_held_out:]
    covering: list[tuple[str, ...]] = []
    others: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for signs in rest:
        new = {*signs, *sentence_of(signs).split()} - seen
        (covering if new else others).append(signs)
        seen |= new
    if num_train < len(covering):
        raise InputError(
            f"num_train_clips must be at least {len(covering)}, so that training has all signs and words, got "
            f"{num_train}."
        )
    return list(islice(cycle([*covering, *others]), num_train)), held_out


def _combination(number: int) -> tuple[str, ...]:
    """Return the signs that a number encodes in mixed radix."""
    return tuple(sign for sign in _digits(number) if sign is not None)


def _digits(number: int) -> Iterator[str | None]:
    for choices in _choices():
        number, digit = divmod(number, len(choices))
        yield choices[digit]
