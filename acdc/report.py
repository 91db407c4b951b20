"""What the command line says of a circuit and its evaluation: in words for people, as a record for programs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from acdc import terminal

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.evaluation import Evaluation
    from acdc.viz import Drawing


def note(picture: Drawing) -> None:
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
        "edges": circuit.edge_scores(),
        "nodes": circuit.nodes(),
    }


def show_edges(circuit: Circuit, most: int = 20) -> None:
    """Who reads from whom, a line a destination, from the logits down."""
    reads: dict[str, list[str]] = {}
    for name in circuit.edge_names():
        source, _, destination = name.partition("->")
        reads.setdefault(destination, []).append(source)
    rows = [(destination, ", ".join(sources)) for destination, sources in reversed(reads.items())]
    if len(rows) > most:
        rows[most:] = [("…", f"and {len(rows) - most} more: acdc export RUN --to csv")]
    terminal.print_table(("destination", "reads from"), rows)
    print()


def _rounded(value: float) -> str:
    """Three decimals, and no minus sign before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def show_evaluation(evaluation: Evaluation, more: Mapping[str, str] | None = None) -> None:
    """The numbers a circuit is judged by, each beside what it must be compared with."""
    e = evaluation
    facts = {
        "edges kept": f"{e.n_edges} of {e.n_edges_total}",
        "faithfulness": f"{_rounded(e.faithfulness)} on {e.n_prompts} {e.prompts} prompts",
    }
    if e.prompts == "held-out":
        facts["faithfulness"] += f" ({_rounded(e.discovery_faithfulness)} on those it was found on)"
    else:
        facts["faithfulness"] += ", those it was found on: --split or --held-out gives others"
    if e.random_faithfulness:
        mean, highest = statistics.fmean(e.random_faithfulness), max(e.random_faithfulness)
        facts["random circuits"] = (
            f"{_rounded(mean)} on average, {_rounded(highest)} at best "
            f"({len(e.random_faithfulness)} of the same size)"
        )
    facts[e.metric] = (
        f"full model {e.full:.4g}, circuit {e.circuit:.4g}, without any edge {e.empty:.4g} ({e.ablation} ablation)"
    )
    if e.kl is not None and e.exact_match is not None:
        facts["divergence"] = f"{e.kl:.3g} nats from the full model, {e.worst_kl:.3g} at worst"
        facts["same answer"] = f"at {e.exact_match:.1%} of the positions read"
    if e.truth is not None:
        facts["true circuit"] = (
            f"{e.truth.true_positives} of {e.truth.true_positives + e.truth.missed} true edges found, "
            f"{e.truth.false_positives} false ({e.truth.name})"
        )
    terminal.print_facts((facts | dict(more or {})).items())
