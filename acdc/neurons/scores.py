"""Rankings of neurons: what each hidden unit of each MLP is worth, to first order or by replacing it alone.

To first order a neuron's worth is its activation's difference from the reference times the metric's gradient there,
summed over positions (node attribution patching, at the hidden layer): one backward pass for all, as for nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from acdc.engine import memory
from acdc.engine.measure import bind, refuse_non_finite
from acdc.engine.neurons import NeuronReferences, hidden_values
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import TaskError, check_whole, unknown
from acdc.graph import BoolArray, FloatArray
from acdc.methods import get_method
from acdc.methods.aggregates import sums
from acdc.methods.attribution import STEPS, Gradients, path, refuse_bad_gradient
from acdc.methods.method import helpfulness, refuse_metric
from acdc.model import forward
from acdc.model.backward import Flow, Rule
from acdc.model.hidden import Hidden, mlp_with, read_by
from acdc.model.model import Model
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
    """A score for every hidden unit of every MLP.

    Attributes:
        values: by MLP, `[hidden unit]`: mean over the prompts, positive where the neuron helps.
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
        """By MLP, `[hidden unit]`: the `n` neurons with the largest scores; those of score 0 never.

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
            {"mlp": mlp, "neuron": i, "score": float(value), "absolute": float(self.absolute[mlp][i])}
            for mlp, values in self.values.items()
            for i, value in enumerate(values)
        ]
        return sorted(every, key=lambda row: -float(row["absolute"]))

    def _summary(self) -> str:
        return f"{self.method} on {self.task} in {self.model}: {self.n_neurons} neurons of {len(self.values)} MLPs"

    def facts(self) -> dict[str, str]:
        """What was scored."""
        return {
            "scores": f"{self.method}, {self.task} in {self.model}, {self.metric}, {self.ablation} ablation",
            "neurons": f"{self.n_neurons} of {len(self.values)} MLPs",
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """The largest."""
        rows = self.rows()[:10]
        return ("neuron", "score", "absolute"), [
            (f"{row['mlp']}.n{row['neuron']}", f"{row['score']:.4g}", f"{row['absolute']:.4g}") for row in rows
        ]


def split(flat: BoolArray, widths: Mapping[str, int]) -> dict[str, BoolArray]:
    """Neurons of all MLPs in a row, `[..., neuron]`, by MLP."""
    ends = np.cumsum(list(widths.values()))
    return dict(zip(widths, np.split(flat, ends[:-1], axis=-1), strict=True))


@memory.explained
@torch.inference_mode(False)
def score_neurons(
    model: Model,
    task: Task | Dataset | Prompts,
    method: Method = "nap-ig",
    *,
    steps: int = STEPS,
    metric: Metric | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> NeuronScores:
    """Score every hidden unit of every MLP on the task's discovery prompts; `acdc.score(…, units="neuron")` too.

    Args:
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
    alphas = {"nap": [1.0], "nap-ig": path(steps), "exact": []}[method]
    dataset = as_dataset(task, model, metric=metric, ablation=ablation)
    refuse_metric(get_method(method), dataset.metric, [get_method(name) for name in get_args(Method)])
    limit = None if memory is None else bytes_of(memory)
    problem = Problem(
        model, model.graph(), dataset.discovery, dataset.metric, dataset.ablation, batch_size, progress=progress,
        memory_limit=limit,
    )  # fmt: skip
    if dataset.ablation == "resample" and torch.equal(problem.prompts.clean, problem.prompts.corrupted):
        raise TaskError(f"{dataset.name}: the corrupted prompts are the clean ones again")
    references = NeuronReferences(problem)
    total = [np.zeros((3, each.width)) for each in references.hidden]
    for first, patching in problem.batches("gradients" if alphas else "exact").after(0):
        progress(first, len(problem.prompts), "neurons")
        if alphas:
            found = _first_order(problem, patching, references, alphas, first)
        else:
            found = _exact(problem, patching, references, first)
        total = [a + b for a, b in zip(total, found, strict=True)]
    progress(len(problem.prompts), len(problem.prompts), "neurons")
    names = [each.mlp for each in references.hidden]
    means = [x / len(problem.prompts) for x in total]
    values = {name: helpfulness(problem, mean[0]) for name, mean in zip(names, means, strict=True)}
    absolute = {name: mean[1] for name, mean in zip(names, means, strict=True)}
    return NeuronScores(values, absolute, method, dataset.name, model.name, dataset.metric.name, dataset.ablation)


def _first_order(
    problem: Problem, patching: Patching, references: NeuronReferences, alphas: Sequence[float], first: int
) -> list[FloatArray]:
    """Sums over the prompts of one batch (`aggregates.sums`), `[3, H]` of each layer."""
    model, prompts, hidden = patching.model, patching.prompts, references.hidden
    with torch.no_grad():
        clean = hidden_values(model, hidden, prompts)
        difference = [r - x for r, x in zip(references.of(prompts), clean, strict=True)]  # [B, T, H]
    run = Gradients(patching, problem.outcome, Flow(model, Rule()), first=first)
    scores = [x.new_zeros(len(prompts), x.shape[-1]) for x in clean]
    for alpha in sorted(alphas, reverse=True):
        x = run.reference + alpha * (run.clean - run.reference) + patching.constant
        with read_by([each.matrix for each in hidden]) as seen:  # the run of the gradient comes first
            _, gradients = run.at(
                x,
                is_clean=alpha == 1.0,
                more=lambda _: [own for _, own in seen[: len(hidden)]],
            )
        for score, change, gradient in zip(scores, difference, gradients[-len(hidden) :], strict=True):
            score += (change * gradient.reshape(change.shape)).sum(1) / len(alphas)
        del gradients
    for score in scores:
        refuse_bad_gradient(score, problem.outcome)
    return [sums(score.T) for score in scores]


@torch.no_grad()
def _exact(problem: Problem, patching: Patching, references: NeuronReferences, first: int) -> list[FloatArray]:
    """The same, by a partial run without each neuron alone."""
    measure = bind(problem.outcome, patching)
    whole = measure.value(patching.clean_logits(measure.rows))
    refuse_non_finite(whole, measure.outcome, "for the full model", first=first)
    own = references.of(patching.prompts)
    at_once = min(AT_ONCE, problem.circuits_at_once(len(patching.prompts)))
    found = []
    for hidden in references.hidden:
        reference = own[hidden.layer]
        reference = reference[:, patching.start :] if reference.dim() else reference
        pieces = []
        for start in range(0, hidden.width, at_once):
            chosen = torch.arange(start, min(start + at_once, hidden.width), device=patching.model.device)
            value = measure.value(_without_each(patching, hidden, reference, chosen, measure.rows))
            refuse_non_finite(value, measure.outcome, "for the model without one neuron", first=first)
            pieces.append(sums(value.double() - whole.double()))
        found.append(np.concatenate(pieces, axis=1))
    return found


def _without_each(
    patching: Patching, hidden: Hidden, reference: Tensor, chosen: Tensor, rows: Tensor | None
) -> Tensor:
    """Logits `[C, B, P, R]` of the model without each of these neurons `[C]` alone."""
    trace, start = patching.clean, patching.start
    stages = [x for x in patching.stages if x.place == "mlp" and x.sublayer.layer == hidden.layer]
    (stage,) = stages
    x = trace.mlp_input[hidden.layer][..., start:, :].expand(len(chosen), -1, -1, -1)
    goes = torch.nn.functional.one_hot(chosen, hidden.width).bool()[:, None, None]  # [C, 1, 1, H]
    written = mlp_with(stage.layer, hidden, x, lambda units: torch.where(goes, reference.to(units.dtype), units))
    change = written - trace.mlp_output[hidden.layer][..., start:, :]
    final = stage.rest(patching.model, patching.context, trace, change)
    return forward.readout(patching.model.decomposition, final, rows)
