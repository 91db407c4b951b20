"""Rankings of neurons: what each hidden unit of each MLP, or dimension of each head, is worth, to first order or alone.

To first order a neuron's worth is its activation's difference from the reference times the metric's gradient there,
summed over positions (node attribution patching, at the hidden layer): one backward pass for all, as for nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from acdc.engine import memory
from acdc.engine.measure import bind, refuse_non_finite
from acdc.engine.neurons import Inner, Inside, NeuronReferences, inner_values
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import TaskError, check_whole, unknown
from acdc.graph import BoolArray, FloatArray
from acdc.graph.names import names_an_mlp
from acdc.methods import get_method
from acdc.methods.aggregates import sums
from acdc.methods.attribution import STEPS, Gradients, path, refuse_bad_gradient
from acdc.methods.method import helpfulness, refuse_metric
from acdc.model import forward
from acdc.model.backward import Flow, Rule
from acdc.model.hidden import mlp_with, read_by
from acdc.model.model import Model
from acdc.model.trace import Trace
from acdc.shown import Shown
from acdc.store.amounts import bytes_of
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset, Metric, Task

Method = Literal["nap", "nap-ig", "exact"]
AT_ONCE = 64
"""Neurons that are replaced in one run, each in a row of its own, where memory allows."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NeuronScores(Shown):
    """A score for every hidden unit of every MLP, or dimension of every head, or both.

    Attributes:
        values: by node, `[unit]`: mean over the prompts, positive where the neuron helps.
        absolute: the same of absolute scores, by which neurons are ranked.
        method, task, model, metric, ablation: they were made with.
    """

    values: Mapping[str, Float64[FloatArray, " _"]]
    absolute: Mapping[str, Float64[FloatArray, " _"]]
    method: str
    task: str
    model: str
    metric: str
    ablation: str

    @property
    def n_neurons(self) -> int:
        return sum(len(x) for x in self.values.values())

    def top(self, n: int) -> dict[str, BoolArray]:
        """By node, `[unit]`: the `n` neurons with the largest scores; those of score 0 never.

        Raises:
            AcdcError: `n` is no whole number of at least 1.
        """
        check_whole("a number of neurons", n, least=1)
        flat = np.concatenate(list(self.absolute.values()))
        kept = np.zeros(len(flat), dtype=bool)
        order = np.argsort(-flat, kind="stable")[:n]
        kept[order] = flat[order] > 0
        return split(kept, {mlp: len(x) for mlp, x in self.values.items()})

    def rows(self) -> list[dict[str, str | int | float]]:
        """A record for each neuron, the largest first."""
        every: list[dict[str, str | int | float]] = [
            {"node": node, "neuron": i, "score": float(value), "absolute": float(self.absolute[node][i])}
            for node, values in self.values.items()
            for i, value in enumerate(values)
        ]
        return sorted(every, key=lambda row: -float(row["absolute"]))

    def _summary(self) -> str:
        return f"{self.method} on {self.task} in {self.model}: {self.n_neurons} neurons of {len(self.values)} nodes"

    def facts(self) -> dict[str, str]:
        """What was scored."""
        return {
            "scores": f"{self.method}, {self.task} in {self.model}, {self.metric}, {self.ablation} ablation",
            "neurons": f"{self.n_neurons} of {len(self.values)} nodes",
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """The largest."""
        rows = self.rows()[:10]
        return ("neuron", "score", "absolute"), [
            (neuron_name(str(row["node"]), int(row["neuron"])), f"{row['score']:.4g}", f"{row['absolute']:.4g}")
            for row in rows
        ]


def neuron_name(node: str, unit: int) -> str:
    """`m3.n17` of an MLP, `a3.h1.d5` of a head."""
    return f"{node}.{'n' if names_an_mlp([node]) else 'd'}{unit}"


def split(flat: BoolArray, widths: Mapping[str, int]) -> dict[str, BoolArray]:
    """Neurons of all nodes in a row, `[..., neuron]`, by node."""
    ends = np.cumsum(list(widths.values()))
    return dict(zip(widths, np.split(flat, ends[:-1], axis=-1), strict=True))


@memory.explained
@torch.inference_mode(False)
def score_neurons(
    model: Model,
    task: Task | Dataset | Prompts,
    method: Method = "nap-ig",
    *,
    inside: Inside = "mlps",
    nodes: Collection[str] | None = None,
    steps: int = STEPS,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> NeuronScores:
    """Score every hidden unit of every MLP on the task's discovery prompts; `acdc.score(…, units="neuron")` too.

    Args:
        inside: "mlps", "heads" (every dimension of every head's attention result instead) or "both".
        nodes: layers without any of these are not scored, which spares memory; None: all are.
        method: "nap" (one gradient, at the clean prompt), "nap-ig" (the mean over gradients from the corrupted to the
            clean embedding) or "exact" (the metric without each neuron alone: a partial run a neuron).
        steps: gradients of nap-ig.
        others: as for `acdc.score`.

    Raises:
        AcdcError: an unknown method, or a metric that it cannot work with.
        UnsupportedModelError: the hidden layer of some MLP cannot be found; says which, and why.
    """
    if method not in get_args(Method):
        raise unknown("method for neurons", str(method), get_args(Method))
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    alphas = {"nap": [1.0], "nap-ig": path(steps, dataset.ablation), "exact": []}[method]
    refuse_metric(get_method(method), dataset.metric, [get_method(name) for name in get_args(Method)])
    limit = None if memory is None else bytes_of(memory)
    problem = Problem(
        model, model.graph(), dataset.discovery, dataset.metric, dataset.ablation, batch_size, progress=progress,
        memory_limit=limit,
    )  # fmt: skip
    if dataset.ablation == "resample" and torch.equal(problem.prompts.clean, problem.prompts.corrupted):
        raise TaskError(f"{dataset.name}: the corrupted prompts are the clean ones again")
    references = NeuronReferences(problem, inside, nodes)
    total = [np.zeros((len(each.names), 3, each.width)) for each in references.inner]
    for first, patching in problem.batches("gradients" if alphas else "exact").after(0):
        progress(first, len(problem.prompts), "neurons")
        if alphas:
            found = _first_order(problem, patching, references, alphas, first)
        else:
            found = _exact(problem, patching, references, first)
        total = [a + b for a, b in zip(total, found, strict=True)]
    progress(len(problem.prompts), len(problem.prompts), "neurons")
    names = [name for each in references.inner for name in each.names]
    means = [x / len(problem.prompts) for nodes in total for x in nodes]
    values = {name: helpfulness(problem, mean[0]) for name, mean in zip(names, means, strict=True)}
    absolute = {name: mean[1] for name, mean in zip(names, means, strict=True)}
    return NeuronScores(values, absolute, method, dataset.name, model.name, dataset.metric.name, dataset.ablation)


def _first_order(
    problem: Problem, patching: Patching, references: NeuronReferences, alphas: Sequence[float], first: int
) -> list[FloatArray]:
    """Sums over the prompts of one batch (`aggregates.sums`), `[node, 3, X]` of each layer."""
    model, prompts, inner = patching.model, patching.prompts, references.inner
    with torch.no_grad():
        clean = inner_values(model, inner, prompts)
        difference = [r - x for r, x in zip(references.of(prompts), clean, strict=True)]  # [node, B, T, X]
    run = Gradients(patching, problem.outcome, Flow(model, Rule()), first=first)
    scores = [x.new_zeros(*x.shape[:2], x.shape[-1]) for x in clean]
    mlps = [each.hidden.matrix for each in inner if each.hidden is not None]
    for alpha in sorted(alphas, reverse=True):
        x = run.reference + alpha * (run.clean - run.reference) + patching.constant
        with read_by(mlps) as seen:  # the run of the gradient comes first

            def units(trace: Trace, seen: list[tuple[torch.nn.Module, Tensor]] = seen) -> list[Tensor]:
                hidden = iter([own for _, own in seen[: len(mlps)]])
                return [trace.attended[each.layer] if each.hidden is None else next(hidden) for each in inner]

            _, gradients = run.at(x, is_clean=alpha == 1.0, more=units)
        for score, change, gradient in zip(scores, difference, gradients[-len(inner) :], strict=True):
            score += (change * gradient.reshape(change.shape)).sum(-2) / len(alphas)
        del gradients
    for score in scores:
        refuse_bad_gradient(score, problem.outcome)
    return [np.stack([sums(node.T) for node in score]) for score in scores]


@torch.no_grad()
def _exact(problem: Problem, patching: Patching, references: NeuronReferences, first: int) -> list[FloatArray]:
    """The same, by a partial run without each neuron alone."""
    measure = bind(problem.outcome, patching)
    whole = measure.value(patching.clean_logits(measure.rows))
    refuse_non_finite(whole, measure.outcome, "for the full model", first=first)
    own = references.of(patching.prompts)
    at_once = min(AT_ONCE, problem.circuits_at_once(len(patching.prompts)))
    found = []
    for each, reference, clean in zip(
        references.inner, own, inner_values(patching.model, references.inner, patching.prompts), strict=True
    ):
        reference = reference[:, :, patching.start :] if reference.dim() else reference.expand(len(each.names))
        window = clean[:, :, patching.start :]
        (stage,) = (
            x
            for x in patching.stages
            if (x.place == "attention") == (each.hidden is None) and x.sublayer.layer == each.layer
        )
        nodes = []
        for node in range(len(each.names)):
            pieces = []
            for start in range(0, each.width, at_once):
                chosen = torch.arange(start, min(start + at_once, each.width), device=patching.model.device)
                change = _change_without(patching, each, window, node, reference[node], chosen)
                final = stage.rest(patching.model, patching.context, patching.clean, change)
                value = measure.value(forward.readout(patching.model.decomposition, final, measure.rows))
                refuse_non_finite(value, measure.outcome, "for the model without one neuron", first=first)
                pieces.append(sums(value.double() - whole.double()))
            nodes.append(np.concatenate(pieces, axis=1))
        found.append(np.stack(nodes))
    return found


def _change_without(
    patching: Patching, each: Inner, clean: Tensor, node: int, reference: Tensor, chosen: Tensor
) -> Tensor:
    """What a sublayer writes more or less without each of some units `[C]` of one node alone, `[C, B, W, D]`.

    Args:
        clean: units of all its nodes in the clean run, `[node, B, W, X]`.
        reference: of this node, `[B, W, X]` or a number.
    """
    trace, layer = patching.clean, patching.model.decomposition.layers[each.layer]
    goes = torch.nn.functional.one_hot(chosen, each.width).bool()[:, None, None]  # [C, 1, 1, X]
    if each.hidden is not None:
        x = trace.mlp_input[each.layer][..., patching.start :, :].expand(len(chosen), -1, -1, -1)
        written = mlp_with(layer, each.hidden, x, lambda own: torch.where(goes, reference.to(own.dtype), own))
        return written - trace.mlp_output[each.layer][..., patching.start :, :]
    z = clean[:, None].expand(-1, len(chosen), -1, -1, -1).clone()  # [H, C, B, W, X]
    z[node] = torch.where(goes, reference.to(z.dtype), z[node])
    written = forward.attention_output(layer.attention, forward.scaled_by_post_norm(layer.attention, z))
    return written - forward.attention_output(layer.attention, trace.z[each.layer][..., patching.start :, :])
