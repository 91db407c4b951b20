"""The logit lens: the residual stream after each layer, read as if it were the last."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from acdc.engine import memory
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError, check_whole
from acdc.evaluation.judging import is_numerical
from acdc.graph import FloatArray, IntArray
from acdc.inspection.runs import input_texts, judged, most_likely, output_texts, plain_runs
from acdc.model import forward
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Task


@dataclasses.dataclass(frozen=True, eq=False)
class LogitLens:
    """What the model would say if it ended after each layer: the residual stream through final norm and unembedding.

    Attributes:
        layers: "embedding", then the layers by number, the last of which is the model's own output.
        tokens: `[example][position]` as in `AttentionPatterns`.
        top: `[example, layer, position, k]` token ids, the most likely first.
        probabilities: of those.
        texts: of the token ids in `top`.
        answers: `[example]`, texts of the answers (of the model's own most likely token where there are none).
        answer_probability: `[example, layer]`, of all answers together; the mean over the read positions.
        answer_rank: `[example, layer]`, of the best answer, 1 the most likely; the mean over the read positions.
    """

    layers: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    top: Int64[IntArray, "example layer position k"]
    probabilities: Float64[FloatArray, "example layer position k"]
    texts: dict[int, str]
    answers: tuple[tuple[str, ...], ...]
    answer_probability: Float64[FloatArray, "example layer"]
    answer_rank: Float64[FloatArray, "example layer"]


@memory.explained
@torch.inference_mode(False)
@torch.no_grad()
def logit_lens(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    examples: int = 4,
    top: int = 5,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> LogitLens:
    """What each layer's residual stream would say, on the first prompts of those that `attention_patterns` takes.

    Raises:
        AcdcError: the model's outputs are numbers, which have no likely tokens.
    """
    if is_numerical(model):
        raise AcdcError(f"{model.name} gives numbers and not tokens: there is no logit lens")
    check_whole("a number of examples", examples, least=1)
    check_whole("a number of tokens (top)", top, least=1)
    problem = judged(model, task, memory=memory, progress=progress)
    some = problem.prompts[:examples]
    k = min(top, model.vocabulary_size)
    problem = dataclasses.replace(problem, prompts=some)
    found: list[list[Tensor]] = [[], [], [], []]  # top, probabilities, answer probability, rank: [layer, B, …] each
    answers: list[list[list[int]]] = []
    for prompts, context, trace in plain_runs(problem, "logit lens", "everywhere"):
        assert trace.final_input is not None
        ids = prompts.answers if prompts.answers is not None else most_likely(model, context, trace)[..., None]
        read = prompts.positions >= 0  # [B, P]
        answers += [x[on].tolist() for x, on in zip(ids, read, strict=True)]
        layers = []
        for x in [*trace.attention_input, trace.final_input]:
            logits = forward.readout(model.decomposition, x[0]).float()
            best = logits.softmax(-1).topk(k, dim=-1)
            layers.append((best.indices, best.values, *_of_answers(context.at_read(logits), ids, read)))
        for whole, part in zip(found, zip(*layers, strict=True), strict=True):
            whole.append(torch.stack(part, dim=1))
    tops, probabilities, answer_probability, rank = (torch.cat(part).cpu().numpy() for part in found)
    text = output_texts(model)
    return LogitLens(
        layers=("embedding", *map(str, range(model.n_layers))),
        tokens=input_texts(some, model),
        top=tops,
        probabilities=probabilities.astype(np.float64),
        texts={int(token): text(int(token)) for token in np.unique(tops)},
        answers=tuple(
            tuple(dict.fromkeys(text(token) for position in row for token in position if token >= 0))
            for row in answers
        ),
        answer_probability=answer_probability.astype(np.float64),
        answer_rank=rank.astype(np.float64),
    )


def _of_answers(logits: Tensor, ids: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and rank `[B]` of answers `[B, P, A]` in logits `[B, P, vocabulary]`."""
    real = ids >= 0
    own = logits.gather(-1, ids.clamp(min=0))  # [B, P, A]
    probability = (logits.softmax(-1).gather(-1, ids.clamp(min=0)) * real).sum(-1)
    best = own.masked_fill(~real, -torch.inf).max(-1, keepdim=True).values
    rank = 1.0 + (logits > best).sum(-1)
    read = read & real.any(-1)
    number = read.sum(-1).clamp(min=1)
    return (probability * read).sum(-1) / number, (rank * read).sum(-1) / number
