"""Scores and circuits: what methods give, as frozen records on a graph.

`Scores` is one number an edge; `Circuit` is a set of edges, so that circuits of one graph can be intersected,
united and compared like sets. Both carry their `Provenance`: what made them, from which model and data, and how to
make them again.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Bool, Float64

from acdc.circuit import checks, rules, selection
from acdc.circuit import folder as files
from acdc.circuit.constants import Constants, taken_out
from acdc.circuit.convert import frame, scored_network
from acdc.circuit.folder import SignsAre
from acdc.circuit.provenance import Provenance
from acdc.errors import AcdcError, check_type, unknown
from acdc.graph import BoolArray, FloatArray, Graph, Unit, Units, units_of
from acdc.shown import Shown

if TYPE_CHECKING:
    import networkx as nx
    import pandas


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scores(Shown):
    """One score for every edge of a graph.

    Attributes:
        values: `[n_destinations, n_sources]` float64, 0 where there is no edge. Its size is how much the edge
            matters; its sign is that of an estimate unless it was measured (`acdc.methods.signs`): positive where the
            edge helps, and negative where it works against the task.
        method: name of the method that gave them.
        absolute, rms: `[n_destinations, n_sources]`: mean over the prompts of the score's absolute value, and root of
            the mean of its square, where the method scores single prompts (`values` is their mean, in which prompts
            can cancel); None otherwise, as in older files.
        order: `[n_destinations, n_sources]`: larger where a search let an edge go later, largest where it kept it; None
            of methods that have no front.
        front: `[point, 2]`: edges and distance from the full model of the circuits on the search's way, from many edges
            to few, on its prompts; None as for `order`.
        nodes: `[n_sources]` scores of the sources themselves, if the method gives them.
        removal: `[n_destinations, n_sources]`: how much worse the metric gets when an edge alone is removed from the
            circuit that a search found, on its prompts; NaN for edges outside it. None where that was not measured.
        unit: what was scored, "edge" or "node". An edge has the score of its unit; node scores are in `nodes` too.
        signs: what the signs of `values` are (`acdc.methods.signs`); None, of older files: as the method's record says.
        constants: what removed edges carry under optimal ablation, as learned on the prompts that these scores are of;
            None under other ablations.
    """

    graph: Graph
    values: Float64[FloatArray, "destination source"]
    method: str = ""
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    nodes: Float64[FloatArray, " source"] | None = None
    removal: Float64[FloatArray, "destination source"] | None = None
    absolute: Float64[FloatArray, "destination source"] | None = None
    rms: Float64[FloatArray, "destination source"] | None = None
    unit: Unit = "edge"
    order: Float64[FloatArray, "destination source"] | None = None
    front: Float64[FloatArray, "point 2"] | None = None
    signs: SignsAre | None = None
    constants: Constants | None = None

    def __post_init__(self) -> None:
        units_of(self.graph, self.unit)
        for name in ("values", "absolute", "rms", "order"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, checks.checked_scores(given, self.graph, name))
        if self.signs is not None and self.signs not in get_args(SignsAre):
            raise unknown("kind of signs", str(self.signs), get_args(SignsAre))
        if self.front is not None:
            object.__setattr__(self, "front", checks.checked_front(self.front))
        if self.nodes is not None:
            nodes = checks.checked_array(self.nodes, (self.graph.n_sources,), np.float64, "node scores", "sources")
            if not np.isfinite(nodes).all():
                raise AcdcError("some node scores are NaN or infinite")
            object.__setattr__(self, "nodes", checks.frozen(nodes.copy()))
        if self.removal is not None:
            object.__setattr__(self, "removal", checks.checked_removal(self.removal, self.graph))

    # ---- reading -----------------------------------------------------------------------------------------------

    def __getitem__(self, edge: str) -> float:
        """The score of one edge by name: `scores["a0.h1->m3"]`."""
        return float(self.values[self.graph.edge(edge)])

    def __len__(self) -> int:
        """Number of edges of the graph."""
        return self.graph.n_edges

    def __iter__(self) -> Iterator[str]:
        """Names of the graph's edges, in array order."""
        return iter(self.graph.edge_names(self.graph.valid))

    def _summary(self) -> str:
        return f"{self.graph.n_edges:,} edges{_made(self.provenance, self.method)}"

    def facts(self) -> dict[str, str]:
        """What made them, and how many there are."""
        return self.provenance.facts() | {
            "method": self.method,
            "edges": f"{self.graph.n_edges:,}",
            "not zero": f"{int(np.count_nonzero(self.values)):,}",
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """The ten that rank highest."""
        order = np.argsort(-self.sizes(), axis=None, kind="stable")[:_SHOWN]
        rows = zip(*np.unravel_index(order, self.values.shape), strict=True)
        return ("edge", "score"), [(self.graph.edge_name(d, s), f"{self.values[d, s]:.4g}") for d, s in rows]

    def to_frame(self) -> pandas.DataFrame:
        """A row an edge of the graph: edge, source, destination, score, removal (NaN where unknown).

        Raises:
            AcdcError: pandas is not installed.
        """
        return frame(self.graph, self.graph.valid, self.values, self.removal)

    def to_networkx(self) -> nx.DiGraph[str]:
        """All edges as `Graph.to_networkx` gives them, with the attribute `score`, of nodes too where it is known."""
        return scored_network(self.graph, self.graph.valid, self.values, self.nodes)

    # ---- choosing ----------------------------------------------------------------------------------------------

    @property
    def aggregate(self) -> selection.Aggregate:
        """The aggregate that rankings go by unless told otherwise: "signed" where single prompts were not scored."""
        if self.order is not None:
            return "order"
        return "signed" if self.absolute is None else "mean-absolute"

    def sizes(self, aggregate: selection.Aggregate | None = None) -> FloatArray:
        """How much each edge matters, by which rankings go: `[n_destinations, n_sources]`, at least 0.

        Args:
            aggregate: "mean-absolute" over the prompts, which does not let prompts cancel; "rms"; "signed", the
                absolute value of the mean, as the papers rank; or "order", in which a search let edges go. None:
                `aggregate` of these scores.

        Raises:
            AcdcError: the method does not score single prompts, or the file is older than such scores.
        """
        aggregate = aggregate or self.aggregate
        if aggregate not in selection.AGGREGATES:
            raise unknown("aggregate", str(aggregate), selection.AGGREGATES)
        if aggregate == "signed":
            return np.abs(self.values)
        found = getattr(self, "absolute" if aggregate == "mean-absolute" else aggregate)
        if found is None and aggregate == "order":
            raise AcdcError("the scores have no order in which edges went: they are not of a search that gives one")
        if found is None:
            made = f"by {self.method!r} " if self.method else ""
            raise AcdcError(
                f"the scores {made}have no {aggregate} over prompts: only attribution and exact score single prompts, "
                "and files of older versions hold means alone; use aggregate 'signed'"
            )
        sizes: FloatArray = found
        return sizes

    def ranked(self, by: selection.By, aggregate: selection.Aggregate | None) -> tuple[FloatArray, dict[str, str]]:
        """The numbers that rank the edges (larger is better), and the record of what they are for a provenance."""
        if by not in selection.RANKINGS:
            raise unknown("ranking", str(by), selection.RANKINGS)
        if by == "signed":
            if aggregate not in (None, "signed"):
                raise AcdcError(f"by='signed' ranks by the signed mean, so it goes without aggregate {aggregate!r}")
            return self.values, {"by": by, "aggregate": "signed"}
        return self.sizes(aggregate), {"by": by, "aggregate": aggregate or self.aggregate}

    def top(
        self,
        n: int,
        by: selection.By = "absolute",
        select: str = "top",
        *,
        prune: bool = True,
        aggregate: selection.Aggregate | None = None,
        prompts: int | None = None,
    ) -> Circuit:
        """The circuit of the best edges, `n` of them on paths from the input to the logits.

        Edges on no such path are left out, and the next best are taken for them. A warning says so if the result
        has fewer edges than `n`, and why. Where nodes were scored, it is the circuit of at most `n` nodes.

        Args:
            by: "absolute" ranks by magnitude, "signed" by the score itself.
            select: "top" takes the best edges wherever they are; "greedy" starts from the logits and always takes
                the best edge into a component that is already in; "ilp", "pnr", "bootstrap": see `acdc.circuit.rules`.
            prune: False: the `n` best edges as they are, on a path or not.
            aggregate: what "absolute" is, see `sizes`.
            prompts: that the scores are means over, for "bootstrap"; None: as many as the provenance says.

        Raises:
            EmptyCircuitError: the edges only connect in circuits of more than `n`.
        """
        rule = rules.Rule.of(select)
        values, how = self.ranked(by, aggregate)
        if self.unit != "edge":
            if select != "top" or not prune:
                raise AcdcError(f"a ranking of {self._units.plural} is cut by select='top', and pruned")
            edges = self._units.mask(selection.top_units(self._units, self._units.values_of(values), n))
            edges = self.graph.prune(edges)
            return self._circuit(edges, {"select": select, self._units.plural: n, **how, "prune": prune})
        edges = rules.cut(self, values, n, rule, prune=prune, prompts=prompts or self.provenance.n_prompts)
        if rule.number is None:
            checks.warn_of_size(self.graph, edges, n)
        return self._circuit(edges, {"select": select, "edges": n, **how, "prune": prune})

    def threshold(
        self,
        t: float,
        by: selection.By = "absolute",
        *,
        prune: bool = True,
        aggregate: selection.Aggregate | None = None,
    ) -> Circuit:
        """The circuit of the edges that score at least `t`; arguments as for `top`.

        With `prune`, the provenance's selection says how many of them dangle and are left out ("dangling").
        """
        values, ranking = self.ranked(by, aggregate)
        edges = selection.threshold(self.graph, values, t, by="signed", prune=prune)
        reached = selection.threshold(self.graph, values, t, by="signed", prune=False)
        how = {"select": "threshold", "threshold": t, **ranking, "prune": prune}
        return self._circuit(edges, how | {"dangling": int((reached & ~edges).sum())})

    @property
    def _units(self) -> Units:
        return units_of(self.graph, self.unit)

    def _circuit(self, edges: BoolArray, how: dict[str, Any]) -> Circuit:
        return Circuit(self.graph, edges, self, self.provenance.having(selection=how), self.unit)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Circuit(Shown):
    """A set of edges of a graph.

    `a & b`, `a | b`, `a - b` and `a ^ b` are those of sets and keep the scores of `a`; `a == b` compares graphs and
    edges only; `"a0.h1->m2" in circuit` asks for one edge.

    Attributes:
        edges: `[n_destinations, n_sources]` bool, True at kept edges.
        scores: the scores it was chosen from, if any.
        unit: what was chosen, "edge" or "node"; of nodes it has the edges between them that lie on a path.
    """

    graph: Graph
    edges: Bool[BoolArray, "destination source"]
    scores: Scores | None = None
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    unit: Unit = "edge"

    def __post_init__(self) -> None:
        check_type("a Graph, such as model.graph()", self.graph, Graph)
        check_type("scores as Scores or None", self.scores, (Scores, NoneType))
        check_type("the provenance as a Provenance", self.provenance, Provenance)
        units_of(self.graph, self.unit)
        edges = checks.checked_array(self.edges, self.graph.valid.shape, np.bool_, "edges", "destinations, sources")
        bad = np.argwhere(edges & ~self.graph.valid)
        if len(bad):
            raise AcdcError(
                f"{len(bad)} kept edges are not edges of the graph, the first {self.graph.edge_name(*bad[0])!r}: "
                "its source is not executed before its destination"
            )
        if self.scores is not None and self.scores.graph != self.graph:
            raise AcdcError(checks.other_graph("the circuit's scores", self.scores.graph, self.graph))
        object.__setattr__(self, "edges", checks.frozen(edges.copy()))

    @classmethod
    def from_names(cls, graph: Graph, names: list[str], **fields: Any) -> Circuit:
        """The circuit of the named edges, like `["input->m0", "m0->logits"]`."""
        return cls(graph, graph.edges_from_names(names), **fields)

    # ---- reading -----------------------------------------------------------------------------------------------

    @property
    def n_edges(self) -> int:
        """Number of kept edges."""
        return int(self.edges.sum())

    @property
    def n_units(self) -> int:
        """Number of kept edges or nodes, whatever `unit` it is made of."""
        return int(units_of(self.graph, self.unit).of_edges(self.edges).sum())

    @property
    def constants(self) -> Constants | None:
        """What removed edges carry under optimal ablation, if it was found under that (`Scores.constants`)."""
        return None if self.scores is None else self.scores.constants

    @property
    def aggregate(self) -> selection.Aggregate:
        """The aggregate of scores that it was chosen by; "signed" if unknown, or if the scores no longer hold it."""
        chosen = self.provenance.selection.get("aggregate")
        held: dict[selection.Aggregate, str] = {"mean-absolute": "absolute", "rms": "rms", "order": "order"}
        for aggregate, name in held.items():
            if chosen == aggregate and getattr(self.scores, name, None) is not None:
                return aggregate
        return "signed"

    def sizes(self) -> FloatArray:
        """How much each edge matters by its scores, aggregated as those that it was chosen by (`Scores.sizes`)."""
        if self.scores is None:
            raise AcdcError("the circuit has no scores, so its edges have no sizes")
        return self.scores.sizes(self.aggregate)

    def edge_names(self) -> list[str]:
        """Names of the kept edges, in array order."""
        return self.graph.edge_names(self.edges)

    def edge_scores(self) -> dict[str, float | None]:
        """Score of each kept edge by name, in array order; None without scores."""
        values = [None] * self.n_edges if self.scores is None else self.scores.values[self.edges].tolist()
        return dict(zip(self.edge_names(), values, strict=True))

    def nodes(self) -> list[str]:
        """Names of the components in the circuit (inputs, heads, MLPs, logits), in execution order.

        A component is in if an edge leaves it, or enters a destination that is its own (keys and values shared by a
        group of heads are not).
        """
        graph = self.graph
        inside = np.append(self.edges.any(axis=0), False)  # [n_sources + 1], the last for the logits
        pairs = np.unique(np.stack([graph.port_destination, graph.port_source]), axis=1)
        own = np.bincount(pairs[0], minlength=graph.n_destinations) == 1
        inside[pairs[1][(own & self.edges.any(axis=1))[pairs[0]]]] = True
        return [name for name, kept in zip([*graph.sources, "logits"], inside, strict=True) if kept]

    def __contains__(self, name: str) -> bool:
        return bool(self.edges[self.graph.edge(name)])

    def __len__(self) -> int:
        return self.n_edges

    def __bool__(self) -> bool:
        return True  # a circuit without edges is a circuit still

    def __iter__(self) -> Iterator[str]:
        """Names of the kept edges, in array order."""
        return iter(self.edge_names())

    def _summary(self) -> str:
        return f"{self.n_edges} of {self.graph.n_edges} edges{_made(self.provenance, self.provenance.method)}"

    def facts(self) -> dict[str, str]:
        """What made it, its size, and what was measured."""
        measured = self.provenance.measured
        found = self.provenance.facts() | {
            "edges": f"{self.n_edges:,} of {self.graph.n_edges:,}",
            "nodes": f"{len(self.nodes()):,}",
        }
        if isinstance(value := measured.get("faithfulness"), int | float):
            found["faithfulness"] = f"{value:.3f}"
        if isinstance(value := measured.get("kl"), int | float):
            found["KL"] = f"{value:.3g} nats"
        return found

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """Its largest edges by score."""
        scored = [(name, score) for name, score in self.edge_scores().items() if score is not None]
        largest = sorted(scored, key=lambda pair: -abs(pair[1]))[:_SHOWN]
        return (("edge", "score") if largest else ()), [(name, f"{score:.4g}") for name, score in largest]

    def to_frame(self) -> pandas.DataFrame:
        """A row a kept edge: edge, source, destination, score, removal (NaN where unknown).

        Raises:
            AcdcError: pandas is not installed.
        """
        values, removal = (None, None) if self.scores is None else (self.scores.values, self.scores.removal)
        return frame(self.graph, self.edges, values, removal)

    def to_networkx(self) -> nx.DiGraph[str]:
        """A directed graph as `Graph.to_networkx` gives it, with the attribute `score` where scores are known."""
        values, nodes = (None, None) if self.scores is None else (self.scores.values, self.scores.nodes)
        return scored_network(self.graph, self.edges, values, nodes)

    def _repr_html_(self) -> str:
        """Picture and numbers for notebooks; this and `_repr_svg_` are where the engine reaches up to `acdc.viz`."""
        from acdc.viz.notebook import circuit_html

        return circuit_html(self)

    def _repr_svg_(self) -> str:
        """The picture alone."""
        from acdc.viz import draw

        return draw(self).content.decode()

    # ---- making others -----------------------------------------------------------------------------------------

    def prune(self) -> Circuit:
        """Without the edges on no path from the input to the logits."""
        return dataclasses.replace(
            self, edges=self.graph.prune(self.edges), provenance=self.provenance.having(measured={})
        )

    def __and__(self, other: Circuit) -> Circuit:
        return self._combined(other, operator.and_, "&")

    def __or__(self, other: Circuit) -> Circuit:
        return self._combined(other, operator.or_, "|")

    def __sub__(self, other: Circuit) -> Circuit:
        return self._combined(other, lambda a, b: a & ~b, "-")

    def __xor__(self, other: Circuit) -> Circuit:
        return self._combined(other, operator.xor, "^")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.graph == other.graph and bool((self.edges == other.edges).all())

    def __hash__(self) -> int:
        return hash((self.graph, self.edges.tobytes()))

    def _combined(self, other: Circuit, rule: Callable[[BoolArray, BoolArray], BoolArray], sign: str) -> Circuit:
        if not isinstance(other, Circuit):
            return NotImplemented
        if self.graph != other.graph:
            raise AcdcError(checks.other_graph(f"the circuit on the right of {sign!r}", other.graph, self.graph))
        mine, its = dict(self.provenance), dict(other.provenance)
        shared = {name: value for name, value in mine.items() if value == its[name]}
        for name in ("measured", "selection", "command"):  # these belong to the operands
            shared.pop(name, None)
        shared["method"] = f"({self.provenance.method}) {sign} ({other.provenance.method})"
        unit = self.unit if self.unit == other.unit else "edge"
        return Circuit(self.graph, rule(self.edges, other.edges), self.scores, Provenance(**shared), unit)

    # ---- files -------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write `circuit.json`, and `scores.safetensors` beside it, into a folder (made if need be).

        Args:
            force: replace the circuit that the folder already holds.
        """
        return files.save(self._saved(), folder, force=force)

    def write(self, folder: Path) -> None:
        """Write the same files into a folder that is there, for one that takes its place when all are written."""
        files.write(self._saved(), folder)

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """Read what `save` wrote.

        Raises:
            AcdcError: there is no circuit, or its files are damaged, incomplete or of an unknown version.
        """
        saved = files.load(folder)
        try:
            unit, made = saved.unit, saved.scores_provenance
            circuit = cls.from_names(saved.graph, list(saved.edges), provenance=saved.provenance, unit=unit)
            if saved.arrays:
                arrays, constants = taken_out(saved.arrays)
                fields: dict[str, Any] = {**arrays, "unit": unit, "signs": saved.signs, "provenance": made}
                scores = Scores(saved.graph, method=saved.method, constants=constants, **fields)
                circuit = cls(saved.graph, circuit.edges, scores, saved.provenance, unit)
            saved.check(circuit._node_scores(), circuit.edge_scores())
        except AcdcError as error:
            raise AcdcError(f"{saved.what}: {error}") from None
        return circuit

    def _saved(self) -> files.Saved:
        scores, known = self.scores, (self.graph, self.provenance, self._node_scores(), self.edge_scores())
        if scores is None:
            return files.Saved(*known, unit=self.unit)
        arrays = {name: array for name in files.ARRAYS if (array := getattr(scores, name)) is not None}
        if scores.constants is not None:
            arrays |= scores.constants.arrays()
        return files.Saved(*known, arrays, scores.method, scores.provenance, unit=self.unit, signs=scores.signs)

    def _node_scores(self) -> dict[str, float | None]:
        """Score of each component of the circuit by name; None where the method gives none."""
        values = None if self.scores is None else self.scores.nodes
        known = {} if values is None else dict(zip(self.graph.sources, values.tolist(), strict=True))
        return {name: known.get(name) for name in self.nodes()}


_SHOWN = 10
"""Edges in a table."""


def _made(made: Provenance, method: str) -> str:
    """What made it, after a comma, or nothing if that is not known."""
    return "".join([", ", " ".join(filter(None, [method, made.task, made.model]))]).removesuffix(", ")
