"""A circuit and the neurons that stay in the nodes it keeps; on disk, `neurons.json` beside `circuit.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
from jaxtyping import Bool

from acdc.circuit import Circuit
from acdc.errors import AcdcError
from acdc.graph import BoolArray, names_digest
from acdc.graph.names import names_an_mlp
from acdc.neurons.evaluation import NeuronEvaluation
from acdc.neurons.scores import neuron_name
from acdc.shown import Shown, counted
from acdc.store.reading import read_record
from acdc.store.writing import write_atomically

NAME = "neurons.json"
SHOWN = 12
"""Neurons of an MLP that are named in a table."""
_MOST = 10_000_000
"""Hidden units of the largest MLP that is read."""


class KeptUnits(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The hidden units of an MLP, or dimensions of a head, that stay, by number, of how many."""

    hidden: int = pydantic.Field(ge=1, le=_MOST)
    kept: tuple[int, ...]


class NeuronFile(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The schema of `neurons.json`; fields as of `NeuronCircuit`; the digest is of the names of its edges."""

    format: Literal["acdc-neurons"] = "acdc-neurons"
    version: Literal[1] = 1
    edges_digest: str
    model: str
    task: str
    metric: str
    ablation: str
    method: str
    budget: float
    distance: float
    tested_alone: bool
    mlps: dict[str, KeptUnits]
    heads: dict[str, KeptUnits] = {}
    evaluation: dict[str, Any] | None = None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NeuronCircuit(Shown):
    """Neurons that stay in the MLPs of a circuit, and dimensions that stay in its heads.

    Attributes:
        circuit: its edges.
        kept: by node that the circuit keeps, and that was looked inside of, `[unit]`.
        model, task, metric, ablation: it was found with.
        method: that ranked the neurons.
        budget: largest distance from the full model that was allowed, in the metric's units (mean over the discovery
            prompts); distance: that of this circuit.
        tested_alone: whether every neuron that stays was tested alone, and could not go.
    """

    circuit: Circuit
    kept: Mapping[str, Bool[BoolArray, " _"]]
    model: str
    task: str
    metric: str
    ablation: str
    method: str
    budget: float
    distance: float
    tested_alone: bool

    @property
    def n_neurons(self) -> int:
        """Neurons that stay."""
        return sum(int(units.sum()) for units in self.kept.values())

    @property
    def n_whole(self) -> int:
        """Neurons of the nodes that the circuit keeps."""
        return sum(len(units) for units in self.kept.values())

    def names(self) -> list[str]:
        """Names like `m3.n17` and `a3.h1.d5`."""
        return [neuron_name(node, int(i)) for node, units in self.kept.items() for i in np.flatnonzero(units)]

    @property
    def _nodes(self) -> str:
        mlps = sum(names_an_mlp([node]) for node in self.kept)
        parts = {"MLP": mlps, "head": len(self.kept) - mlps}
        return " and ".join(counted(n, name) for name, n in parts.items() if n)

    def _summary(self) -> str:
        return f"{self.n_neurons} of {self.n_whole} neurons in {self._nodes}, {self.task} in {self.model}"

    def facts(self) -> dict[str, str]:
        """Sizes, and within what they were found."""
        alone = "none of them can go alone" if self.tested_alone else "not each of them was tested alone"
        more = f"; {alone}" if self.n_neurons else ""
        return {
            "neurons kept": f"{self.n_neurons} of {self.n_whole} in {self._nodes}{more}",
            "distance": f"{self.distance:.4g} from the full model in {self.metric}, {self.budget:.4g} allowed",
        }

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """A row a node."""
        rows: list[Sequence[str]] = []
        for node, units in self.kept.items():
            numbers = np.flatnonzero(units)
            some = ", ".join(map(str, numbers[:SHOWN])) + ", …" * (len(numbers) > SHOWN)
            rows.append((node, f"{len(numbers)} of {len(units)}", some))
        return ("node", "kept", "neurons"), rows

    def save(self, path: str | Path, *, evaluation: NeuronEvaluation | None = None, replace: bool = False) -> Path:
        """Write `neurons.json`, or a file of another name, whole or not at all.

        Args:
            path: a folder, or a file.
            evaluation: is kept beside the neurons.

        Raises:
            AcdcError: it cannot be written, or is there and may not be replaced.
        """
        made = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("circuit", "kept")
        }
        parts = {
            kind: {
                node: KeptUnits(hidden=len(units), kept=tuple(np.flatnonzero(units).tolist()))
                for node, units in self.kept.items()
                if names_an_mlp([node]) == (kind == "mlps")
            }
            for kind in ("mlps", "heads")
        }
        record = NeuronFile(
            edges_digest=names_digest(self.circuit.edge_names()), mlps=parts["mlps"], heads=parts["heads"], **made,
            evaluation=None if evaluation is None else dataclasses.asdict(evaluation),
        )  # fmt: skip
        place = _place(path)
        return write_atomically(place, record.model_dump_json(indent=1) + "\n", replace=replace)

    @classmethod
    def load(cls, path: str | Path, circuit: Circuit | None = None) -> NeuronCircuit:
        """Read what `save` wrote.

        Args:
            path: a run's folder, or the file.
            circuit: whose neurons they are; None: that of the folder.

        Raises:
            AcdcError: there is none, it is damaged, or it is of another circuit.
        """
        place = _place(path)
        if not place.is_file():
            raise AcdcError(f"no neurons at {str(place)!r}: find them with acdc neurons")
        record = read_record(place, NeuronFile)
        circuit = Circuit.load(place.parent) if circuit is None else circuit
        if record.edges_digest != names_digest(circuit.edge_names()):
            raise AcdcError(f"{str(place)!r} holds neurons of another circuit: find them again with acdc neurons")
        kept = {}
        there = {"mlp": record.mlps, "head": record.heads}
        for kind, node, units in ((kind, *item) for kind, part in there.items() for item in part.items()):
            if node not in circuit.graph.names(kind) or any(not 0 <= i < units.hidden for i in units.kept):
                raise AcdcError(f"{str(place)!r} is damaged: it names neurons of {node!r} that there are not")
            kept[node] = np.zeros(units.hidden, dtype=bool)
            kept[node][list(units.kept)] = True
        names = [f.name for f in dataclasses.fields(cls) if f.name not in ("circuit", "kept")]
        return cls(circuit=circuit, kept=kept, **{name: getattr(record, name) for name in names})


def _place(path: str | Path) -> Path:
    path = Path(path)
    return path / NAME if path.is_dir() else path
