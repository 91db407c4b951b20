"""Fact recall: the capital of a country. Nothing in the prompt but the country tells the answer.

    The capital of France is the city of → Paris

The corrupted prompt has another country, whose capital is the wrong answer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from acdc.tasks.language.words import listed
from acdc.tasks.spans import placed
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

TEMPLATES = (
    "The capital of {country} is the city of",
    "The capital city of {country} is called",
    "The name of the capital of {country} is",
    "The government of {country} sits in the capital,",
    "On the way through {country} they stopped in its capital,",
    "Visitors to {country} like to see its capital,",
    "The biggest museum of {country} is in the capital,",
    "She moved to {country} and found a house in the capital,",
)
CAPITALS = dict(
    pair.split("/")
    for pair in listed("""
        France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon England/London Ireland/Dublin
        Austria/Vienna Hungary/Budapest Poland/Warsaw Russia/Moscow Sweden/Stockholm Norway/Oslo Finland/Helsinki
        Denmark/Copenhagen Iceland/Reykjavik Greece/Athens Turkey/Ankara Belgium/Brussels Bulgaria/Sofia
        Romania/Bucharest Serbia/Belgrade Croatia/Zagreb Slovenia/Ljubljana Slovakia/Bratislava Estonia/Tallinn
        Latvia/Riga Lithuania/Vilnius Albania/Tirana Belarus/Minsk Armenia/Yerevan Georgia/Tbilisi Azerbaijan/Baku
        Switzerland/Bern Egypt/Cairo Kenya/Nairobi Nigeria/Abuja Ghana/Accra Senegal/Dakar Morocco/Rabat
        Tunisia/Tunis Algeria/Algiers Libya/Tripoli Uganda/Kampala Rwanda/Kigali Zimbabwe/Harare Zambia/Lusaka
        Angola/Luanda Mali/Bamako Iran/Tehran Iraq/Baghdad Syria/Damascus Lebanon/Beirut Jordan/Amman Qatar/Doha
        Oman/Muscat Afghanistan/Kabul Pakistan/Islamabad Nepal/Kathmandu Bangladesh/Dhaka Thailand/Bangkok
        Vietnam/Hanoi Indonesia/Jakarta Mongolia/Ulaanbaatar Japan/Tokyo China/Beijing Australia/Canberra Fiji/Suva
        Canada/Ottawa Cuba/Havana Jamaica/Kingston Nicaragua/Managua Peru/Lima Chile/Santiago Ecuador/Quito
        Venezuela/Caracas Uruguay/Montevideo
    """)
)
"""Country to capital, both of one word."""


def pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Pairs of two countries, those whose capitals are single tokens."""
    single = set(Encoder(model).words(list(CAPITALS.values()), what="capitals", at_least=4))
    countries = [country for country, capital in CAPITALS.items() if capital in single]
    while True:
        template = rng.choice(TEMPLATES)
        country, other = rng.sample(countries, 2)
        clean, spans = placed(template, {"country": "country"}, country=country)
        yield TextPair(
            clean=clean,
            corrupted=template.format(country=other),
            answers=(f" {CAPITALS[country]}",),
            wrong=(f" {CAPITALS[other]}",),
            spans=spans,
        )
