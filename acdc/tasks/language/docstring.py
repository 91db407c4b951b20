'''Docstring (Heimersheim and Janiak 2023): the docstring names the arguments in the order of the definition.

    def port(self, load, size, files, last):
        """oil column piece

        :param load: crime population
        :param size: unit dark
        :param → files, not load, size or last

The corrupted prompt has other arguments, in the definition and, independently of it, in the docstring, so that
neither tells what comes next.
'''

from __future__ import annotations

import random
from collections.abc import Iterator

from acdc.tasks.language.words import listed
from acdc.tasks.spans import placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATE = '''def {name}(self, {a}, {b}, {c}, {d}):
    """{summary}

    :param {x}: {first}
    :param {y}: {second}
    :param'''
NAMES = listed("port run load check build make call test send read write open close start parse")
ARGUMENTS = listed("""
    load size files last line path data name key value text image model state time user list index count order
    group table page result test message field node event point source option label type level width height
    number string code item role task host port match start end action context client server shape version
""")
WORDS = listed("""
    oil column piece crime population unit dark water street paper music history letter morning window market color
    winter road heart summer door forest power science animal story body board garden
""")


def pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Definitions of functions with four arguments, of which the docstring names two."""
    encoder = Encoder(model)
    arguments = encoder.words(ARGUMENTS, what="argument names", at_least=12)
    words = encoder.words(WORDS, what="words of a docstring", at_least=4)
    while True:
        a, b, c, d, *others = rng.sample(arguments, 10)
        rest = {
            "name": rng.choice(NAMES),
            "summary": " ".join(rng.choices(words, k=3)),
            "first": " ".join(rng.choices(words, k=2)),
            "second": " ".join(rng.choices(words, k=2)),
        }
        definition, documented = (
            dict(zip("abcd", others[:4], strict=True)),
            dict(zip("xy", others[4:], strict=True)),
        )
        named = {x: f"{x.upper()}_def" for x in "abcd"} | {"x": "A_doc", "y": "B_doc"}
        clean, spans = placed(TEMPLATE, named, a=a, b=b, c=c, d=d, x=a, y=b, **rest)
        yield TextPair(
            clean=clean,
            corrupted=TEMPLATE.format(**definition, **documented, **rest),
            answers=(f" {c}",),
            wrong=tuple(f" {x}" for x in (a, b, d, *others)),
            spans=spans,
        )
