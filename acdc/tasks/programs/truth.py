"""True circuits as records and as files (`truth.json` beside the model): edges by name, and inputs that prove them.

Edges are those of the finest graph. `TrueCircuit.mask` carries them over to any coarser graph of the same model: an
edge there is true if any finest edge it contains is.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import pydantic
import torch

from acdc.errors import AcdcError, unknown
from acdc.graph import BoolArray, Graph
from acdc.model.programs.tracr import TracrModel, Value
from acdc.store.reading import read_record
from acdc.store.writing import write_atomically
from acdc.tasks.programs.derive import (
    TOLERANCE,
    Causes,
    causal_edges,
    circuit_outputs,
    edge_effects,
    finest_graph,
    read_positions,
    structural_edges,
)
from acdc.tasks.programs.inputs import Pairs, random_pairs
from acdc.tasks.programs.rare_inputs import all_pairs, telling_pairs

CASES = (
    ("resample", "fixed"),
    ("resample", "mixed"),
    ("resample", "permuted"),
    ("resample", "varied"),
    ("zero", "fixed"),
    ("zero", "mixed"),
)
"""The (ablation, distribution) that have a causal truth of their own. What zero ablation does is independent of the
corrupted input, so that its "permuted" is "fixed" and its "varied" is "mixed"."""


class Witness(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A pair of inputs, as values, that shows some edges to matter; position ids where they are permuted."""

    clean: tuple[Value, ...]
    corrupted: tuple[Value, ...]
    corrupted_positions: tuple[int, ...] | None = None


class TrueCircuit(pydantic.BaseModel, frozen=True, extra="forbid"):
    """One true circuit of a model.

    Attributes:
        kind: "structural", "semantic" or "causal".
        ablation, distribution: what a causal circuit is for; None for the others.
        edges: names of its edges in the finest graph.
        witnesses: pairs that together show every edge to change the output when it alone is replaced.
        acting, semantic: of how many semantic edges, how many were seen to act; None where that is not known.
        exhaustive: whether every pair of inputs was tried. If not, an edge that never acted may still do so.
    """

    kind: Literal["structural", "semantic", "causal"]
    ablation: str | None = None
    distribution: str | None = None
    edges: tuple[str, ...]
    witnesses: tuple[Witness, ...] = ()
    acting: int | None = None
    semantic: int | None = None
    exhaustive: bool = False

    @property
    def name(self) -> str:
        """ "structural", "semantic", or the ablation and distribution like "resample/mixed"."""
        return self.kind if self.kind != "causal" else f"{self.ablation}/{self.distribution}"

    @property
    def edges_are(self) -> str:
        """With zeros, edges that matter singly may not matter together: then they are no more than that."""
        return "singly necessary edges" if self.ablation == "zero" else "true edges"

    @property
    def scope(self) -> str:
        """Its name, and how much of what the weights can carry was seen to act."""
        if self.semantic is None:
            return self.name
        every = ", all pairs of inputs tried" if self.exhaustive else ""
        return f"{self.name}, {self.acting} of {self.semantic} semantic edges seen to act{every}"

    def mask(self, graph: Graph) -> BoolArray:
        """`[n_destinations, n_sources]`: which edges of the graph are true.

        Raises:
            AcdcError: the graph is of a model with other layers, heads or MLPs.
        """
        finest = Graph(graph.n_layers, graph.n_heads, mlp=graph.mlp, parallel=graph.parallel, inputs="split")
        return carried_over(finest.edges_from_names(list(self.edges)), graph)


class TrueCircuits(pydantic.BaseModel, frozen=True, extra="forbid"):
    """All true circuits of a model."""

    format: int = 1
    model: str
    circuits: tuple[TrueCircuit, ...]

    def get(self, ablation: str, distribution: str) -> TrueCircuit:
        """The causal circuit for an ablation and a distribution.

        Raises:
            AcdcError: there is none for it.
        """
        if ablation == "zero":
            distribution = {"permuted": "fixed", "varied": "mixed"}.get(distribution, distribution)
        for circuit in self.circuits:
            if circuit.kind == "causal" and (circuit.ablation, circuit.distribution) == (ablation, distribution):
                return circuit
        raise unknown(
            f"causal circuit of {self.model}", f"{ablation}/{distribution}", [c.name for c in self.circuits]
        )

    def save(self, folder: str | Path) -> None:
        """Write `truth.json`."""
        text = self.model_dump_json(indent=1, exclude_defaults=True) + "\n"
        write_atomically(Path(folder) / "truth.json", text)

    @classmethod
    def load(cls, folder: str | Path) -> TrueCircuits:
        """Read `truth.json` of a model's folder."""
        path = Path(folder) / "truth.json"
        try:
            return read_record(path, cls)
        except AcdcError as error:
            raise AcdcError(f"the true circuits at {str(path)!r} cannot be read: {error}") from None


def carried_over(fine: BoolArray, graph: Graph) -> BoolArray:
    """Edges of the finest graph, `[port, finest source]`, in another: true where any that an edge contains is."""
    finest = Graph(graph.n_layers, graph.n_heads, mlp=graph.mlp, parallel=graph.parallel, inputs="split")
    ports = np.zeros((graph.n_ports, graph.n_sources), dtype=bool)
    # A single input is both; with "token", positions are a constant and have no edge.
    token_and_position = ["input.token", "input.position"][: 2 if graph.inputs == "single" else 1]
    for s, name in enumerate(graph.sources):
        parts = [name] if name in finest.source_index else token_and_position
        ports[:, s] = fine[:, [finest.source_index[part] for part in parts]].any(axis=1)
    mask = np.zeros((graph.n_destinations, graph.n_sources), dtype=bool)
    np.logical_or.at(mask, graph.port_destination, ports)
    return mask


def derive_truth(model: TracrModel, *, seed: int = 0) -> TrueCircuits:
    """Every true circuit of a model; pairs are added until they show no new edge.

    Random pairs come first, then pairs of inputs that make the program do what it rarely does (`tracr_search`), and all
    there are while some semantic edge has not been seen to act and they are not too many.

    Warns:
        UserWarning: some semantic edges were never seen to act: if they can, the truths lack them.

    Raises:
        AcdcError: keeping a causal circuit alone does not reproduce the output.
    """
    graph = finest_graph(model)
    semantic = structural_edges(model, semantic=True)
    circuits = [
        TrueCircuit(kind="structural", edges=tuple(graph.edge_names(structural_edges(model)))),
        TrueCircuit(kind="semantic", edges=tuple(graph.edge_names(semantic))),
    ]
    silent = semantic.copy()
    for ablation, distribution in CASES:
        causes, exhaustive = _all_causes(model, semantic, ablation=ablation, distribution=distribution, seed=seed)
        _verify(model, causes, ablation=ablation, distribution=distribution, seed=seed + 1)
        silent &= ~causes.edges
        circuits.append(
            TrueCircuit(
                kind="causal",
                ablation=ablation,
                distribution=distribution,
                edges=tuple(graph.edge_names(causes.edges)),
                witnesses=_witnesses(model, causes.witnesses),
                acting=int((causes.edges & semantic).sum()),
                semantic=int(semantic.sum()),
                exhaustive=exhaustive,
            )
        )
    if silent.any():
        warnings.warn(
            f"{model.program.name}: {silent.sum()} of {semantic.sum()} semantic edges were never seen to act, on any "
            f"input tried: {', '.join(graph.edge_names(silent)[:5])}{', …' if silent.sum() > 5 else ''}; if they can, "
            "the true circuits lack them",
            stacklevel=2,
        )
    return TrueCircuits(model=model.program.name, circuits=tuple(circuits))


def witness_pairs(model: TracrModel, circuit: TrueCircuit) -> Pairs | None:
    """The witnesses of a circuit as tensors; None if it has none (an empty circuit)."""
    pairs: Pairs | None = None
    program = model.program
    T = program.context_length
    for witness in circuit.witnesses:
        sides = []
        for values in (witness.clean, witness.corrupted):
            tokens, mask = model.encode([values])
            fill = T - tokens.shape[1]
            tokens = torch.nn.functional.pad(tokens, (0, fill), value=program.vocabulary.index(program.pad))
            sides += [tokens, torch.nn.functional.pad(mask, (0, fill), value=False), torch.arange(T)[None]]
        if witness.corrupted_positions is not None:
            sides[-1] = torch.tensor([witness.corrupted_positions])
        pairs = Pairs(*sides) if pairs is None else pairs + Pairs(*sides)
    return pairs


def _all_causes(
    model: TracrModel, semantic: BoolArray, *, ablation: str, distribution: str, seed: int
) -> tuple[Causes, bool]:
    """What matters, and whether every pair of inputs was tried."""
    rng = np.random.default_rng(seed)
    pairs = random_pairs(model, 400, distribution=distribution, rng=rng)
    causes = causal_edges(model, pairs, ablation=ablation)
    while True:
        pairs = pairs + random_pairs(model, len(pairs), distribution=distribution, rng=rng)
        more = causal_edges(model, pairs, ablation=ablation)
        if np.array_equal(more.edges, causes.edges):
            break
        causes = more
    pairs = more.witnesses
    while True:  # the witnesses stand for what has been seen
        pairs = pairs + telling_pairs(model, distribution=distribution, rng=rng)
        more = causal_edges(model, pairs, ablation=ablation)
        if np.array_equal(more.edges, causes.edges):
            break
        causes, pairs = more, more.witnesses
    every = all_pairs(model, ablation=ablation, distribution=distribution)
    if every is None or not (semantic & ~causes.edges).any():
        return causes, False
    for some in every:
        silent = semantic & ~causes.edges
        if not silent.any():
            return causes, False
        effects = edge_effects(model, some, ablation=ablation, only=silent).amax((0, 1)).numpy()
        if effects.max() > TOLERANCE:
            shown = some[torch.from_numpy(np.argsort(-effects)[:64].copy())]
            causes = causal_edges(model, causes.witnesses + shown, ablation=ablation)
    return causes, True


def _verify(model: TracrModel, causes: Causes, *, ablation: str, distribution: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = random_pairs(model, 1000, distribution=distribution, rng=rng)
    pairs = pairs + telling_pairs(model, distribution=distribution, rng=rng)
    full, circuit = circuit_outputs(model, pairs, causes.edges, ablation=ablation)
    error = float((full - circuit).abs().amax(-1)[read_positions(model, pairs.clean_mask)].max())
    if error > TOLERANCE:
        raise AcdcError(
            f"the edges that matter alone do not make up {model.program.name} under {ablation}/{distribution}: "
            f"keeping only them moves an output by {error:.3g}"
        )


def _witnesses(model: TracrModel, pairs: Pairs) -> tuple[Witness, ...]:
    program = model.program
    first = int(program.bos is not None)
    witnesses = []
    for i in range(len(pairs)):
        clean, corrupted = (
            tuple(program.vocabulary[token] for token in tokens[i][mask[i]][first:].tolist())
            for tokens, mask in ((pairs.clean, pairs.clean_mask), (pairs.corrupted, pairs.corrupted_mask))
        )
        positions = tuple(pairs.corrupted_positions[i].tolist())
        permuted = positions != tuple(range(len(positions)))
        witnesses.append(
            Witness(clean=clean, corrupted=corrupted, corrupted_positions=positions if permuted else None)
        )
    return tuple(witnesses)
