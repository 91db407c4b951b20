"""A picture shows a prompt's tokens below the input, in order, and its answer beside the logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import acdc
from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.tasks.prompts import Prompts
from acdc.tasks.task import Dataset
from acdc.viz import ShownPrompt, draw
from acdc.viz.diagram import make_diagram
from acdc.viz.prompt import MOST_TOKENS, token_text
from acdc.viz.style import get_style
from command_line import Command

CIRCUIT = Circuit.from_names(Graph(1, 1), ["input->m0", "m0->logits"])
PROMPT = ShownPrompt(("When", " Mary", " and", "\n", "<s>"), " John")


def test_tokens_stand_in_order_below_the_input_and_inside_the_picture() -> None:
    many = ShownPrompt(tuple(f" word{i}" for i in range(40)))
    diagram = make_diagram(CIRCUIT, get_style("paper"), prompt=many)
    lowest = next(node for node in diagram.nodes if node.name == "input").box.bottom
    tokens = [node for node in diagram.nodes if node.label.startswith("word")]
    assert [node.label for node in tokens] == [f"word{i}" for i in range(40)]
    places = [(-node.box.y, node.box.x) for node in tokens]
    assert places == sorted(places)
    assert all(node.box.top < lowest for node in tokens)
    for node in tokens:
        assert diagram.left <= node.box.x - node.box.width / 2
        assert node.box.x + node.box.width / 2 <= diagram.left + diagram.width
    below = min(node.box.bottom for node in tokens)
    assert all(text.y < below for text in diagram.texts if "edges" in text.text)


def test_of_a_long_prompt_both_ends_are_shown() -> None:
    tokens = tuple(f"w{i}" for i in range(1000))
    labels = [node.label for node in make_diagram(CIRCUIT, get_style("paper"), prompt=ShownPrompt(tokens)).nodes]
    assert len(labels) == MOST_TOKENS + 1 + 3
    assert {"w0", "w999", "…"} <= set(labels)


@pytest.mark.parametrize("format", ["svg", "dot", "tikz"])
def test_every_format_has_them(format: str) -> None:
    renderer = "matplotlib" if format == "svg" else None
    text = draw(CIRCUIT, format=format, prompt=PROMPT, renderer=renderer).content.decode()
    plain = draw(CIRCUIT, format=format, renderer=renderer).content.decode()
    for word in ("When", "Mary", "John"):
        assert word in text
        assert word not in plain


def test_what_cannot_be_seen_is_written_out() -> None:
    assert [token_text(text) for text in (" Mary", "\n", "  ", "\t\t", "a\u202eb")] == [
        "Mary", "\\n", "␣␣", "\\t\\t", "ab",
    ]  # fmt: skip
    assert len(token_text("x" * 1000)) < 30


def test_the_prompt_of_a_task_is_the_one_of_that_number() -> None:
    model = acdc.load("tiny-tasks")
    data = acdc.tasks.load("ioi", size=4).prepare(model)
    assert data.held_out is not None
    shown = ShownPrompt.of(data, model, 2)
    real = data.held_out.mask[1]
    assert " ".join(shown.tokens) == model.tokenizer.decode(data.held_out.clean[1][real].tolist())
    assert data.held_out.answers is not None
    assert shown.answer == model.tokenizer.decode(data.held_out.answers[1, 0].tolist())
    with pytest.raises(AcdcError, match="at most 4"):
        ShownPrompt.of(data, model, 5)
    with pytest.raises(AcdcError, match="expected a ShownPrompt"):
        draw(CIRCUIT, prompt="When Mary")  # type: ignore[arg-type]


def test_an_answer_of_several_tokens_is_no_part_of_the_prompt() -> None:
    model = acdc.load("induction-2l")
    prompts = Prompts.from_continuations(
        torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 8]]), answers=[[[9, 10], [11]]], wrong=[[[12]]]
    )
    data = Dataset("mine", prompts, None, acdc.metrics.OUTCOMES["log-probability-difference"])
    assert ShownPrompt.of(data, model) == ShownPrompt(("5", "6", "7"), "910 …")


def test_the_command_draws_a_prompt_where_it_is_asked_to(command: Command) -> None:
    command("discover", "tracr-hist", "-o", "run", "--random-circuits", 0)
    assert command("draw", "run", "--prompt", 3, "-o", "three.tex").status == 0
    assert command("draw", "run", "-o", "none.tex").status == 0
    assert "BOS" in Path("three.tex").read_text()
    assert "BOS" not in Path("none.tex").read_text()
    wrong = command("draw", "run", "--prompt", 100_000, "-o", "x.tex")
    assert (wrong.status, wrong.err.count("\n")) == (2, 1)
    assert "number of a prompt" in wrong.err
