"""What a circuit is worth with some of its neurons alone, beside what it is with all, and with as many random ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from acdc.engine.circuits import Measured, measure_prompts
from acdc.engine.neurons import NeuronReferences
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.evaluation.judging import NAN, intervals, over_the_vocabulary
from acdc.graph import BoolArray, FloatArray
from acdc.graph.names import names_an_mlp
from acdc.metrics import NO_INTERVAL, faithfulness, faithfulness_interval, mean_interval
from acdc.metrics.statistics import Interval
from acdc.shown import in_brackets, rounded


@dataclasses.dataclass(frozen=True)
class NeuronEvaluation:
    """How a circuit does with the neurons that stay; means over the prompts, fields as of `acdc.Evaluation`.

    Attributes:
        circuit, faithfulness, kl: with the neurons that stay; whole…: with all of the nodes that are kept.
        random_faithfulness: with as many random ones in each node instead.
    """

    prompts: str
    n_prompts: int
    full: float
    empty: float
    circuit: float
    whole: float
    faithfulness: float
    faithfulness_interval: Interval
    whole_faithfulness: float
    random_faithfulness: tuple[float, ...]
    kl: float | None
    kl_interval: Interval | None
    whole_kl: float | None

    def facts(self) -> dict[str, str]:
        """What is said of it, by name."""
        found = {
            "faithfulness": f"{rounded(self.faithfulness)}{in_brackets(self.faithfulness_interval)} on "
            f"{self.n_prompts} {self.prompts} prompts ({rounded(self.whole_faithfulness)} with all neurons)",
            "metric": f"full model {self.full:.4g}, circuit {self.circuit:.4g}, with all neurons {self.whole:.4g}, "
            f"without any edge {self.empty:.4g}",
        }
        if self.random_faithfulness:
            mean, best = float(np.mean(self.random_faithfulness)), max(self.random_faithfulness)
            found["random neurons"] = f"{rounded(mean)} on average, {rounded(best)} at best (as many in each node)"
        if self.kl is not None and self.kl_interval is not None and self.whole_kl is not None:
            found["divergence"] = (
                f"{self.kl:.3g}{in_brackets(self.kl_interval)} nats from the full model ({self.whole_kl:.3g} with all "
                "neurons)"
            )
        return found


def measure_neurons(
    problem: Problem,
    edges: BoolArray,
    kept: Mapping[str, BoolArray],
    *,
    prompts: str,
    random_neurons: int,
    seed: int,
    confidence: float | None,
) -> NeuronEvaluation:
    """Measure on a problem's prompts; arguments as of `evaluate_neurons`.

    Raises:
        AcdcError: the model's MLPs have other numbers of hidden units.
    """
    heads = {name for name in kept if not names_an_mlp([name])}
    references = NeuronReferences(problem, "mlps" if not heads else "heads" if len(heads) == len(kept) else "both")
    widths = references.widths
    for node, units in kept.items():
        if widths.get(node) != len(units):
            there = f"{widths[node]} units" if node in widths else "no such node"
            raise AcdcError(f"these are neurons of another model: of {len(units)} in {node}, and there are {there}")
    own = dict(kept)
    rng = np.random.default_rng(seed)
    drawn = {node: rng.permuted(np.tile(units, (random_neurons, 1)), axis=1) for node, units in own.items()}
    nothing = np.zeros_like(edges)
    runs, sets = [nothing, edges, edges], [None, None, own]
    if random_neurons and drawn:
        runs, sets = [*runs, edges], [*sets, drawn]
    outcomes = [problem.outcome, *over_the_vocabulary(problem.model)]
    measured, *more = measure_prompts(
        problem, runs, outcomes,
        inside=lambda patching, i: None if (some := sets[i]) is None else references.keeping(patching, some),
    )  # fmt: skip
    full, (empty, whole, value, *random) = measured.full, measured.circuits
    kl = more[0].circuits if more else None
    interval = intervals(confidence)
    same = full.mean() == empty.mean()

    def share(x: FloatArray) -> float:
        return NAN if same else float(faithfulness(x.mean(), full=full.mean(), empty=empty.mean()))

    return NeuronEvaluation(
        prompts=prompts,
        n_prompts=len(problem.prompts),
        full=float(full.mean()),
        empty=float(empty.mean()),
        circuit=float(value.mean()),
        whole=float(whole.mean()),
        faithfulness=share(value),
        faithfulness_interval=NO_INTERVAL if same else interval(faithfulness_interval, value, full, empty),
        whole_faithfulness=share(whole),
        random_faithfulness=tuple(share(x) for x in random),
        kl=None if kl is None else float(kl[2].mean()),
        kl_interval=None if kl is None else interval(mean_interval, kl[2], within=(0, np.inf)),
        whole_kl=None if kl is None else float(kl[1].mean()),
    )


def distances(problem: Problem, measured: Measured) -> FloatArray:
    """Mean over the prompts of each circuit's distance from the full model, `[C]`."""
    apart = measured.circuits if problem.outcome.is_distance else np.abs(measured.circuits - measured.full)
    return np.asarray(apart.mean(axis=1))
