"""Circuits with a known fault, of at least a dozen kinds, to see whether an audit finds it.

Most start from a true circuit of a compiled program or of a network that was trained to run one; where a fault takes a
model that has it (parts that cancel, a mechanism that is there twice), heads are added to a compiled program by hand.
Every fault says which check ought to find it.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

import acdc
from acdc.auditing.random_weights import best_by_distance, randomised
from acdc.auditing.specificity import MARGIN
from acdc.auditing.subject import Scale
from acdc.benchmarks.suites import SUITES, TRAINED
from acdc.circuit import Circuit
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.evaluation.connected import connected_circuits
from acdc.graph import BoolArray, Graph
from acdc.methods.by_prompt import best
from acdc.model.model import Model
from acdc.model.programs.tracr import TracrLayer, TracrModel
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.task import Task

MANY = 256
"""Prompts that say whether a circuit serves a task."""
SAME = 1e-3
"""Largest change of an output by which two models do the same."""


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
    """A circuit with a fault, ready for an audit.

    Attributes:
        options: further arguments of `audit`.
    """

    model: Model
    task: Task
    circuit: Circuit
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A true circuit: what faults are planted in."""

    model: Model
    task: ProgramTask
    graph: Graph
    truth: BoolArray

    @classmethod
    def load(cls, name: str, seed: int) -> Case:
        model, task = acdc.load(name), acdc.tasks.load(name, seed=seed)
        assert isinstance(task, ProgramTask)
        graph, truth = model.graph(inputs="split"), task.truth()
        assert truth is not None
        return cls(model, task, graph, truth.mask(graph))

    def planted(self, edges: BoolArray) -> Planted | None:
        """The case with another circuit; None if that is the true one, or none at all."""
        if not edges.any() or (edges == self.truth).all():
            return None
        return Planted(self.model, self.task, Circuit(self.graph, edges))


Plant = Callable[[Case, np.random.Generator], Planted | None]


def _programs() -> list[str]:
    return [case.model for name in ("tracr", "interp") for case in SUITES[name].cases]


# ---- in the circuit ---------------------------------------------------------------------------------------------


def needed_edge_removed(case: Case, rng: np.random.Generator) -> Planted | None:
    """A true edge is missing."""
    edges = case.truth.copy()
    edges.flat[rng.choice(np.flatnonzero(edges))] = False
    return case.planted(edges)


def useless_edges_added(case: Case, rng: np.random.Generator) -> Planted | None:
    """Three edges more than it takes, into parts that are read."""
    alive: BoolArray = np.asarray(case.truth.any(axis=1))
    free = np.flatnonzero(case.graph.valid & ~case.truth & alive[:, None])
    if len(free) < 3:
        return None
    edges = case.truth.copy()
    edges.flat[rng.choice(free, 3, replace=False)] = True
    return case.planted(edges)


def bloated(case: Case, rng: np.random.Generator) -> Planted | None:
    """A third of all edges beside the true ones."""
    return case.planted(case.truth | (case.graph.valid & (rng.random(case.truth.shape) < 1 / 3)))


def of_another_program(case: Case, rng: np.random.Generator) -> Planted | None:
    """The true circuit of another program, as far as this model has such edges."""
    others = [name for name in _programs() if name != case.model.name]
    other = Case.load(others[int(rng.integers(len(others)))], 0)
    known = set(case.graph.edge_names(case.graph.valid))
    names = [name for name in other.graph.edge_names(other.truth) if name in known]
    edges = case.graph.edges_from_names(names)
    return None if not (case.truth & ~edges).any() else case.planted(edges)


def of_random_weights(case: Case, rng: np.random.Generator) -> Planted | None:
    """What EAP-IG finds in a network with shuffled weights."""
    model = randomised(case.model, torch.Generator().manual_seed(int(rng.integers(2**31))))
    if model is None:
        return None
    edges = np.zeros_like(case.truth)
    edges[case.graph.valid] = _best_edges(case, model)
    return case.planted(edges)


def of_any_network(case: Case, rng: np.random.Generator) -> Planted | None:
    """The edges that rank highest in networks with shuffled weights: the architecture, and nothing learnt."""
    total = np.zeros(case.graph.n_edges)
    for _ in range(6):
        model = randomised(case.model, torch.Generator().manual_seed(int(rng.integers(2**31))))
        if model is not None:
            total += _best_edges(case, model)
    edges = np.zeros_like(case.truth)
    edges[case.graph.valid] = best(total, int(case.truth.sum()))
    return case.planted(edges)


def _best_edges(case: Case, model: Model) -> BoolArray:
    """`[edge]`: as many as are true, by the ranking that the check makes."""
    data = case.task.prepare(case.model)
    return best_by_distance(Problem(model, case.graph, data.discovery, data.metric), int(case.truth.sum()))


def by_chance(case: Case, rng: np.random.Generator) -> Planted | None:
    """A random connected circuit of the true size."""
    edges = connected_circuits(case.graph, int(case.truth.sum()), 1, seed=int(rng.integers(2**31)))[0]
    return None if not (case.truth & ~edges).any() else case.planted(edges)


def one_layer_off(case: Case, rng: np.random.Generator) -> Planted | None:
    """Every name with the head's number one too large, as an import that counts from 1 would have it."""
    import re

    known = set(case.graph.edge_names(case.graph.valid))
    heads, layers = case.graph.n_heads, case.graph.n_layers

    def moved(match: re.Match[str]) -> str:
        layer, head = int(match[1]), int(match[2])
        return f"a{layer}.h{head + 1}" if head + 1 < heads else f"a{(layer + 1) % layers}.h0"

    names = [re.sub(r"a(\d+)\.h(\d+)", moved, name) for name in case.graph.edge_names(case.truth)]
    edges = case.graph.edges_from_names([name for name in names if name in known])
    return None if not (case.truth & ~edges).any() else case.planted(edges)


def overfit(case: Case, rng: np.random.Generator) -> Planted | None:
    """What ACDC finds on so few prompts that it misses edges: 8, 4 or 2."""
    for size in (8, 4, 2):
        few = dataclasses.replace(case.task, size=size, witnesses=False, seed=int(rng.integers(1000)))
        try:
            found = acdc.discover(case.model, few, "acdc", graph=case.graph).edges
        except AcdcError:
            continue
        if (case.truth & ~found).any():
            return case.planted(found)
    return None


def on_other_inputs(case: Case, rng: np.random.Generator) -> Planted | None:
    """The true circuit of inputs of one length, said to be that of all inputs."""
    narrow = dataclasses.replace(case.task, distribution="fixed").truth()
    assert narrow is not None
    edges = narrow.mask(case.graph)
    return case.planted(edges) if (case.truth & ~edges).any() else None


def shifted(case: Case, rng: np.random.Generator) -> Planted | None:
    """The true circuit of inputs of one length, used on others: right on its own prompts."""
    found = on_other_inputs(case, rng)
    if found is None:
        return None
    narrow = dataclasses.replace(case.task, distribution="fixed")
    return dataclasses.replace(found, task=narrow, options={"shift": case.task})


# ---- in the model -----------------------------------------------------------------------------------------------


def more_heads(model: TracrModel, n: int) -> TracrModel:
    """The same program with `n` more heads in every layer, which do nothing."""
    old = model.program
    program = old.model_copy(update={"n_heads": old.n_heads + n})
    found = TracrModel(program)
    weights = found.state_dict()
    for name, tensor in model.state_dict().items():
        if name.split(".")[-1] in ("w_q", "w_k", "w_v", "w_o"):
            weights[name][: old.n_heads] = tensor
        else:
            weights[name] = tensor
    found.load_state_dict(weights)
    return found


def _with_model(case: Case, module: TracrModel) -> Case:
    model = dataclasses.replace(acdc.load(module), name=case.model.name)
    graph = model.graph(inputs="split")
    truth = case.task.truth()
    assert truth is not None
    return dataclasses.replace(case, model=model, graph=graph, truth=truth.mask(graph))


def _cancelling(case: Case, rng: np.random.Generator, size: float) -> tuple[Case, list[str]] | None:
    """The program with two heads in its last layer that write the opposite, and their edges."""
    program = case.model.program
    if program is None:
        return None
    module, first = more_heads(program, 2), program.program.n_heads
    layer = module.layers[-1]
    assert isinstance(layer, TracrLayer)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        read = module.unembedding.weight.abs().sum(0) > 0  # [D] what the outputs read
        layer.w_v[first] = torch.randn(layer.w_v[first].shape, generator=generator) * size
        layer.w_o[first] = torch.randn(layer.w_o[first].shape, generator=generator) * read
        layer.w_v[first + 1], layer.w_o[first + 1] = layer.w_v[first], -layer.w_o[first]
    last = program.program.n_layers - 1
    heads = [f"a{last}.h{first}", f"a{last}.h{first + 1}"]
    try:
        wide = _with_model(case, module)
    except UnsupportedModelError:  # rounding alone decides what comes out
        return None
    return wide, [e for h in heads for e in (f"input.token->{h}<v>", f"{h}->logits")]


def hole(case: Case, rng: np.random.Generator) -> Planted | None:
    """Two parts that cancel are left out: right with both or neither, and broken by half of one."""
    made = _cancelling(case, rng, 3.0)
    return None if made is None else Planted(made[0].model, case.task, Circuit(made[0].graph, made[0].truth))


def cancelling_pair_kept(case: Case, rng: np.random.Generator) -> Planted | None:
    """Two parts that cancel are kept: neither can go alone, and both can."""
    made = _cancelling(case, rng, 1.0)
    if made is None:
        return None
    wide, names = made
    return Planted(wide.model, case.task, Circuit(wide.graph, wide.truth | wide.graph.edges_from_names(names)))


def stands_on_rounding(case: Case, rng: np.random.Generator) -> Planted | None:
    """Two parts that cancel to rounding alone: numbers of a million, whose difference is the output's size."""
    made = _cancelling(case, rng, 1e6)
    if made is None:
        return None
    wide, names = made
    return Planted(wide.model, case.task, Circuit(wide.graph, wide.truth | wide.graph.edges_from_names(names)))


def half_of_two(case: Case, rng: np.random.Generator) -> Planted | None:
    """A head is there twice, and the model does the same without one of them: the circuit has one."""
    program = case.model.program
    if program is None:
        return None
    inside: BoolArray = np.asarray(case.truth.any(axis=0))
    heads = [
        row for row in case.graph.components if row.kind == "head" and inside[case.graph.source_index[row.name]]
    ]
    prompts = case.task.prepare(case.model).discovery
    before = case.model.plain_logits(prompts.clean, prompts.mask, prompts.position_ids)
    for i in rng.permutation(len(heads)):
        row = heads[int(i)]
        module, new = more_heads(program, 1), program.program.n_heads
        layer = module.layers[row.layer]
        assert isinstance(layer, TracrLayer)
        with torch.no_grad():
            for weights in (layer.w_q, layer.w_k, layer.w_v, layer.w_o):
                weights[new] = weights[row.number]
        wide = _with_model(case, module)
        after = wide.model.plain_logits(prompts.clean, prompts.mask, prompts.position_ids)
        real = prompts.mask.clone()
        real[:, 0] &= program.program.bos is None
        if float((before - after).detach().abs().amax(-1)[real].max()) < SAME:
            return Planted(wide.model, case.task, Circuit(wide.graph, wide.truth))
    return None


# ---- in the label -----------------------------------------------------------------------------------------------


def mislabelled(rng: np.random.Generator) -> Planted | None:
    """The circuit of one language task under the name of another; None if it serves that one as well."""
    own, other = rng.choice(TRAINED, 2, replace=False).tolist()
    model = acdc.load(("tiny-tasks", "tiny-tasks-gqa")[int(rng.integers(2))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        circuit = acdc.discover(model, acdc.tasks.load(other, size=32), "eap-ig", edges=30)
        apart = [_unfaithfulness(model, acdc.tasks.load(name, size=MANY), circuit) for name in (own, other)]
    if apart[0] <= apart[1] + MARGIN:
        return None
    return Planted(model, acdc.tasks.load(own, seed=int(rng.integers(1000))), circuit, {"size": 64})


def _unfaithfulness(model: Model, task: Task, circuit: Circuit) -> float:
    """Mean share of the way from the model to no circuit."""
    data = task.prepare(model)
    scale = Scale(Problem(model, circuit.graph, data.discovery, data.metric), exact=False)
    return float(scale.shares([circuit.edges]).mean())


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault, and the check that ought to find it."""

    name: str
    check: str
    plant: Plant | None
    level: str = "quick"


KINDS = (
    Kind("needed edge removed", "held-out", needed_edge_removed),
    Kind("useless edges added", "minimality", useless_edges_added),
    Kind("bloated", "minimality", bloated),
    Kind("of another program", "held-out", of_another_program),
    Kind("of random weights", "held-out", of_random_weights),
    Kind("of any network", "random-weights", of_any_network, "usual"),
    Kind("by chance", "hypotheses", by_chance),
    Kind("names one off", "held-out", one_layer_off),
    Kind("overfit to few prompts", "held-out", overfit),
    Kind("of other inputs", "held-out", on_other_inputs),
    Kind("shifted inputs", "shift", shifted, "usual"),
    Kind("hole", "adversary", hole),
    Kind("cancelling pair kept", "minimality", cancelling_pair_kept, "usual"),
    Kind("stands on rounding", "numbers", stands_on_rounding),
    Kind("half of two mechanisms", "completeness", half_of_two, "usual"),
    Kind("mislabelled task", "specificity", None, "usual"),
)


def planted_in(kind: Kind, name: str, seed: int) -> Planted | None:
    """A circuit with a fault in a program; of a wrong label in a language model, whatever the program."""
    rng = np.random.default_rng((seed, sum(map(ord, kind.name + name))))
    if kind.plant is None:
        return mislabelled(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.plant(Case.load(name, seed), rng)


def circuits(kind: Kind, n: int, *, first: int = 0) -> Iterator[tuple[str, int, Planted]]:
    """Up to `n` circuits with a fault, from all programs in turn, with the program's name and the seed."""
    names, made = _programs(), 0
    for seed in range(first, first + 20):
        for name in names:
            if made >= n:
                return
            planted = planted_in(kind, name, seed)
            if planted is not None:
                made += 1
                yield name if kind.plant else "tiny-tasks", seed, planted
