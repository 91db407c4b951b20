"""What is right and what is wrong in the tasks that take a few lines each."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from acdc.tasks.language.fact_recall import CAPITALS
from acdc.tasks.language.sva import VERBS
from acdc.tasks.language.words import FEMALE_NAMES
from acdc.tasks.registry import GENERATORS
from acdc.tasks.tokenise import TextPair
from tiny_tokenizers import StandIn


def _pairs(name: str, model: StandIn, n: int = 100) -> list[TextPair]:
    pairs = itertools.islice(GENERATORS[name].pairs(model, random.Random(0)), n)
    return [pair for pair in pairs if isinstance(pair, TextPair)]


def test_greater_than_answers_are_the_later_years(gpt2_like: StandIn) -> None:
    for pair in _pairs("greater-than", gpt2_like, 20):
        century, year = re.findall(r"year (\d\d)(\d\d) to the year \1$", pair.clean)[0]
        assert f"{century}01 to the year" in pair.corrupted
        assert min(pair.answers) > year >= max(pair.wrong)
        assert len(pair.answers) + len(pair.wrong) > 90


def test_greater_than_reads_the_tens_digit_where_numbers_are_split(model: StandIn) -> None:
    pair = _pairs("greater-than", model, 1)[0]
    year = re.findall(r"year \d\d(\d\d) to", pair.clean)[0]
    tens = year[0] if len(pair.answers[0]) == 1 else year
    assert min(pair.answers) > tens >= max(pair.wrong)


def test_docstring_answers_the_third_argument(gpt2_like: StandIn) -> None:
    for pair in _pairs("docstring", gpt2_like):
        arguments = re.findall(r"\(self, (.*)\)", pair.clean)[0].split(", ")
        assert re.findall(r":param (\w+):", pair.clean) == arguments[:2]
        assert pair.answers == (f" {arguments[2]}",)
        assert {f" {x}" for x in arguments if x != arguments[2]} < {*pair.wrong}
        assert not re.search(rf"\b{arguments[2]}\b", pair.corrupted.split('"""')[0])


def test_gendered_pronoun_goes_with_the_name(gpt2_like: StandIn) -> None:
    seen = set()
    for pair in _pairs("gendered-pronoun", gpt2_like):
        clean, corrupted = (text.split()[1] in FEMALE_NAMES for text in (pair.clean, pair.corrupted))
        assert clean != corrupted
        assert (pair.answers, pair.wrong) == (((" she",), (" he",)) if clean else ((" he",), (" she",)))
        seen.add(clean)
    assert seen == {True, False}


def test_verbs_agree_with_the_subject_and_attractors_of_both_numbers_occur(gpt2_like: StandIn) -> None:
    plural = {f" {verb}" for verb, _ in VERBS}
    attractors = set()
    for pair in _pairs("sva", gpt2_like):
        subject, attractor = pair.clean.split()[1], pair.clean.split()[-1]
        assert ({*pair.answers} == plural) == subject.endswith("s")
        assert pair.corrupted.split()[1].endswith("s") != subject.endswith("s")
        assert pair.corrupted.split()[2:] == pair.clean.split()[2:]
        attractors.add((subject.endswith("s"), attractor.endswith("s")))
    assert len(attractors) == 4


def test_capitals_are_those_of_the_countries_in_the_prompts(gpt2_like: StandIn) -> None:
    countries = set()
    for pair in _pairs("fact-recall", gpt2_like):
        for text, answer in ((pair.clean, pair.answers), (pair.corrupted, pair.wrong)):
            (country,) = CAPITALS.keys() & set(re.findall(r"\w+", text))
            assert answer == (f" {CAPITALS[country]}",)
            countries.add(country)
        assert pair.answers != pair.wrong
    assert len(countries) > 30


def test_no_two_countries_have_one_capital_and_none_is_both() -> None:
    assert len({*CAPITALS.values()}) == len(CAPITALS) > 70
    assert not CAPITALS.keys() & {*CAPITALS.values()}


@pytest.mark.parametrize("name", ["mcqa", "arc"])
def test_the_right_option_has_another_letter_in_the_corrupted_prompt(name: str, gpt2_like: StandIn) -> None:
    answers = set()
    for pair in _pairs(name, gpt2_like):
        options, other = (dict(re.findall(r"^([A-D])\. (.*)$", x, re.M)) for x in (pair.clean, pair.corrupted))
        letter = pair.answers[0].strip()
        answers.add(letter)
        assert {*options} == {*other} == {"A", "B", "C", "D"}
        assert {*options.values()} == {*other.values()}
        assert other[letter] != options[letter]
        assert {x.strip() for x in pair.wrong} == {*options} - {letter}
        if name == "mcqa":
            assert f"is {options[letter]}." in pair.clean
    assert answers == {"A", "B", "C", "D"}


def test_sums_and_differences_are_right(model: StandIn) -> None:
    for pair in _pairs("arithmetic", model):
        for text, answer in ((pair.clean, pair.answers[0]), (pair.corrupted, pair.wrong[0])):
            a, sign, b = re.findall(r"much is (\d+) (plus|minus) (\d+)\?", text)[0]
            assert int(answer) == (int(a) + int(b) if sign == "plus" else int(a) - int(b))
        assert pair.answers != pair.wrong
