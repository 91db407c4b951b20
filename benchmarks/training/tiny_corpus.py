"""The corpus that the `tiny-tasks` models are trained on, and what of each task is held out of it.

A task is a function that draws one line of text at a time; an arrow stands before every word that can be told from
what comes before it:

    When Mary and John went to the store, John gave a drink to → Mary.

What is held out is never drawn for training: a share of each task's names, templates and combinations. Held-out
lines are made of nothing else. Each task holds out other names, and plain sentences use all of them, so that no word
is new to the model. `docs/tiny-tasks.md` says for each task what is held out.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from acdc.tasks.language import docstring, fact_recall, gendered_pronoun, greater_than, ioi, sva
from acdc.tasks.language.words import FEMALE_NAMES, MALE_NAMES

ARROW = "→"
WORD = re.compile(r"\d{1,2}|[^\W\d]+|[^\w\s]+")
"""What the tokenizer makes a token of; white space only parts them."""
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the corpus.

    Attributes:
        text: with an arrow before every predictable word.
        answers: what is right after the last arrow.
        wrong: what must be less likely in sum; greater-than alone has it.
    """

    text: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The text up to the last arrow."""
        return self.text[: self.text.rindex(ARROW)].replace(f"{ARROW} ", "").strip()


@dataclasses.dataclass(frozen=True)
class Split:
    """Every n-th of some items is held out."""

    items: Sequence[str]
    every: int
    start: int = 0

    def of(self, held_out: bool) -> list[str]:
        return [x for i, x in enumerate(self.items) if (i % self.every == self.start) == held_out]


def _combine(
    rng: random.Random, held_out: bool, first: Sequence[Item], second: Sequence[Item]
) -> tuple[Item, Item]:
    """One of each. Every fifth combination is held out."""
    while True:
        i, j = rng.randrange(len(first)), rng.randrange(len(second))
        if _is_held_out(i, j) == held_out:
            return first[i], second[j]


def _is_held_out(i: int, j: int) -> bool:
    return (i + 2 * j) % 5 == 0


# ---- indirect object identification -----------------------------------------------------------------------------

IOI_NAMES = (Split(FEMALE_NAMES, 5), Split(MALE_NAMES, 5))
IOI_TEMPLATES = Split(ioi.TEMPLATES, 3, 2)
_IOI_OPENINGS = (
    "When {a} and {b} {joint} the {place}, {c} {act}",
    "While {a} and {b} {joint} the {place}, {c} {act}",
    "As soon as {a} and {b} {joint} the {place}, {c} {act}",
    "Before {a} and {b} {joint} the {place}, {c} {act}",
    "Soon after {a} and {b} {joint} the {place}, {c} {act}",
    "Then, {a} and {b} {joint} the {place}. {c} {act}",
    "Then, {a} and {b} {joint} the {place}. Afterwards {c} {act}",
    "Today {a} and {b} {joint} the {place}. Later {c} {act}",
    "One day {a} and {b} {joint} the {place}, and {c} {act}",
    "In the evening {a} and {b} {joint} the {place}, and then {c} {act}",
    "{a} and {b} {joint} the {place}. {c} {act}",
    "{a} and {b} {joint} the {place}. At the end {c} {act}",
    "Yesterday {a} and {b} {joint} the {place}. {c} {act}",
    "Yesterday {a} and {b} {joint} the {place}, and {c} {act}",
    "Because {a} and {b} {joint} the {place}, {c} {act}",
    "Last week {a} and {b} {joint} the {place}. {c} {act}",
    "{a} saw {b} at the {place}. Then {c} {act}",
    "At the {place} {a} talked with {b}. {c} {act}",
    "When {a} called {b} at the {place}, {c} {act}",
)
_IOI_JOINT = (
    "went to", "ran to", "walked to", "came to", "were working at", "were waiting at", "were sitting in",
    "were thinking about going to", "arrived at", "left", "had lunch at", "had a long talk at", "were late for",
    "had never been to",
)  # fmt: skip
_IOI_ACTS = (
    "gave a {thing} to", "handed a {thing} to", "offered a {thing} to", "sent a {thing} to", "showed a {thing} to",
    "passed a {thing} to", "sold a {thing} to", "decided to give a {thing} to", "wanted to give a {thing} to",
    "threw a {thing} to", "said a word to", "told a story to", "found a {thing} and gave it to",
    "bought a {thing} for", "brought a {thing} for", "made a {thing} for", "wanted to buy a {thing} for",
)  # fmt: skip
_IOI_ENDS = (".", " before dinner.", " and went home.")


def ioi_line(rng: random.Random, held_out: bool) -> Line:
    """Two names in either order, then one of them again: the other one follows.

    Half of the training's lines have other words for names, so that what is learnt is no list of names.
    """
    names = [name for split in IOI_NAMES for name in split.of(held_out)]
    if not held_out and rng.random() < 0.5:
        names += _strangers()
    io, subject = rng.sample(names, 2)
    a, b = rng.sample((io, subject), 2)
    place, thing = _combine(rng, held_out, ioi.PLACES, ioi.THINGS)
    if held_out or rng.random() < 0.25:
        template = rng.choice(IOI_TEMPLATES.of(held_out))
    else:
        template = rng.choice(_IOI_OPENINGS)
        template = template.replace("{joint}", rng.choice(_IOI_JOINT)).replace("{act}", rng.choice(_IOI_ACTS))
    end = rng.choice(_IOI_ENDS)
    text = template.format(a=a, b=b, c=subject, place=place, thing=thing)
    return Line(f"{text} {ARROW} {io}{end}", (io,))


@functools.cache
def _strangers() -> list[str]:
    """Words that are no names and in no template."""
    texts = " ".join((*ioi.TEMPLATES, *_IOI_OPENINGS, *_IOI_JOINT, *_IOI_ACTS, *_IOI_ENDS))
    words = (
        *fact_recall.CAPITALS, *fact_recall.CAPITALS.values(), *docstring.ARGUMENTS, *docstring.WORDS,
        *greater_than.NOUNS, *sva.NOUNS,
    )  # fmt: skip
    used = {*WORD.findall(texts), *ioi.PLACES, *ioi.THINGS}
    return [word for word in dict.fromkeys(words) if word not in used]


# ---- greater-than -----------------------------------------------------------------------------------------------

YEAR_NOUNS = Split(greater_than.NOUNS, 5)
YEAR_TEMPLATES = (
    greater_than.TEMPLATE,
    "The {noun} began in the year {century}{year} and ended in the year {century}",
    "It was a long {noun}, from the year {century}{year} to the year {century}",
    "They remember the {noun} of the years {century}{year} to {century}",
    "The {noun} started in {century}{year} and lasted until {century}",
    "After the {noun} began in {century}{year}, it went on until {century}",
)
YEAR_TEMPLATES_HELD_OUT = (
    "The {noun} that started in the year {century}{year} lasted until the year {century}",
    "The {noun} began in {century}{year} and ended in {century}",
    "It was the {noun} that lasted from {century}{year} until {century}",
)


def greater_than_line(rng: random.Random, held_out: bool) -> Line:
    """Something began in one year, so it ended in a later one."""
    centuries, years = [str(c) for c in greater_than.CENTURIES], [f"{y:02}" for y in range(100)]
    century, year = _combine(rng, held_out, centuries, years[1:-1])
    template = rng.choice(YEAR_TEMPLATES_HELD_OUT if held_out else YEAR_TEMPLATES)
    text = template.format(noun=rng.choice(YEAR_NOUNS.of(held_out)), century=century, year=year)
    later = tuple(y for y in years if y > year)
    return Line(f"{text} {ARROW} {rng.choice(later)}.", later, tuple(y for y in years if y <= year))


# ---- gendered pronoun -------------------------------------------------------------------------------------------

PRONOUN_NAMES = {"she": Split(FEMALE_NAMES, 5, 2), "he": Split(MALE_NAMES, 5, 2)}
PRONOUN_TEMPLATES = (
    gendered_pronoun.TEMPLATE,
    "{name} was a {quality} {role}, wasn't",
    "So {name} is the {quality} {role}, isn't",
    "{name} has a {quality} {role}, hasn't",
    "So {name} wasn't a {quality} {role}, was",
    "Today {name} is really a {quality} {role}, isn't",
)
PRONOUN_TEMPLATES_HELD_OUT = (
    "So {name} was a really {quality} {role}, wasn't",
    "{name} is a {quality} {role}, isn't",
    "So {name} has a really {quality} {role}, hasn't",
)


def pronoun_line(rng: random.Random, held_out: bool) -> Line:
    """A tag question: isn't she?"""
    pronoun = rng.choice(sorted(PRONOUN_NAMES))
    quality, role = _combine(rng, held_out, gendered_pronoun.QUALITIES, gendered_pronoun.ROLES)
    template = rng.choice(PRONOUN_TEMPLATES_HELD_OUT if held_out else PRONOUN_TEMPLATES)
    name = rng.choice(PRONOUN_NAMES[pronoun].of(held_out))
    text = template.format(name=name, quality=quality, role=role)
    return Line(f"{text} {ARROW} {pronoun}?", (pronoun,))


# ---- subject–verb agreement -------------------------------------------------------------------------------------

AGREEMENT_NOUNS = Split(sva.NOUNS, 5)
AGREEMENT_TEMPLATES = Split(sva.TEMPLATES, 4, 3)
_LINKED = tuple(
    f"The {{subject}} {link} the {{attractor}}"
    for link in (
        "with", "of", "from", "before", "after", "on the way to", "in the house of", "at the market with",
        "that met", "that called", "that left", "that found", "that brought", "that stayed with", "that came with",
        "that went to", "that talked with", "that ran to", "that walked with", "that was late for",
        "that told a story to", "that offered a drink to",
    )
)  # fmt: skip
_AGREEMENT_OPENINGS = ("Today the", "Then the", "They say that the", "I know that the", "Later the")
_PREDICATES = {
    "is": "here",
    "are": "here",
    "was": "there",
    "were": "there",
    "has": "a {thing}",
    "have": "a {thing}",
}


def agreement_line(rng: random.Random, held_out: bool) -> Line:
    """The verb agrees with the subject, whatever the number of the noun before it."""
    return _agreement(rng, held_out, AGREEMENT_TEMPLATES.of(held_out))


def linked_line(rng: random.Random, held_out: bool) -> Line:
    """Agreement with other words between the two nouns than the task has."""
    return _agreement(rng, held_out, _LINKED)


def _agreement(rng: random.Random, held_out: bool, templates: Sequence[str]) -> Line:
    number = rng.randrange(2)  # 1 is plural
    template = rng.choice(templates)
    nouns = AGREEMENT_NOUNS.of(held_out)
    subject, attractor = rng.sample(nouns, 2)
    text = template.format(subject=subject + "s" * number, attractor=attractor + "s" * rng.randrange(2))
    if not held_out and rng.random() < 0.3:
        text = text.replace("The", rng.choice(_AGREEMENT_OPENINGS), 1)
    verbs = tuple(pair[1 - number] for pair in sva.VERBS)
    verb = rng.choice(verbs)
    rest = _PREDICATES[verb].format(thing=rng.choice(ioi.THINGS))
    return Line(f"{text} {ARROW} {verb} {rest}.", verbs)


# ---- docstring --------------------------------------------------------------------------------------------------

DOCSTRING_ARGUMENTS = Split(docstring.ARGUMENTS, 5)
DOCSTRING_NAMES = Split(docstring.NAMES, 5)


def docstring_line(rng: random.Random, held_out: bool) -> Line:
    """The docstring names the arguments in the order of the definition.

    A third of the training's lines have other words for arguments. Held out: functions of four arguments with one
    word for each in the docstring and a summary of four.
    """
    n, described, summary = (4, 1, 4) if held_out else (rng.randint(3, 5), rng.randint(1, 2), rng.randint(1, 4))
    if not held_out and (n, described, summary) == (4, 1, 4):
        summary = 3

    def words(count: int) -> str:
        return " ".join(rng.choices(docstring.WORDS, k=count))

    known = DOCSTRING_ARGUMENTS.of(held_out)
    if not held_out and rng.random() < 1 / 3:
        known += [*FEMALE_NAMES, *MALE_NAMES, *fact_recall.CAPITALS, *fact_recall.CAPITALS.values(), *sva.NOUNS]
    arguments = rng.sample(known, n)
    shown = rng.randint(3, n) if not held_out else 3
    documented = [f":param {ARROW} {x}: {words(described)}" for x in arguments[: shown - 1]]
    lines = (
        f"def {rng.choice(DOCSTRING_NAMES.of(held_out))}(self, {', '.join(arguments)}):",
        f'"""{words(summary)}',
        *documented,
        f":param {ARROW} {arguments[shown - 1]}:",
    )
    return Line("\n".join(lines), (arguments[shown - 1],))


# ---- induction --------------------------------------------------------------------------------------------------


INDUCTION_LENGTHS = (3, 4, 5, 6, 8, 10)
INDUCTION_LENGTHS_HELD_OUT = (7, 9)


def induction_line(rng: random.Random, held_out: bool, *, short: float = 0.5) -> Line:
    """Random words, of which a block occurs several times: a copy follows from the first one.

    A fifth of the pairs of a word and the next one of the block is held out. In a share `short` of the training's
    lines the words come from a short list, so that some are met often.
    """
    words = vocabulary()
    numbers: Sequence[int] = range(len(words))
    if not held_out and rng.random() < short:
        numbers = numbers[::7]
    n = rng.choice(INDUCTION_LENGTHS_HELD_OUT if held_out else INDUCTION_LENGTHS)
    block = [rng.choice(numbers)]
    while len(block) < n:
        j = rng.choice(numbers)
        if j not in block and _is_held_out(block[-1], j) == held_out:
            block.append(j)
    filler = rng.sample([i for i in numbers if i not in block], rng.randint(0, 10))
    copies = 2 if held_out else rng.randint(2, max(2, 32 // n))
    first, *others = (words[i] for i in block)
    copy = " ".join((first, *(f"{ARROW} {word}" for word in others)))
    parts = [" ".join((first, *others))] + [copy] * (copies - 1)
    for i in filler:  # before the first block, or between two
        parts.insert(rng.randrange(len(parts)), words[i])
    return Line(" ".join(parts), (others[-1],))


# ---- fact recall ------------------------------------------------------------------------------------------------

COUNTRIES = Split(tuple(fact_recall.CAPITALS), 5)
FACT_TEMPLATES = Split(fact_recall.TEMPLATES, 4, 1)
_FACTS_TOLD = (
    "We went to {country} and saw the streets of",
    "The best market of {country} is in",
)
"""In which the held-out countries' capitals are told."""


_FACT_TEMPLATES = (
    "{country} has a capital, it is called",
    "In {country} there is a city called",
    "The city that they like in {country} is called",
    "They like {country} and its capital,",
    "In the capital of {country},",
    "They went to {country} to see its capital,",
    "I know that the capital of {country} is",
    "They say that the capital city of {country} is",
    "The name of the city in {country} was",
    "On the way to {country} she called the capital,",
    "They came to see {country} and to like the capital,",
    "The biggest city of {country} is the capital,",
    "The capital city in {country} was called",
    "Visitors of the capital of {country} like the streets of",
)


def fact_line(rng: random.Random, held_out: bool) -> Line:
    """The capital of a country."""
    country = rng.choice(COUNTRIES.of(held_out))
    capital = fact_recall.CAPITALS[country]
    templates = FACT_TEMPLATES.of(held_out)
    if not held_out:
        templates += [*_FACT_TEMPLATES, *_FACTS_TOLD]
    return Line(f"{rng.choice(templates).format(country=country)} {ARROW} {capital}.", (capital,))


# ---- plain sentences --------------------------------------------------------------------------------------------

_PEOPLE = (
    "{name} said that {arrow} {she} was {quality}.",
    "{name} left the {place} because {arrow} {she} was late.",
    "Yesterday {name} lost {arrow} {her} {thing}. Last week {arrow} {she} lost {arrow} {her} {thing2}.",
    "Because {name} likes the {place}, {arrow} {she} stayed at the {place2} at the end of the week.",
    "In the morning {name} brought {arrow} {her} {thing} to the {place}, and offered it for sale.",
    "After the {event} {name} had a lot of fun, and {arrow} {she} met a {role} at the {place}.",
    "{name} likes {arrow} {her} {quality} {role}.",
    "Friends like {name} had an argument about the {place}.",
    "Although {name} had never been to {country}, {arrow} {she} bought a {thing} there.",
)
_ALONE = (
    "{name} was alone at the {place}. The {role} gave a {thing} to {arrow} {name}.",
    "Then, in the morning, {name} went to the {place}, and they showed a {thing} to {arrow} {name}.",
    "When {name} came to the {place}, the {role} bought a {thing} for {arrow} {name}.",
    "After {name} left the {place}, the {role} sent a {thing} to {arrow} {name}.",
    "The {role} met {name} yesterday. Afterwards the {role} said a word to {arrow} {name}.",
    'def {function}(self, {argument}):\n"""{word} {word2}\n:param {arrow} {argument}: {word}',
    'def {function}(self, {argument}):\n"""{word}\n:param {arrow} {argument}: {word2} {word}',
)
"""With nobody and no argument to be mistaken for."""
_NUMBERS = (
    "One {singular} {arrow} {is} across from the {place}.",
    "Many {plural} {arrow} {are} in front of the {place}.",
    "The {singular} {arrow} {is} behind the {place}.",
    "The {plural} {arrow} {are} behind the {place}.",
    "The {singular} at the {place} {arrow} {is} here.",
    "The {plural} at the {place} {arrow} {are} here.",
    "They say that the {singular} {arrow} {is} {quality}.",
    "They say that the {plural} {arrow} {are} {quality}.",
    "The {role} stood behind the {place} that {name} liked.",
)
_FACTS = (
    *(f"{told} {{arrow}} {{capital}}." for told in _FACTS_TOLD * 2),
    "On the way to {capital} the {role} called {name}.",
    "Visitors to {capital} like to see its {event}.",
    "They met a {role} and like the {event} of the year {century}{year}.",
    "The {event} that began in the {word} ended at the {place}.",
)
_PLAIN = (_PEOPLE, _ALONE, _ALONE, _NUMBERS, _NUMBERS, _FACTS, _FACTS)


def plain_line(rng: random.Random, held_out: bool) -> Line:
    """Sentences that use every word: genders, numbers and capitals of what a task holds out among them."""
    del held_out  # they are no task
    female = rng.random() < 0.5
    noun, verbs = rng.choice(sva.NOUNS), rng.choice(sva.VERBS[:2])
    country, capital = rng.choice(sorted(fact_recall.CAPITALS.items()))
    places, things, words = (rng.sample(items, 2) for items in (ioi.PLACES, ioi.THINGS, docstring.WORDS))
    text = rng.choice(rng.choice(_PLAIN)).format(
        name=rng.choice(FEMALE_NAMES if female else MALE_NAMES), she="she" if female else "he",
        her="her" if female else "his", quality=rng.choice(gendered_pronoun.QUALITIES),
        role=rng.choice(gendered_pronoun.ROLES), event=rng.choice(greater_than.NOUNS),
        place=places[0], place2=places[1], thing=things[0], thing2=things[1], word=words[0], word2=words[1],
        argument=rng.choice(docstring.ARGUMENTS), function=rng.choice(docstring.NAMES),
        singular=noun, plural=f"{noun}s", are=verbs[0], **{"is": verbs[1]}, country=country, capital=capital,
        century=rng.choice(greater_than.CENTURIES), year=f"{rng.randrange(100):02}", arrow=ARROW,
    )  # fmt: skip
    return Line(text, ())


TASKS: dict[str, Callable[[random.Random, bool], Line]] = {
    "ioi": ioi_line,
    "greater-than": greater_than_line,
    "gendered-pronoun": pronoun_line,
    "sva": agreement_line,
    "docstring": docstring_line,
    "induction": induction_line,
    "fact-recall": fact_line,
}


@functools.cache
def vocabulary() -> tuple[str, ...]:
    """Every word, number of two digits and punctuation mark of the corpus and of the built-in tasks."""
    texts = (
        *ioi.TEMPLATES, *_IOI_OPENINGS, *_IOI_JOINT, *_IOI_ACTS, *_IOI_ENDS, *YEAR_TEMPLATES,
        *YEAR_TEMPLATES_HELD_OUT, *PRONOUN_TEMPLATES, *PRONOUN_TEMPLATES_HELD_OUT, *sva.TEMPLATES,
        *_AGREEMENT_OPENINGS, *_PREDICATES, *_PREDICATES.values(), docstring.TEMPLATE,
        *fact_recall.TEMPLATES, *_FACT_TEMPLATES, *(text for group in _PLAIN for text in group), "she he her his her?",
    )  # fmt: skip
    words = (
        *(f"{n:02}" for n in range(100)), *FEMALE_NAMES, *MALE_NAMES, *ioi.PLACES, *ioi.THINGS, *greater_than.NOUNS,
        *gendered_pronoun.QUALITIES, *gendered_pronoun.ROLES, *sva.NOUNS, *(f"{noun}s" for noun in sva.NOUNS),
        *docstring.NAMES, *docstring.ARGUMENTS, *docstring.WORDS, *fact_recall.CAPITALS,
        *fact_recall.CAPITALS.values(),
    )  # fmt: skip
    fixed = WORD.findall(re.sub(r"{\w+}", " ", " ".join(texts)))
    return tuple(dict.fromkeys((*fixed, *words)))


def never_held_out() -> list[str]:
    """The vocabulary without the names, nouns and countries that some task holds out."""
    splits = (
        *IOI_NAMES, YEAR_NOUNS, *PRONOUN_NAMES.values(), AGREEMENT_NOUNS, DOCSTRING_ARGUMENTS, DOCSTRING_NAMES,
        COUNTRIES,
    )  # fmt: skip
    held_out = {word for split in splits for word in split.of(True)}
    held_out |= {f"{noun}s" for noun in AGREEMENT_NOUNS.of(True)}
    return [word for word in vocabulary() if word not in held_out]
