"""What the command line says of a circuit and its evaluation: in words for people, as a record for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from acdc.cli import terminal
from acdc.shown import rounded

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.evaluation.completeness import Completeness
    from acdc.evaluation.curve import Curve
    from acdc.evaluation.evaluate import Evaluation
    from acdc.evaluation.minimality import Minimality
    from acdc.evaluation.missed import Missed
    from acdc.tasks.check import TaskReport
    from acdc.viz import Drawing


def show_note(picture: Drawing) -> None:
    """What the reader of a picture should know."""
    if picture.note:
        terminal.say("note", picture.note, "bold")


def record(circuit: Circuit) -> dict[str, Any]:
    """What --json says of a circuit."""
    made = circuit.provenance
    return {
        "model": made.model,
        "task": made.task,
        "method": made.method,
        "seed": made.seed,
        "units": circuit.unit,
        "edges": circuit.edge_scores(),
        "nodes": circuit.nodes(),
    }


def show_edges(circuit: Circuit, most: int = 20) -> None:
    """Who reads from whom, a line a destination, from the logits down; where nodes were chosen, which."""
    from acdc.graph import split_edge, units_of

    if circuit.unit != "edge":
        units = units_of(circuit.graph, circuit.unit)
        kept = units.of_edges(circuit.edges)
        names = [name for name, inside in zip(units.names, kept.tolist(), strict=True) if inside]
        terminal.print_table((f"{len(names)} of {units.n} {units.plural} kept",), [(", ".join(names),)])
        print()
        return
    reads: dict[str, list[str]] = {}
    for name in circuit.edge_names():
        source, destination = split_edge(name)
        reads.setdefault(destination, []).append(source)
    rows = [(destination, ", ".join(sources)) for destination, sources in reversed(reads.items())]
    if len(rows) > most:
        rows[most:] = [("…", f"and {len(rows) - most} more: acdc export RUN --to csv")]
    if rows:
        terminal.print_table(("destination", "reads from"), rows)
        print()


FEW_PROMPTS = 32
"""Prompts below which a search is warned of."""


def few_prompts(n: int) -> str:
    """What a search on so few prompts has to reckon with."""
    return (
        f"{n} prompt{'s are' if n != 1 else ' is'} few for a search: on trained models, what was found was twice as "
        f"far from the model on other prompts as on its own with 8, 1.5 times with 16, 1.2 times with {FEW_PROMPTS}"
    )


def front_csv(circuit: Circuit) -> str:
    """The front as CSV: edges and distance from the full model on the prompts of the search, from many edges to few."""
    assert circuit.scores is not None
    assert circuit.scores.front is not None
    return "edges,distance\n" + "".join(f"{n:.0f},{distance:.6g}\n" for n, distance in circuit.scores.front)


def show_front(circuit: Circuit, most: int = 12) -> None:
    """Some points of the front, evenly by the logarithm of their size."""
    import numpy as np

    assert circuit.scores is not None
    front = circuit.scores.front
    assert front is not None
    if len(front) > most:
        size = np.log(np.maximum(front[:, 0], 1))  # the last has no edge
        wanted = np.linspace(size[0], size[-1], most)
        front = front[sorted({int(np.argmin(np.abs(size - n))) for n in wanted} | {len(front) - 1})]
    terminal.print_table(("edges", "distance"), [(f"{n:,.0f}", f"{distance:.3g}") for n, distance in front])
    print()


def show_curve(curve: Curve) -> None:
    """Faithfulness at each size, and the integrals over sizes."""
    print()
    terminal.print_table(*curve.table())
    terminal.print_facts(curve.facts().items())


def show_completeness(found: Completeness, most: int = 10) -> None:
    """How far circuit and model part when the same components are knocked out of both, the worst first."""
    knockouts = sorted(found.knockouts, key=lambda knockout: -knockout.incompleteness)
    rows = [
        (k.kind, k.name, str(len(k.components)), rounded(k.model), rounded(k.circuit), rounded(k.incompleteness))
        for k in knockouts[:most]
    ]
    print()
    terminal.print_table(("knocked out", "which", "components", "model", "circuit", "incompleteness"), rows)
    worst = f"{rounded(found.largest)} at worst"
    if not math.isnan(found.random_mean):
        worst += f", {rounded(found.random_mean)} of random sets"
    terminal.print_facts([("incompleteness", worst)])


def show_missed(found: Missed) -> None:
    share = f" ({found.bound / found.separation:.1%} of full less empty)" if found.separation else ""
    terminal.print_facts(
        [
            (
                "missed",
                f"at most {found.bound:.3g} {found.metric}{share} by any one of {found.outside:,} outside the circuit",
            ),
            ("", f"most by {found.unit}: {found.samples} random sets, {found.confidence:.0%}, if removals add up"),
        ]
    )


def show_minimality(found: Minimality, most: int = 10) -> None:
    """What removing each edge (or node) changes, the least needed first."""
    least = sorted(found.edges, key=lambda edge: edge.share)
    print()
    terminal.print_table(
        (f"least needed {found.unit}s", "share of the metric"), [(e.edge, f"{e.share:.2%}") for e in least[:most]]
    )
    terminal.print_facts([("under 1%", f"{len(found.needless())} of {len(found.edges)} {found.unit}s")])


def show_evaluation(
    evaluation: Evaluation, more: Mapping[str, str] | None = None, *, found_here: bool = True
) -> None:
    """The numbers a circuit is judged by, each beside what it must be compared with.

    Args:
        more: further lines.
        found_here: whether the discovery prompts are meant to be those the circuit was found on.
    """
    facts = evaluation.facts(found_here=found_here)
    terminal.print_facts((facts | dict(more or {})).items())


def show_task(found: TaskReport) -> None:
    """How well the model does the task, on the discovery prompts and the held-out ones, and what is wrong with it."""

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    sets = [found.discovery] + ([] if found.held_out is None else [found.held_out])
    rows = {
        "prompts": [str(q.n_prompts) for q in sets],
        f"{found.metric}, clean": [f"{q.clean:.4g}" for q in sets],
        f"{found.metric}, corrupted": [f"{q.corrupted:.4g}" for q in sets],
        "most likely token is an answer": [share(q.accuracy) for q in sets],
        "answer beats the wrong ones": [share(q.right) for q in sets],
        "a guess among them is right": [share(q.guessed) for q in sets],
        "it still does when corrupted": [share(q.right_corrupted) for q in sets],
        "positions that differ": [f"{q.changed:.3g}" for q in sets],
        "tokens": ["–".join(map(str, sorted(set(q.lengths)))) for q in sets],
        "pairs that occurred before": [str(q.duplicates) for q in sets],
    }
    terminal.print_table(
        (f"{found.task} on {found.model}", "discovery", "held out")[: len(sets) + 1],
        ((name, *values) for name, values in rows.items()),
    )
    print()
    verdict = "usable" if found.usable else "not usable"
    terminal.print_facts(
        [
            ("verdict", verdict),
            *(("problem", text) for text in found.problems),
            *(("note", text) for text in found.remarks),
        ]
    )
