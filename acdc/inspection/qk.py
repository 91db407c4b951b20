"""Why a head attends there: what each earlier source adds to an attention score, through the query and through the key.

A score is a product of a query and a key, each of which is linear in the residual stream once the norm's scale is taken
as it was in the plain run, as for direct effects. The stream is a sum over sources. So, with the key as it is, the
score is a sum over what the sources write at the query's position; and with the query as it is, at the key's. Rotary
embeddings turn each source's part alike; queries and keys that are normalised are too, at their own scale. How much of
the score each source gives is the derivative there times what it writes: exact, because what is derived is linear.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from acdc.engine import memory
from acdc.engine.problem import Progress, no_progress
from acdc.errors import AcdcError, UnsupportedModelError, unknown
from acdc.graph import FloatArray
from acdc.inspection.attention import pattern_of
from acdc.inspection.parts import place_of
from acdc.inspection.runs import judged, plain_runs, written
from acdc.model import forward
from acdc.model.architecture import Attention, HeadNorm
from acdc.model.backward import FrozenNorm
from acdc.model.forward import Context
from acdc.model.gradients import FrozenScale
from acdc.model.model import Model
from acdc.model.reading.matching import Unread, read_norm
from acdc.shown import Shown, rounded
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Task

SHOWN = 15
"""Sources in a table."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ScoreAttribution(Shown):
    """What each source adds to a head's attention score.

    A score is what the softmax is taken of, before masks, sinks, soft caps and ALiBi. Through the query, the sources
    and the constant sum to the score; through the key, likewise.

    Attributes:
        head: name; query, key: where, in words; relative: whether it is the score less its mean over all keys that the
            query sees.
        sources: the sources that the head reads.
        through_query, through_key: `[source, prompt]`.
        constant_query, constant_key: `[prompt]`: of biases, which belong to no source.
        score: `[prompt]`; attention: `[prompt]`, what the query attends to the key.
    """

    task: str
    model: str
    head: str
    query: str
    key: str
    relative: bool
    sources: tuple[str, ...]
    through_query: Float64[FloatArray, "source prompt"]
    through_key: Float64[FloatArray, "source prompt"]
    constant_query: Float64[FloatArray, " prompt"]
    constant_key: Float64[FloatArray, " prompt"]
    score: Float64[FloatArray, " prompt"]
    attention: Float64[FloatArray, " prompt"]

    def mean(self) -> dict[str, tuple[float, float]]:
        """Means over the prompts, through the query and through the key, by source."""
        pairs = zip(self.through_query.mean(1).tolist(), self.through_key.mean(1).tolist(), strict=True)
        return dict(zip(self.sources, pairs, strict=True))

    def _summary(self) -> str:
        return f"{self.head} from {self.query} to {self.key}, {self.task} in {self.model}"

    def facts(self) -> dict[str, str]:
        """The score, and what of it is of no source."""
        less = ", less its mean over the keys it sees" if self.relative else ""
        return {
            "head": f"{self.head}, from {self.query} to {self.key}, {self.task} in {self.model}",
            "score": f"{rounded(float(self.score.mean()))} on average over {len(self.score)} prompts{less}",
            "attention": rounded(float(self.attention.mean())),
            "biases": f"{rounded(float(self.constant_query.mean()))} through the query, "
            f"{rounded(float(self.constant_key.mean()))} through the key",
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """The largest sources, by the larger of both ways."""
        every = sorted(self.mean().items(), key=lambda x: -max(map(abs, x[1])))
        rows: list[Sequence[str]] = [(name, rounded(q), rounded(k)) for name, (q, k) in every[:SHOWN]]
        return ("source", "through the query", "through the key"), rows


@memory.explained
@torch.inference_mode(False)
@torch.no_grad()
def score_attribution(
    model: Model,
    task: Task | Dataset | Prompts,
    head: str,
    *,
    query: str | None = None,
    key: str | None = None,
    relative: bool = False,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> ScoreAttribution:
    """What each earlier source adds to a head's attention score, on the prompts as in `attention_patterns`.

    Args:
        head: name, like `a1.h1`.
        query, key: a span or a position, like "S2" or "-1" (of several tokens, the mean over their pairs). Without a
            query: where the metric reads. Without a key: the one that the query attends to most, prompt by prompt.
        relative: of the score less its mean over all keys that the query sees: what every key has alike drops out, as
            it does in the softmax.

    Raises:
        AcdcError: an unknown head, span or position, or a query that does not see the key.
        UnsupportedModelError: queries or keys are no linear function of the stream, even at the norms' own scale.
    """
    graph = model.graph(inputs="split" if model.decomposition.position_embedding is not None else "single")
    if head not in graph.names("head"):
        raise unknown("head", head, graph.names("head"))
    row = graph.component(head)
    attention = _linear(model.decomposition.layers[row.layer].attention, row.layer)
    dataset = as_dataset(task, model)
    problem = judged(model, dataset, graph=graph, batch_size=batch_size, memory=memory, progress=progress)
    places = [None if where is None else place_of(problem.prompts, where).cpu() for where in (query, key)]
    pieces: list[list[Tensor]] = []
    first = 0
    for prompts, context, trace in plain_runs(problem, "scores"):
        queries, keys = (
            None if place is None else place[first : first + len(prompts)].to(model.device) for place in places
        )
        pattern = pattern_of(attention, trace, row.layer, context)[row.number]  # [B, T, T]
        pairs = _pairs(prompts, context, attention, pattern, queries, keys, first)
        attended = (pattern * pairs).sum((1, 2))
        if relative:
            visible = (context.bias_for(attention, read=False) == 0) & prompts.mask[:, None, :]
            pairs = pairs - pairs.sum(-1, keepdim=True) * visible / visible.sum(-1, keepdim=True).clamp(min=1)
        score, slopes = _slopes(attention, context, trace.attention_input[row.layer], row.layer, row.number, pairs)
        outputs, constant = written(model, graph, context, trace, before=row.layer)
        x, found = trace.attention_input[row.layer][0], [score, attended]
        for slope in slopes:
            own = torch.stack([(slope * source).sum((1, 2)) for source in outputs])
            found += [own, score - (slope * x).sum((1, 2)) + (slope * constant).sum((1, 2))]
        pieces.append(found)
        first += len(prompts)
    scores, attends, by_query, of_query, by_key, of_key = (
        torch.cat(parts, dim=-1).double().cpu().numpy() for parts in zip(*pieces, strict=True)
    )
    names = graph.sources[: graph.sources_before(graph.layer_heads(row.layer).stage)]
    return ScoreAttribution(
        task=dataset.name,
        model=model.name,
        head=head,
        query="where the metric reads" if query is None else query,
        key="the key it attends to most" if key is None else key,
        relative=relative,
        sources=names,
        through_query=by_query,
        through_key=by_key,
        constant_query=of_query,
        constant_key=of_key,
        score=scores,
        attention=attends,
    )


def _pairs(
    prompts: Prompts,
    context: Context,
    attention: Attention,
    pattern: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    first: int,
) -> Tensor:
    """Weights of the pairs of a query and a key whose mean is taken, `[B, T, T]`, which sum to 1 on each prompt."""
    if queries is None:
        queries = torch.zeros_like(prompts.mask)
        for b, positions in enumerate(prompts.positions):
            queries[b, positions[positions >= 0]] = True
    if keys is None:
        chosen = nn.functional.one_hot(pattern.argmax(-1), pattern.shape[-1]).bool()  # [B, query, key]
    else:
        chosen = keys[:, None, :].expand_as(pattern)
    visible = context.bias_for(attention, read=False) == 0
    pairs = (queries[:, :, None] & chosen & visible & prompts.mask[:, None, :]).to(pattern.dtype)
    number = pairs.sum((1, 2), keepdim=True)
    unseen = (number.flatten() == 0).nonzero().flatten().tolist()
    if unseen:
        raise AcdcError(f"the query does not see the key on prompt {first + unseen[0] + 1}, so there is no score")
    return pairs / number


def _slopes(
    attention: Attention, context: Context, x: Tensor, layer: int, head: int, pairs: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The weighted scores `[B]`, and their slopes at the query's and at the key's stream, `[B, T, D]` each."""
    with torch.enable_grad():
        at_query, at_key = (x.detach().clone().requires_grad_() for _ in "qk")
        q = forward.project(attention, "q", at_query[None], context)[head, 0]  # [B, T, d_head]
        k = forward.per_head(attention, forward.project(attention, "k", at_key[None], context))[head, 0]
        if attention.gate is not None:
            q = q[..., : -attention.gate.width]
        scores = q @ k.transpose(-1, -2) * attention.scale  # one product: its derivative at q holds k as it is
        value = (scores * pairs).sum((1, 2))
        slopes = torch.autograd.grad(value.sum(), [at_query, at_key])
    return value.detach(), (slopes[0][0], slopes[1][0])


def _linear(attention: Attention, layer: int) -> Attention:
    """The same attention with norms whose scale is a constant to gradients, so that these are exact.

    Raises:
        UnsupportedModelError: something else in its queries or keys is not linear.
    """

    def frozen(call: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        if isinstance(call, HeadNorm):
            own = call.norm
            return HeadNorm(FrozenNorm(own.module, own.centred, own.plus_one, own.epsilon))
        weight = getattr(call, "weight", None)
        if isinstance(call, nn.Module) and isinstance(weight, Tensor):
            try:
                norm = read_norm(call, weight.shape[0], weight)
            except Unread:
                pass
            else:
                return lambda x: FrozenScale.apply(x, call(x), norm)
        raise UnsupportedModelError(
            f"scores of layer {layer} are no sum over sources: {type(call).__name__} normalises queries or keys, and "
            "is neither a LayerNorm nor an RMSNorm"
        )

    changed = {}
    for port in "qk":
        projection = getattr(attention, port)
        if projection.clip is not None:
            raise UnsupportedModelError(
                f"scores of layer {layer} are no sum over sources: its queries and keys are clipped"
            )
        latent = projection.latent
        if latent is not None and latent.norm is not None:
            latent = dataclasses.replace(latent, norm=frozen(latent.norm))
        norm = None if projection.norm is None else frozen(projection.norm)
        changed[port] = dataclasses.replace(projection, norm=norm, latent=latent)
    before = attention.norm
    if before is not None:
        own = before
        before = dataclasses.replace(before, module=lambda x: FrozenScale.apply(x, own.module(x), own))
    return dataclasses.replace(attention, norm=before, q=changed["q"], k=changed["k"])
