"""Multiple choice by letter: the options are labelled, and the label of the right one is the answer.

    A box is brown. What color is the box?
    A. gray
    B. black
    C. white
    D. brown
    Answer: → D

The corrupted prompt has the same options under permuted labels, so that the right one has another letter. In
`mcqa` the prompt holds the answer, as in the copied colors of the MIB benchmark; `arc` asks science questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from acdc.tasks.language.words import listed
from acdc.tasks.spans import END, Characters, Span
from acdc.tasks.tokenise import Encoder, ModelLike, TextPair

LETTERS = ("A", "B", "C", "D")
COLORS = listed("brown gray black white red green blue yellow orange pink purple")
OBJECTS = listed("box ball car door house shirt book chair table cup bag boat wall lamp hat flower")

SCIENCE = """
    Which gas do plants take in to make food? | carbon dioxide | oxygen | nitrogen | helium
    Which of these is a source of light? | the Sun | the Moon | a mirror | a window
    What force pulls objects toward the Earth? | gravity | friction | magnetism | electricity
    What is frozen water called? | ice | steam | rain | dew
    Which organ pumps blood through the body? | the heart | the lung | the stomach | the brain
    Which planet is closest to the Sun? | Mercury | Venus | Mars | Jupiter
    What do bees collect from flowers? | nectar | sand | seeds | leaves
    Which animal lays eggs? | a hen | a cow | a dog | a horse
    Which material conducts electricity best? | copper | wood | glass | rubber
    What part of a plant takes in water from the soil? | the root | the flower | the leaf | the fruit
    What causes day and night on Earth? | its rotation | its orbit | the Moon | the wind
    Which tool measures temperature? | a thermometer | a ruler | a balance | a clock
    Which of these is a mammal? | a whale | a shark | a frog | a snake
    What do humans breathe in to live? | oxygen | carbon dioxide | methane | helium
    Which state of matter keeps its own shape? | solid | liquid | gas | plasma
    What do we call an animal that eats only plants? | a herbivore | a carnivore | a predator | a parasite
    Which resource is renewable? | wind | coal | oil | natural gas
    What is the center of an atom called? | the nucleus | the electron | the shell | the molecule
    Which sense uses the ears? | hearing | sight | smell | taste
    What does a caterpillar become? | a butterfly | a spider | a bee | a worm
    Which rock forms from cooled lava? | igneous | sedimentary | metamorphic | limestone
    What melts ice fastest? | heat | darkness | silence | cold
    Which body in space orbits the Earth? | the Moon | the Sun | Mars | Venus
    What turns liquid water into vapor? | evaporation | condensation | freezing | melting
""".strip().splitlines()
"""Question, right answer, wrong answers."""


def copied_pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Questions whose answer, a color, stands in the prompt."""
    Encoder(model)
    while True:
        thing = rng.choice(OBJECTS)
        colors = rng.sample(COLORS, len(LETTERS))
        yield _pair(f"A {thing} is {colors[0]}. What color is the {thing}?", colors, rng)


def science_pairs(model: ModelLike, rng: random.Random) -> Iterator[TextPair]:
    """Science questions in the style of the ARC data set."""
    Encoder(model)
    while True:
        question, *options = (part.strip() for part in rng.choice(SCIENCE).split("|"))
        yield _pair(f"Question: {question}", options, rng)


def _pair(question: str, options: Sequence[str], rng: random.Random) -> TextPair:
    """A question with its options, the first of which is right, in random order."""
    order = rng.sample(range(len(LETTERS)), len(LETTERS))
    right = order.index(0)
    labels = rng.sample(LETTERS, len(LETTERS))
    while labels[right] == LETTERS[right]:
        labels = rng.sample(LETTERS, len(LETTERS))

    def prompt(letters: Sequence[str]) -> str:
        lines = (f"{letter}. {options[i]}" for letter, i in zip(letters, order, strict=True))
        return "\n".join((question, *lines, "Answer:"))

    clean = prompt(LETTERS)
    line = clean.index(f"\n{LETTERS[right]}. ") + 1
    letter, option = Characters(line, line + 1), Characters(line + 2, line + 3 + len(options[0]))
    return TextPair(
        clean=clean,
        corrupted=prompt(labels),
        answers=(f" {LETTERS[right]}",),
        wrong=tuple(f" {other}" for other in LETTERS if other != LETTERS[right]),
        spans=(Span("letter", letter), Span("option", option), END),
    )
