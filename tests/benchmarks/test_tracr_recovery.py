"""The engine and the independently derived truth agree: a search on a Tracr task finds exactly the true circuit."""

import pytest

import acdc
from acdc.model.programs.tracr import builtin_names


@pytest.mark.parametrize("inputs", ["split", "single"])
@pytest.mark.parametrize("name", builtin_names())
def test_acdc_recovers_the_true_circuit(name: str, inputs: str) -> None:
    model, task = acdc.load(name), acdc.tasks.load(name)
    graph = model.graph(inputs=inputs)
    circuit = acdc.discover(model, task, method="acdc", graph=graph)
    assert graph.edge_names(circuit.edges) == graph.edge_names(task.truth().mask(graph))


@pytest.mark.parametrize("distribution", ["fixed", "mixed", "permuted"])
@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-proportion", "tracr-hist", "tracr-sort"])
def test_and_so_for_other_distributions(name: str, distribution: str) -> None:
    model, task = acdc.load(name), acdc.tasks.load(name, distribution=distribution)
    graph = model.graph(inputs="split")
    circuit = acdc.discover(model, task, method="acdc", graph=graph)
    assert graph.edge_names(circuit.edges) == graph.edge_names(task.truth().mask(graph))


@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-proportion", "tracr-hist", "tracr-sort"])
def test_exact_scores_separate_true_edges_from_the_others(name: str) -> None:
    model, task = acdc.load(name), acdc.tasks.load(name)
    graph = model.graph(inputs="split")
    scores = acdc.score(model, task, method="exact", graph=graph)
    truth = task.truth().mask(graph)
    assert abs(scores.values[truth]).min() > 100 * abs(scores.values[graph.valid & ~truth]).max()


QUICK = ("tracr-reverse", "tracr-hist", "tracr-proportion", "tracr-sort")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in builtin_names()]
)
def test_so_does_guided_by_itself(name: str) -> None:
    model, task = acdc.load(name), acdc.tasks.load(name)
    circuit = acdc.discover(model, task)
    assert circuit.edge_names() == circuit.graph.edge_names(task.truth().mask(circuit.graph))
