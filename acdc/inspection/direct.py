"""What each node adds to the answer's logit by itself.

The final norm is taken as it was in the plain run; then a logit is a sum over nodes.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor

from acdc.engine import memory
from acdc.engine.problem import Progress, no_progress
from acdc.evaluation.judging import is_numerical
from acdc.graph import FloatArray, Graph
from acdc.inspection.runs import judged, most_likely, plain_runs, written
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Trace
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Task


@dataclasses.dataclass(frozen=True, eq=False)
class DirectEffects:
    """What each node adds to the answer's logit by itself, through no other node (direct logit attribution).

    A logit is counted from the mean over the vocabulary, which the probabilities do not depend on (numerical outputs
    as they are), before the final soft cap if there is one. Several answers or read positions are averaged.
    The effects of all nodes and the constant sum to the model's own logit.

    Attributes:
        nodes: the sources of the graph.
        target: what `answer` is the logit of: "answer", or "output", the model's own most likely token, where the
            prompts have no answers.
        answer, wrong: `[node, prompt]`; wrong is None if the prompts have no wrong answers.
        constant_answer, constant_wrong: `[prompt]`, of biases, which belong to no node.
    """

    nodes: tuple[str, ...]
    target: str
    answer: Float64[FloatArray, "node prompt"]
    wrong: Float64[FloatArray, "node prompt"] | None
    constant_answer: Float64[FloatArray, " prompt"]
    constant_wrong: Float64[FloatArray, " prompt"] | None

    @property
    def difference(self) -> FloatArray:
        """`[node, prompt]`: on answer less wrong answer, or on the answer alone without wrong ones."""
        return self.answer if self.wrong is None else self.answer - self.wrong

    def mean(self) -> dict[str, float]:
        """`difference` over the prompts, by node."""
        return dict(zip(self.nodes, self.difference.mean(axis=1).tolist(), strict=True))


@memory.explained
@torch.inference_mode(False)
@torch.no_grad()
def direct_effects(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    graph: Graph | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> DirectEffects:
    """What each node adds to the answer's logit by itself, on the prompts as in `attention_patterns`.

    Args:
        graph: whose sources the nodes are; None: the model's, with token and position embedding as one.
    """
    graph = graph or model.graph()
    problem = judged(model, task, graph=graph, batch_size=batch_size, memory=memory, progress=progress)
    pieces: list[tuple[list[Tensor], Tensor]] = []  # [batch]: (nodes' effects, constant), [node or none, target, B]
    for prompts, context, trace in plain_runs(problem, "direct effects"):
        targets = [_direction(model, context, trace, prompts, which) for which in ("answers", "wrong")]
        directions = [target for target in targets if target is not None]
        assert trace.final_input is not None
        dtype = torch.promote_types(model.dtype, torch.float32)
        own, rest = written(model, graph, context, trace, at=context.at_read)
        outputs, constant = [x.to(dtype) for x in own], rest.to(dtype)
        scale = _final_scale(model, context.at_read(trace.final_input[0]))  # [B, P, 1]
        norm = model.decomposition.final_norm
        shift = None if norm is None else norm.module(torch.zeros_like(outputs[0]))  # the norm's bias
        effects = [
            torch.stack([_mean((x * scale * _before_norm(model, u)).sum(-1), read) for u, _, read in directions])
            for x in outputs
        ]
        constants = []
        for u, bias, read in directions:
            value = (constant * scale * _before_norm(model, u)).sum(-1) + bias
            constants.append(_mean(value if shift is None else value + (shift * u).sum(-1), read))
        pieces.append((effects, torch.stack(constants)))
    values = torch.cat([torch.stack(effects) for effects, _ in pieces], dim=-1).double().cpu().numpy()
    fixed = torch.cat([constants for _, constants in pieces], dim=-1).double().cpu().numpy()
    has_wrong = values.shape[1] > 1
    return DirectEffects(
        nodes=graph.sources,
        target="output" if problem.prompts.answers is None else "answer",
        answer=values[:, 0],
        wrong=values[:, 1] if has_wrong else None,
        constant_answer=fixed[0],
        constant_wrong=fixed[1] if has_wrong else None,
    )


def _final_scale(model: Model, x: Tensor) -> Tensor:
    """1 / σ of the final norm for the residual stream `[B, P, D]`: `[B, P, 1]`."""
    norm = model.decomposition.final_norm
    if norm is None:
        return torch.ones_like(x[..., :1], dtype=torch.promote_types(x.dtype, torch.float32))
    return norm.inverse_scale(x)


def _before_norm(model: Model, direction: Tensor) -> Tensor:
    """A direction after the final norm as one before it, at scale 1."""
    norm = model.decomposition.final_norm
    if norm is None:
        return direction
    direction = norm.gain.to(direction.dtype) * direction
    return direction - direction.mean(-1, keepdim=True) if norm.centred else direction


def _mean(values: Tensor, read: Tensor) -> Tensor:
    """`[B]`, of values `[B, P]` over the positions that are read."""
    return (values * read).sum(-1) / read.sum(-1).clamp(min=1)


def _direction(
    model: Model, context: Context, trace: Trace, prompts: Prompts, which: str
) -> tuple[Tensor, Tensor, Tensor] | None:
    """The mean unembedding `[B, P, D]` of the targets, and their mean bias `[B, P]`, from that of the vocabulary; and
    where there are targets, `[B, P]`."""
    ids, read = getattr(prompts, which), prompts.compared
    if ids is not None:
        read = (prompts.positions >= 0) & (ids >= 0).any(-1)
    elif which == "wrong":
        return None
    else:
        ids = most_likely(model, context, trace)[..., None]
    decomposition, dtype = model.decomposition, torch.promote_types(model.dtype, torch.float32)
    real = (ids >= 0)[..., None].to(dtype)  # [B, P, A, 1]
    number = real.sum(-2).clamp(min=1)
    bias = decomposition.unembedding_bias
    rows = (decomposition.unembedding[ids.clamp(min=0)].to(dtype) * real).sum(-2) / number
    shift = torch.zeros_like(rows[..., 0])
    if bias is not None:
        shift = ((bias[ids.clamp(min=0)].to(dtype)[..., None] * real).sum(-2) / number)[..., 0]
    if not is_numerical(model):
        rows = rows - decomposition.unembedding.to(dtype).mean(0)
        shift = shift - (0.0 if bias is None else bias.to(dtype).mean())
    return rows * decomposition.logit_scale, shift * decomposition.logit_scale, read.to(dtype)
