"""Greater-than (Hanna et al. 2023): a thing that lasted ends in a later year than it began.

    The war lasted from the year 1732 to the year 17 → 33 … 99, not 00 … 32

The corrupted prompt begins in 01, so that every year is later. Years a tokenizer does not write as two tokens of
two digits are left out. A tokenizer that splits numbers into digits is asked for the next digit: greater than the
tens digit of the first year, not smaller.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from acdc.errors import TaskError
from acdc.tasks.language.words import listed
from acdc.tasks.spans import placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATE = "The {noun} lasted from the year {century}{year} to the year {century}"
NOUNS = listed("""
    war campaign siege conflict crisis journey mission project trial strike debate dispute expedition occupation
    operation program protest reign revolt tour voyage visit search race festival marriage alliance construction
    drought epidemic exchange famine investigation match meeting negotiation partnership pilgrimage plague
    raid rebellion reform struggle study survey treaty truce
""")
CENTURIES = tuple(range(11, 18))
_FEWEST_YEARS = 20


def pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Pairs of every noun, century and year that the tokenizer writes as two tokens."""
    encoder = Encoder(model)
    whole = {century: _years(encoder, century, 1) for century in CENTURIES}
    years = {century: found for century, found in whole.items() if "01" in found and len(found) >= _FEWEST_YEARS}
    digits = {c for c in CENTURIES if len(_years(encoder, c, 2)) == 100} if not years else set()
    if not years and not digits:
        most = max(len(found) for found in whole.values())
        raise TaskError(
            f"task 'greater-than': this tokenizer writes at most {most} of the 100 years of a century as two "
            f"tokens, at least {_FEWEST_YEARS} (and 01) are needed, nor does it write years as single digits"
        )
    while True:
        century = rng.choice(sorted(years or digits))
        if years:
            known = years[century]
            year = rng.choice([y for y in known if known[0] < y < known[-1] and y != "01"])
            later, earlier = [y for y in known if y > year], [y for y in known if y <= year]
        else:
            year = f"{rng.randint(10, 89)}"
            later, earlier = [d for d in "0123456789" if d > year[0]], [d for d in "0123456789" if d < year[0]]
        noun = rng.choice(NOUNS)
        named = {"noun": "noun", "year": "year"}
        clean, spans = placed(TEMPLATE, named, noun=noun, century=f"{century}", year=year)
        yield TextPair(
            clean=clean,
            corrupted=TEMPLATE.format(noun=noun, century=century, year="01"),
            answers=tuple(later),
            wrong=tuple(earlier),
            spans=spans,
        )


def _years(encoder: Encoder, century: int, n_tokens: int) -> list[str]:
    """The years 00 to 99 that add `n_tokens` known tokens to the century's."""
    years = [f"{year:02}" for year in range(100)]
    prompt = TEMPLATE.format(noun=NOUNS[0], century=century, year="").split(" to ")[0]
    return [
        year
        for year, ids in zip(years, encoder.appended(prompt, years), strict=True)
        if ids is not None and len(ids) == n_tokens and not encoder.is_unknown(ids)
    ]
