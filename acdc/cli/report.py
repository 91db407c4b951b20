"""What the command line says of a circuit and its evaluation: in words for people, as a record for programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from acdc.cli import terminal
from acdc.graph import split_edge

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.evaluation.completeness import Completeness
    from acdc.evaluation.curve import Curve
    from acdc.evaluation.evaluate import Evaluation
    from acdc.evaluation.minimality import Minimality
    from acdc.evaluation.reproduction import Reproduction
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
        "edges": circuit.edge_scores(),
        "nodes": circuit.nodes(),
    }


def show_edges(circuit: Circuit, most: int = 20) -> None:
    """Who reads from whom, a line a destination, from the logits down."""
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


def _rounded(value: float) -> str:
    """Three decimals, and no minus sign before a zero."""
    return f"{round(value, 3) + 0.0:.3f}"


def _interval(interval: tuple[float, float]) -> str:
    """The interval in brackets, or nothing if there is none, or none that says anything."""
    low, high = interval
    return f" [{_rounded(low)}, {_rounded(high)}]" if math.isfinite(low) and math.isfinite(high) else ""


def show_curve(curve: Curve) -> None:
    """Faithfulness at each size, and the integrals over sizes."""
    kl = curve.kl or (None,) * len(curve.shares)
    rows = [
        (f"{share:.1%}", str(n), _rounded(value), "–" if nats is None else f"{nats:.3g}")
        for share, n, value, nats in zip(curve.shares, curve.n_edges, curve.faithfulness, kl, strict=True)
    ]
    print()
    terminal.print_table(("share of edges", "edges", "faithfulness", "KL, nats"), rows)
    ranking = "by the absolute value of the mean score, as CPR and CMD are defined"
    terminal.print_facts([("CPR", _rounded(curve.cpr)), ("CMD", _rounded(curve.cmd)), ("ranking", ranking)])


def show_completeness(found: Completeness, most: int = 10) -> None:
    """How far circuit and model part when the same components are knocked out of both, the worst first."""
    knockouts = sorted(found.knockouts, key=lambda knockout: -knockout.incompleteness)
    rows = [
        (k.kind, k.name, str(len(k.components)), _rounded(k.model), _rounded(k.circuit), _rounded(k.incompleteness))
        for k in knockouts[:most]
    ]
    print()
    terminal.print_table(("knocked out", "which", "components", "model", "circuit", "incompleteness"), rows)
    worst = f"{_rounded(found.largest)} at worst"
    if not math.isnan(found.random_mean):
        worst += f", {_rounded(found.random_mean)} of random sets"
    terminal.print_facts([("incompleteness", worst)])


def show_minimality(found: Minimality, most: int = 10) -> None:
    """What removing each edge changes, the least needed first."""
    least = sorted(found.edges, key=lambda edge: edge.share)
    print()
    terminal.print_table(
        ("least needed edges", "share of the metric"), [(e.edge, f"{e.share:.2%}") for e in least[:most]]
    )
    terminal.print_facts([("under 1%", f"{len(found.needless())} of {len(found.edges)} edges")])


def show_evaluation(
    evaluation: Evaluation, more: Mapping[str, str] | None = None, *, found_here: bool = True
) -> None:
    """The numbers a circuit is judged by, each beside what it must be compared with.

    Args:
        more: further lines.
        found_here: whether the discovery prompts are meant to be those the circuit was found on.
    """
    e = evaluation
    found_here = found_here and "prompts" not in e.changed
    where = "those it was found on" if found_here else "other prompts"
    facts = {
        "edges kept": f"{e.n_edges} of {e.n_edges_total}",
        "faithfulness": f"{_rounded(e.faithfulness)}{_interval(e.faithfulness_interval)} on {e.n_prompts} "
        f"{e.prompts} prompts",
    }
    if e.prompts == "held-out":
        facts["faithfulness"] += f" ({_rounded(e.discovery_faithfulness)} on {where})"
    elif found_here:
        facts["faithfulness"] += ", those it was found on: --split or --held-out gives others"
    least, greatest = e.faithfulness_range
    if not _interval(e.faithfulness_interval) and not math.isnan(least):
        facts["prompt by prompt"] = (
            f"{_rounded(least)} to {_rounded(greatest)}; no interval could be trusted from these {e.n_prompts}"
        )
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
        true = e.truth.edges_are == "true edges"
        facts["true circuit" if true else "singly necessary"] = (
            f"{e.truth.true_positives} of {e.truth.true_positives + e.truth.missed} {e.truth.edges_are} found, "
            f"{e.truth.false_positives} {'false' if true else 'others'} ({e.truth.scope or e.truth.name})"
        )
    if e.reproduction is not None:
        facts["reproduces"] = _reproduced(e.reproduction)
    terminal.print_facts((facts | dict(more or {})).items())


def _reproduced(found: Reproduction) -> str:
    """Whether all outputs are reproduced, and every edge is needed for it."""
    if found.reproduced < found.n_prompts:
        return f"the outputs on {found.reproduced} of {found.n_prompts} prompts"
    needed = "no edge can go" if found.removable is None else f"{found.removable} can go"
    return f"all outputs on {found.n_prompts} prompts, and {needed}"


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
        "and still does when corrupted": [share(q.right_corrupted) for q in sets],
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
