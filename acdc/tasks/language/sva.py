"""Subject–verb agreement with an attractor (Linzen et al. 2016): the verb follows the subject, not the noun before.

    The keys near the cabinet → are, were, have; not is, was, has

The corrupted prompt has the subject in the other number; the attractor's number is independent of both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from acdc.errors import TaskError
from acdc.tasks.language.words import listed
from acdc.tasks.spans import placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATES = tuple(
    f"The {{subject}} {link} the {{attractor}}"
    for link in (
        "near", "behind", "beside", "across from", "next to", "in front of", "that saw", "that liked",
        "that helped", "that followed", "that knew", "that stood behind",
    )
)  # fmt: skip
NOUNS = listed("""
    author boy girl teacher student doctor lawyer friend player driver manager artist officer guard farmer
    king leader parent singer soldier worker writer visitor neighbor
""")
VERBS = (("are", "is"), ("were", "was"), ("have", "has"))
"""Plural and singular."""


def pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Pairs of a singular and a plural subject, either of them clean."""
    encoder = Encoder(model)
    forms = [(noun, f"{noun}s") for noun in NOUNS]
    single = set(encoder.words([word for form in forms for word in form], what="nouns", at_least=4))
    nouns = [form for form in forms if set(form) <= single]
    known = set(encoder.words([word for pair in VERBS for word in pair], what="verb forms", at_least=2))
    verbs = [pair for pair in VERBS if set(pair) <= known]
    for what, found, of, needed in (("nouns", nouns, NOUNS, 2), ("verbs", verbs, VERBS, 1)):
        if len(found) < needed:
            raise TaskError(
                f"task 'sva': only {len(found)} of {len(of)} {what} are single tokens for this tokenizer in both "
                f"numbers, at least {needed} are needed"
            )
    plural, singular = (tuple(f" {verb}" for verb in side) for side in zip(*verbs, strict=True))
    while True:
        template = rng.choice(TEMPLATES)
        subject, attractor = rng.sample(nouns, 2)
        number, other = rng.randrange(2), rng.choice(attractor)  # number: 0 singular, 1 plural
        named = {"subject": "subject", "attractor": "attractor"}
        clean, spans = placed(template, named, subject=subject[number], attractor=other)
        yield TextPair(
            clean=clean,
            corrupted=template.format(subject=subject[1 - number], attractor=other),
            answers=plural if number else singular,
            wrong=singular if number else plural,
            spans=spans,
        )
