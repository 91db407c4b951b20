"""The interactive page: circuits to explore in a browser, as one HTML file that needs no server and no network.

`investigate` measures what the page shows beside the circuits (which takes the model), `write_page` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.circuit import Circuit
from acdc.errors import AcdcError, check_type
from acdc.graph import BoolArray
from acdc.store.writing import write_atomically
from acdc.viz.page.bundle import Page, make_html
from acdc.viz.page.data import page_data
from acdc.viz.page.findings import Findings

if TYPE_CHECKING:
    from acdc.tracing.positional_circuit import PositionalCircuit
    from acdc.viz.page.measuring import investigate, page_sizes

__all__ = ["Findings", "Page", "investigate", "page_sizes", "write_page", "write_positional_page"]


def __getattr__(name: str) -> Any:
    if name not in ("investigate", "page_sizes"):
        raise AttributeError(f"module 'acdc.viz.page' has no attribute {name!r}")
    from acdc.viz.page import measuring  # takes the model, and writing a page does not

    return getattr(measuring, name)


def write_page(
    circuits: Circuit | Mapping[str, Circuit],
    path: str | Path | None = None,
    *,
    findings: Findings | None = None,
    truth: Circuit | BoolArray | None = None,
    roles: Mapping[str, tuple[str, ...]] | None = None,
    title: str | None = None,
    replace: bool = True,
    neurons: Mapping[str, BoolArray] | None = None,
) -> Page:
    """Make a page to explore a circuit, or several circuits of one graph and compare them.

    Args:
        circuits: a circuit, or circuits by name; the first is shown first, compared with the second.
        path: where to write the file; None only returns it.
        findings: what `investigate` measured; without, the page has no curves, effects, patterns and logit lens.
        truth: the true circuit or its edges, which can then be compared with like any other.
        roles: components by role, like `{"induction": ("a5.h5",)}`; None: those of the published circuit of this
            task in this model, if there is one, or those that `investigate` found.
        title: None: the task and the model.
        replace: whether a file that is there may be replaced.
        neurons: which stay in each MLP, `[hidden unit]`, as `NeuronCircuit.kept`.

    Raises:
        AcdcError: there is no circuit, or the circuits are of different graphs.
    """
    check_type("a Circuit, or circuits by name", circuits, (Circuit, Mapping))
    named = {_name(circuits): circuits} if isinstance(circuits, Circuit) else dict(circuits)
    if not named:
        raise AcdcError("expected at least one circuit to show, got none")
    first = next(iter(named.values()))
    several = len(named) > 1
    if truth is not None:
        true = truth if isinstance(truth, Circuit) else Circuit(first.graph, truth)
        named["true circuit"] = Circuit(true.graph, true.edges)
    check_graphs(named)
    data = page_data(
        named,
        findings or Findings(notes=("Made without the model, so nothing was measured for it.",)),
        roles=roles,
        title=title,
        compare=several,
        neurons=neurons,
    )
    content = make_html(data)
    written = None if path is None else write_atomically(path, content, replace=replace)
    return Page(content, written, tuple(data["notes"]))


def check_graphs(circuits: Mapping[str, Circuit]) -> None:
    """Refuse circuits, by name, that no page can show together.

    Raises:
        AcdcError: they are of different graphs.
    """
    first_name, first = next(iter(circuits.items()))
    for name, circuit in circuits.items():
        if circuit.graph != first.graph:
            raise AcdcError(
                f"{name!r} is a circuit of another graph than {first_name!r}: only circuits of one graph, made with "
                "the same graph options, can be shown together"
            )


def write_positional_page(
    circuit: PositionalCircuit,
    path: str | Path | None = None,
    *,
    tokens: Sequence[str] | None = None,
    roles: Mapping[str, Sequence[str]] | None = None,
    replace: bool = True,
) -> Page:
    """Make a page of a circuit with positions: a column a place, with its tokens below.

    Args:
        tokens: of each place, on an example prompt; None: the places' names alone.
        path, roles, replace: as for `write_page`.

    Raises:
        AcdcError: there are not as many tokens as places.
    """
    from acdc.viz.page.positional import positional_data  # which takes torch

    if tokens is not None and len(tokens) != len(circuit.places):
        raise AcdcError(f"expected tokens of each of {len(circuit.places)} places, got {len(tokens)}")
    data = positional_data(circuit, tokens=tokens, roles=roles)
    content = make_html(data)
    written = None if path is None else write_atomically(path, content, replace=replace)
    return Page(content, written, tuple(data["notes"]))


def _name(circuit: Circuit) -> str:
    return circuit.provenance.method or "circuit"
