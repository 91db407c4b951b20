from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest

from acdc.tasks.language import ioi
from acdc.tasks.tokenise import TextPair
from tiny_tokenizers import StandIn


def _pairs(model: StandIn, **options: Any) -> list[TextPair]:
    return list(itertools.islice(ioi.pairs(model, random.Random(0), **options), 100))


def _names(text: str) -> list[str]:
    known = {*ioi.FEMALE_NAMES, *ioi.MALE_NAMES}
    return [word for word in re.findall(r"\w+", text) if word in known]


def test_templates_are_many_and_different() -> None:
    assert len({*ioi.TEMPLATES}) >= 15


def test_the_answer_occurs_once_and_the_subject_twice(gpt2_like: StandIn) -> None:
    orders = set()
    for pair in _pairs(gpt2_like):
        io, subject = pair.answers[0].strip(), pair.wrong[0].strip()
        names = _names(pair.clean)
        assert sorted(names) == sorted([io, subject, subject])
        assert names[2] == subject
        orders.add("abba" if names[0] == io else "baba")
        corrupted = _names(pair.corrupted)
        assert len({*corrupted}) == 3
        assert not {*corrupted} & {io, subject}
    assert orders == {"abba", "baba"}


@pytest.mark.parametrize("order", ["abba", "baba"])
def test_an_order_can_be_asked_for(order: str, gpt2_like: StandIn) -> None:
    for pair in _pairs(gpt2_like, order=order):
        assert (_names(pair.clean)[0] == pair.answers[0].strip()) == (order == "abba")


def test_the_swap_exchanges_the_answers(gpt2_like: StandIn) -> None:
    for pair in _pairs(gpt2_like, corruption="swap"):
        names, corrupted = _names(pair.clean), _names(pair.corrupted)
        assert corrupted[:2] == names[:2]
        assert (names[2], corrupted[2]) == (pair.wrong[0].strip(), pair.answers[0].strip())
