"""The corpus of the tiny-tasks models: what is right in it, and that what is held out is."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from acdc.benchmarks.suites import TRAINED
from acdc.benchmarks.training import tiny_corpus as corpus
from acdc.benchmarks.training.tiny_corpus import ARROW, TASKS, WORD, Line, linked_line, plain_line, vocabulary
from acdc.tasks.language import docstring, fact_recall, greater_than, sva
from acdc.tasks.language.words import FEMALE_NAMES, MALE_NAMES


def draw(name: str, *, held_out: bool, count: int = 300) -> list[Line]:
    rng = random.Random(f"{name}/{held_out}")
    return [TASKS[name](rng, held_out) for _ in range(count)]


def used(lines: Iterable[Line], among: Iterable[str]) -> set[str]:
    """Which of the words stand in the lines; of definitions, only the arguments count."""
    texts = (re.sub(r"def \w+\(self, (.*)\):\n(.|\n)*", r"\1", line.text) for line in lines)
    return {word for text in texts for word in WORD.findall(text)} & {*among}


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_prompt_is_drawn_for_training(name: str) -> None:
    train, held_out = ({line.prompt for line in draw(name, held_out=x, count=700)} for x in (False, True))
    assert len(held_out) > 25
    assert not train & held_out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ioi", FEMALE_NAMES + MALE_NAMES),
        ("greater-than", greater_than.NOUNS),
        ("gendered-pronoun", FEMALE_NAMES + MALE_NAMES),
        ("sva", sva.NOUNS + tuple(f"{noun}s" for noun in sva.NOUNS)),
        ("docstring", docstring.ARGUMENTS),
        ("fact-recall", fact_recall.CAPITALS),
    ],
)
def test_names_are_of_training_or_held_out_and_plain_sentences_know_all(name: str, words: tuple[str, ...]) -> None:
    train, held_out = (used(draw(name, held_out=x, count=700), words) for x in (False, True))
    assert train | held_out == {*words}
    assert not train & held_out
    assert len(held_out) >= 9
    rng = random.Random(0)
    assert used((plain_line(rng, False) for _ in range(6000)), words) == {*words}


@pytest.mark.parametrize("held_out", [False, True])
def test_lines_are_right(held_out: bool) -> None:
    known_as_names = (*FEMALE_NAMES, *MALE_NAMES, *([] if held_out else corpus._strangers()))
    for line in draw("ioi", held_out=held_out):
        words = WORD.findall(line.prompt)
        assert words.count(line.answers[0]) == 1
        subjects = [x for x in used([line], known_as_names) if x not in line.answers]
        assert [words.count(subject) for subject in subjects] == [2]
    for line in draw("greater-than", held_out=held_out):
        (year,) = re.findall(r"\d\d(\d\d)", line.prompt)
        assert min(line.answers) > year == max(line.wrong)
    for line in draw("gendered-pronoun", held_out=held_out):
        assert bool(used([line], FEMALE_NAMES)) == (line.answers == ("she",))
    for line in draw("docstring", held_out=held_out):
        arguments = re.findall(r"\(self, (.*)\)", line.prompt)[0].split(", ")
        assert (
            re.findall(r":param (\w+):", line.text.replace(f"{ARROW} ", ""))
            == arguments[: arguments.index(line.answers[0]) + 1]
        )
    for line in draw("fact-recall", held_out=held_out):
        (country,) = used([line], fact_recall.CAPITALS)
        assert line.answers == (fact_recall.CAPITALS[country],)


def test_subjects_and_attractors_of_both_numbers_occur_together() -> None:
    seen = set()
    for line in draw("sva", held_out=False):
        subject, attractor = (word for word in WORD.findall(line.prompt) if word.rstrip("s") in sva.NOUNS)
        assert (line.answers == ("are", "were", "have")) == subject.endswith("s")
        seen.add((subject.endswith("s"), attractor.endswith("s")))
    assert len(seen) == 4


def test_other_links_show_nothing_that_agreement_holds_out() -> None:
    rng = random.Random(0)
    lines = [linked_line(rng, False) for _ in range(600)]
    nouns = sva.NOUNS + tuple(f"{noun}s" for noun in sva.NOUNS)
    assert not used(lines, nouns) & used(draw("sva", held_out=True), nouns)
    between = [re.split("{.*?}", template)[1] for template in corpus.AGREEMENT_TEMPLATES.of(True)]
    assert " across from the " in between
    assert not any(words in line.text for words in between for line in lines)
    assert {word for line in lines for word in WORD.findall(line.text.replace(ARROW, " "))} <= {*vocabulary()}


@pytest.mark.parametrize("held_out", [False, True])
def test_predictable_words_of_induction_followed_the_word_before_earlier(held_out: bool) -> None:
    for line in draw("induction", held_out=held_out):
        plain: list[str] = []
        predictable = False
        for word in line.text.split():
            if predictable:
                followers = {plain[i + 1] for i in range(len(plain) - 1) if plain[i] == plain[-1]}
                assert followers == {word}
            predictable = word == ARROW
            if not predictable:
                plain.append(word)


def test_no_word_is_predicted_from_the_same_word_in_training_and_held_out() -> None:
    def pairs(held_out: bool) -> set[tuple[str, str]]:
        lines = (line.text.split() for line in draw("induction", held_out=held_out))
        steps = ((words[i - 1], words[i + 1]) for words in lines for i, x in enumerate(words) if x == ARROW)
        return set(steps)

    train, held_out = pairs(False), pairs(True)
    assert min(len(train), len(held_out)) > 500
    assert not train & held_out


def test_every_word_is_known_and_learnt_outside_of_random_sequences() -> None:
    rng = random.Random(0)
    lines = [draw_line(rng, False) for name, draw_line in TASKS.items() if name != "induction" for _ in range(3000)]
    lines += [plain_line(rng, False) for _ in range(6000)]
    seen = {word for line in lines for word in WORD.findall(line.text.replace(ARROW, " "))}
    held_out = {word for name in TASKS for line in draw(name, held_out=True) for word in WORD.findall(line.prompt)}
    assert seen == {*vocabulary()}
    assert held_out <= seen


def test_prompts_end_where_the_answer_is_asked_for() -> None:
    line = Line(f"a b {ARROW} c d {ARROW} e f", ("e",))
    assert line.prompt == "a b c d"
    assert corpus.Split(("a", "b", "c", "d"), 3, 1).of(True) == ["b"]


def test_the_suite_of_trained_models_has_every_task() -> None:
    assert tuple(TASKS) == TRAINED
