"""Indirect object identification (Wang et al. 2023): who was given something?

    When Mary and John went to the store, John gave a drink to → Mary, not John

The indirect object (IO, Mary) occurs once, the subject (S, John) twice, in either order: ABBA has the IO first,
BABA the subject. Corruptions: `abc` replaces the three occurrences by three unrelated names, `swap` the second
occurrence of the subject by the IO, which exchanges the answers. Spans: IO, S1, S1+1 (what follows S1), S2, end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Annotated, Literal

from acdc.errors import unknown
from acdc.tasks.language.words import FEMALE_NAMES, MALE_NAMES, listed
from acdc.tasks.spans import next_word, placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATES = (
    "When {a} and {b} went to the {place}, {c} gave a {thing} to",
    "Then, {a} and {b} went to the {place}. {c} gave a {thing} to",
    "After {a} and {b} went to the {place}, {c} gave a {thing} to",
    "While {a} and {b} were working at the {place}, {c} gave a {thing} to",
    "While {a} and {b} were waiting at the {place}, {c} decided to give a {thing} to",
    "Then, {a} and {b} had a lot of fun at the {place}. {c} gave a {thing} to",
    "Then, {a} and {b} were thinking about going to the {place}. {c} wanted to give a {thing} to",
    "Then, {a} and {b} had a long argument at the {place}. Afterwards {c} said a word to",
    "Then, in the morning, {a} and {b} went to the {place}. {c} gave a {thing} to",
    "The day {a} and {b} arrived at the {place}, {c} handed a {thing} to",
    "Friends {a} and {b} found a {thing} at the {place}. {c} gave it to",
    "Yesterday {a} and {b} met at the {place}, and {c} offered a {thing} to",
    "Soon after {a} and {b} left the {place}, {c} sent a {thing} to",
    "Once {a} and {b} were back from the {place}, {c} showed a {thing} to",
    "Because {a} and {b} like the {place}, {c} bought a {thing} for",
    "Although {a} and {b} had never been to the {place}, {c} brought a {thing} for",
    "As soon as {a} and {b} came to the {place}, {c} passed a {thing} to",
    "Last week {a} and {b} stayed at the {place}. At the end {c} left a {thing} for",
)
PLACES = listed("store garden restaurant school hospital office house station park library market beach")
THINGS = listed("ring kiss bone basketball computer necklace drink snack book letter ticket present")
ORDERS = ("both", "abba", "baba")
CORRUPTIONS = ("abc", "swap")


def pairs(
    model: ModelLike,
    rng: random.Random,
    *,
    order: Annotated[
        Literal["both", "abba", "baba"], "whether the indirect object (a) or the subject (b) is named first"
    ] = "both",
    corruption: Annotated[
        Literal["abc", "swap"], "three unrelated names, or the second subject replaced by the indirect object"
    ] = "abc",
) -> Iterator[TextPair]:
    """Pairs with the names in the given order ("abba", "baba" or "both") and corruption ("abc" or "swap")."""
    if order not in ORDERS:
        raise unknown("order of names", order, ORDERS)
    if corruption not in CORRUPTIONS:
        raise unknown("corruption", corruption, CORRUPTIONS)
    names = Encoder(model).words(FEMALE_NAMES + MALE_NAMES, what="names", at_least=6)
    while True:
        template = rng.choice(TEMPLATES)
        filled = {"place": rng.choice(PLACES), "thing": rng.choice(THINGS)}
        io, subject, *others = rng.sample(names, 5)
        io_first = rng.random() < 0.5 if order == "both" else order == "abba"
        a, b = (io, subject) if io_first else (subject, io)
        x, y, z = others if corruption == "abc" else (a, b, io)
        names_of = {"a": "IO" if io_first else "S1", "b": "S1" if io_first else "IO", "c": "S2"}
        clean, spans = placed(template, names_of, a=a, b=b, c=subject, **filled)
        after = next_word(clean, next(span for span in spans if span.name == "S1"), "S1+1")
        yield TextPair(
            clean=clean,
            corrupted=template.format(a=x, b=y, c=z, **filled),
            answers=(f" {io}",),
            wrong=(f" {subject}",),
            spans=(after, *spans),
        )
