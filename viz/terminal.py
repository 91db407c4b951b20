"""A circuit in the terminal, with rich: a table of who reads whom, or a tree from the logits down."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from acdc.circuit import Circuit
from acdc.viz.reduce import DrawnEdge, reduce


def _by_destination(circuit: Circuit) -> dict[str, list[DrawnEdge]]:
    """Edges by the component they enter, the last executed first; strongest edges first."""
    reduced = reduce(circuit, None, "port", max(1, circuit.n_edges))
    found: dict[str, list[DrawnEdge]] = {name: [] for name in reversed(reduced.nodes)}
    for edge in reduced.edges:
        found[edge.destination].append(edge)
    for edges in found.values():
        edges.sort(key=lambda edge: -abs(edge.score or 0.0))
    return {name: edges for name, edges in found.items() if edges}


def _edge_text(edge: DrawnEdge) -> Text:
    """Like `a0.h1 +0.52`, blue for edges that help and orange for those that hinder, as far as that is known."""
    if edge.score is None:
        return Text(edge.source)
    colour = {1: "dodger_blue1", -1: "dark_orange", 0: ""}[edge.sign]
    return Text.assemble(edge.source, (f" {edge.score:+.2g}", colour))


def table(circuit: Circuit, *, most: int = 40) -> Table:
    """One row for each destination, from the logits to the input: what it reads, strongest first.

    Args:
        most: rows beyond this many are counted, not shown.
    """
    result = Table("destination", "reads", box=None, pad_edge=False)
    rows = []
    for name, edges in _by_destination(circuit).items():
        for port in ("", "q", "k", "v"):
            here = [_edge_text(edge) for edge in edges if edge.port == port]
            if here:
                rows.append((Text(f"{name}<{port}>" if port else name), Text(", ").join(here)))
    for row in rows[:most]:
        result.add_row(*row)
    if len(rows) > most:
        result.add_row("…", f"and {len(rows) - most} more")
    return result


def tree(circuit: Circuit, *, depth: int = 12) -> Tree:
    """What the logits read, what that reads, and so on; each component's own reading is shown once.

    Args:
        depth: how many steps down from the logits to go.
    """
    by_destination = _by_destination(circuit)
    result = Tree(Text("logits", style="bold"))
    shown: set[str] = {"logits"}

    def grow(branch: Tree, name: str, left: int) -> None:
        for edge in by_destination.get(name, []):
            label = Text.assemble((f"{edge.port}: ", "dim"), _edge_text(edge)) if edge.port else _edge_text(edge)
            below = edge.source in by_destination
            if below and (edge.source in shown or left <= 1):
                label.append(" …", "dim")
            twig = branch.add(label)
            if below and edge.source not in shown and left > 1:
                shown.add(edge.source)
                grow(twig, edge.source, left - 1)

    grow(result, "logits", depth)
    return result
