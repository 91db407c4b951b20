"""Gendered pronoun (Mathwin et al. 2023): the pronoun that goes with a name.

    So Evan is a really great friend, isn't → he, not she

The corrupted prompt has a name of the other gender.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from acdc.tasks.language.words import FEMALE_NAMES, MALE_NAMES, listed
from acdc.tasks.spans import placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATE = "So {name} is a really {quality} {role}, isn't"
QUALITIES = listed("great good nice kind strong smart funny fast")
ROLES = listed("friend cook student neighbor teacher writer dancer driver")


def pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Pairs of a female and a male name, either of them clean."""
    encoder = Encoder(model)
    names = {
        " she": encoder.words(FEMALE_NAMES, what="female names", at_least=2),
        " he": encoder.words(MALE_NAMES, what="male names", at_least=2),
    }
    while True:
        answer, wrong = rng.sample(sorted(names), 2)
        rest = {"quality": rng.choice(QUALITIES), "role": rng.choice(ROLES)}
        named = {"name": "name", "quality": "quality", "role": "role"}
        clean, spans = placed(TEMPLATE, named, name=rng.choice(names[answer]), **rest)
        yield TextPair(
            clean=clean,
            corrupted=TEMPLATE.format(name=rng.choice(names[wrong]), **rest),
            answers=(answer,),
            wrong=(wrong,),
            spans=spans,
        )
