"""One prompt in a picture: its tokens below the input, a small box each, and its answer beside the logits.

A run holds no prompts: they are its user's, and a run is what is passed on. So the prompt is drawn where it is asked
for, from the task's own prompts (`ShownPrompt.of`) or from any texts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from acdc.errors import check_whole
from acdc.viz.elements import DiagramNode, DiagramText, clean, text_width
from acdc.viz.layout import Box
from acdc.viz.style import Style

if TYPE_CHECKING:
    from acdc.model.model import Model
    from acdc.tasks.task import Dataset

MOST_TOKENS = 60
"""Of a longer prompt the middle is left out."""
MOST_LETTERS = 24
"""Of a token or an answer, which may be any text."""


@dataclasses.dataclass(frozen=True)
class ShownPrompt:
    """A prompt as a picture shows it.

    Attributes:
        tokens: their texts, in order.
        answer: what is to follow; "" for none.
    """

    tokens: tuple[str, ...]
    answer: str = ""

    @classmethod
    def of(cls, dataset: Dataset, model: Model, number: int = 1) -> ShownPrompt:
        """The prompt of that number, counted from 1, of the held-out prompts; of the discovery prompts without any.

        Raises:
            AcdcError: there are not so many.
        """
        from acdc.inspection.runs import input_texts, output_texts

        prompts = dataset.discovery if dataset.held_out is None else dataset.held_out
        check_whole("the number of a prompt", number, least=1, most=len(prompts))
        own = prompts[slice(number - 1, number)]
        texts = input_texts(own, model)[0]
        branch = [0] * len(texts) if own.branch is None else own.branch[0].tolist()
        tokens = tuple(text for text, where in zip(texts, branch, strict=True) if text and where == 0)
        if own.answers is None:
            return cls(tokens)
        text = output_texts(model)
        first = [text(row[0]) for row in own.answers[0].tolist() if row[0] >= 0]
        more = " …" if own.answers.shape[-1] > 1 and int((own.answers[0] >= 0).any(0).sum()) > 1 else ""
        return cls(tokens, (" " if own.branch is None else "").join(first) + more)


def token_boxes(
    prompt: ShownPrompt, *, middle: float, top: float, width: float, style: Style
) -> tuple[list[DiagramNode], float]:
    """A box for each token, side by side in as many lines as it takes, and where the last of these ends.

    Args:
        middle, top: of the first line; width: that a line may have.
    """
    size, shown = style.font_size, list(prompt.tokens)
    if len(shown) > MOST_TOKENS:
        half = MOST_TOKENS // 2
        shown = [*shown[:half], "…", *shown[-half:]]
    gap, height = 0.25 * size, 1.5 * size
    lines: list[list[tuple[str, float]]] = [[]]
    for text in map(token_text, shown):
        own = text_width(text, size) + 0.6 * size
        if lines[-1] and sum(x + gap for _, x in lines[-1]) + own > width:
            lines.append([])
        lines[-1].append((text, own))
    boxes = []
    for line in lines:
        x = middle - (sum(own for _, own in line) + gap * (len(line) - 1)) / 2
        for text, own in line:
            box = Box(x + own / 2, top - height / 2, own, height)
            boxes.append(DiagramNode("", text, box, False, style.background, style.absent, "solid", style.text))
            x += own + gap
        top -= height + gap
    return boxes, top


def answer_text(prompt: ShownPrompt, logits: Box, style: Style) -> list[DiagramText]:
    """The answer, to the right of the logits."""
    if not prompt.answer:
        return []
    x = logits.x + logits.width / 2 + 0.8 * style.font_size
    y = logits.y
    return [DiagramText(f"→ {token_text(prompt.answer)}", x, y, style.font_size, style.text)]


def token_text(text: str) -> str:
    """A token as a picture can show it: one of white space alone as a program would write it."""
    return clean(text.strip(), most=MOST_LETTERS) if text.strip() else repr(text)[1:-1].replace(" ", "␣")
