"""The page's data as JSON values: numbers for every edge as base64 of little-endian arrays, names once.

Edges are counted in array order (destination, then source) throughout. A page is at most a few megabytes: attention
weights are bytes, and heads beyond a budget are left out, with a note.
"""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from acdc.circuit import Circuit
from acdc.circuit.selection import rank_needed
from acdc.evaluation.published import published
from acdc.graph import BoolArray, Graph, IntArray, Node, split_destination, units_of
from acdc.methods.signs import edge_signs, signs_of
from acdc.viz.layout import rows_of
from acdc.viz.page.findings import PATTERN_BYTES, Findings, heads_first, is_ranking

if TYPE_CHECKING:
    from acdc.evaluation.curve import Curve
    from acdc.inspection import AttentionPatterns, DirectEffects, LogitLens, RemovalEffects

VERSION = 2
MOST_EDGES = 250_000
"""Edges in a page, of a graph that has more: those of the circuits, and the strongest."""


def page_data(
    circuits: Mapping[str, Circuit],
    findings: Findings,
    *,
    roles: Mapping[str, Sequence[str]] | None,
    title: str | None,
    compare: bool = False,
    neurons: Mapping[str, BoolArray] | None = None,
) -> dict[str, Any]:
    """All that the page shows, as values that JSON has; circuits are of one graph.

    Args:
        compare: whether it opens with the first circuit compared with the second.
        neurons: which stay in each MLP, `[hidden unit]`.
    """
    first = next(iter(circuits.values()))
    made, graph, notes = first.provenance, first.graph, list(findings.notes)
    if title is None:
        title = " · ".join(dict.fromkeys(filter(None, (made.task, made.model)))) or "circuit"
    paper = None
    if roles is None and (known := published(made.model, made.task)) is not None:
        roles, paper = known.roles, f"From {known.paper}."
    if roles is None and findings.roles:
        roles, paper = findings.roles, "By what heads do on the prompts (acdc roles): each under its first label."
    heads = heads_first(circuits)
    edges = _edges_shown(circuits, graph)
    if len(edges) < graph.n_edges:
        notes.append(
            f"To keep it small, the page has {len(edges):,} of the {graph.n_edges:,} edges: those of the circuits and "
            "those with the largest scores."
        )
    return {
        "format": "acdc-page",
        "version": VERSION,
        "title": title,
        "compare": 1 if compare else -1,
        "graph": _graph(graph, edges, neurons or {}),
        "places": None,
        "circuits": [
            _circuit(name, circuit, edges, findings.curves.get(name), findings.effects.get(name), asked=first)
            for name, circuit in circuits.items()
        ],
        "roles": {role: list(names) for role, names in (roles or {}).items()},
        "rolesFrom": paper,
        "patterns": None if findings.patterns is None else _patterns(findings.patterns, heads, notes),
        "direct": None if findings.direct is None else _direct(findings.direct),
        "lens": None if findings.lens is None else _lens(findings.lens),
        "notes": notes,
    }


def packed(array: npt.ArrayLike, dtype: str) -> str:
    """An array as base64 of its little-endian bytes."""
    return base64.b64encode(np.ascontiguousarray(array).astype(dtype).tobytes()).decode()


def _numbers(values: Sequence[float] | npt.NDArray[np.float64] | None) -> list[float | None] | None:
    """Numbers to six digits, null where there is none."""
    if values is None:
        return None
    return [float(f"{x:.6g}") if math.isfinite(x) else None for x in map(float, values)]


def _edges_shown(circuits: Mapping[str, Circuit], graph: Graph) -> IntArray:
    """Which of the graph's edges, counted in array order, the page has: all, unless they are too many."""
    if graph.n_edges <= MOST_EDGES:
        return np.arange(graph.n_edges)
    wanted = [np.flatnonzero(circuit.edges[graph.valid]) for circuit in circuits.values()]
    wanted += [_ranked(circuit)[: MOST_EDGES // len(circuits)] for circuit in circuits.values() if circuit.scores]
    return np.unique(np.concatenate(wanted))


def _ranked(circuit: Circuit) -> IntArray:
    """The graph's edges by number, the largest score first."""
    assert circuit.scores is not None
    return np.argsort(-circuit.sizes()[circuit.graph.valid], kind="stable")


def _nodes_ranked(circuit: Circuit) -> IntArray:
    """The graph's sources by number, the best first."""
    units = units_of(circuit.graph, "node")
    return np.argsort(-units.values_of(circuit.sizes()), kind="stable")


def _graph(graph: Graph, edges: IntArray, neurons: Mapping[str, BoolArray]) -> dict[str, Any]:
    """Names, the edges' ends, and which components each destination feeds (`n_sources` stands for the logits).

    Nodes come with their row and column (`acdc.viz.layout`), from the input at the bottom up: the page draws some of
    them at a time, and scales rows and columns to what it draws.
    """
    split = (split_destination(name) for name in graph.destinations)
    ends = [(node, port.strip("<>")) for node, port in split]
    names = dict.fromkeys([*graph.sources, *(node for node, _ in ends)])
    rows = rows_of(graph.nodes[name] for name in names)
    destination, source = (index[edges] for index in np.nonzero(graph.valid))
    feeds = [
        np.unique(graph.port_source[graph.port_destination == d]).tolist() for d in range(graph.n_destinations)
    ]
    return {
        "sources": list(graph.sources),
        "destinations": list(graph.destinations),
        "ends": ends,
        "nodes": [
            _node(node, r, c, neurons.get(node.name)) for r, row in enumerate(rows) for c, node in enumerate(row)
        ],
        "feeds": feeds,
        "inputs": graph.n_inputs,
        "total": graph.n_edges,
        "edgeSource": packed(source, "<u2"),
        "edgeDestination": packed(destination, "<u2"),
    }


def _node(node: Node, row: int, column: int, neurons: BoolArray | None) -> dict[str, Any]:
    kind = "group" if node.shared else node.kind
    where = {"layer": node.layer, "sublayer": node.sublayer, "row": row, "column": column}
    inside = {} if neurons is None else {"hidden": len(neurons), "kept": np.flatnonzero(neurons).tolist()}
    return {"name": node.name, "kind": kind, **where} | ({"neurons": inside} if inside else {})


def _circuit(
    name: str, circuit: Circuit, edges: IntArray, curve: Curve | None, effects: RemovalEffects | None, *,
    asked: Circuit,
) -> dict[str, Any]:  # fmt: skip
    """A circuit; what was measured when it was found is told where that was the question of the circuit `asked`."""
    graph, made = circuit.graph, circuit.provenance
    number = np.full(graph.n_edges, -1)  # of each of the graph's edges, in the page
    number[edges] = np.arange(len(edges))
    scores, order = None, None
    if circuit.scores is not None:
        scores = packed(circuit.scores.values[graph.valid][edges], "<f4")
        ranked = number[_ranked(circuit)]
        left_out = np.flatnonzero(ranked < 0)
        if is_ranking(circuit.scores):
            order = packed(ranked[: left_out[0]] if len(left_out) else ranked, "<u4")
        elif circuit.scores.unit == "node":
            order = packed(_nodes_ranked(circuit), "<u4")
    facts = {
        "model": made.model,
        "task": made.task,
        "method": made.method,
        "metric": made.metric,
        "ablation": made.ablation,
        "seed": "" if made.seed is None else str(made.seed),
        "command": shlex.join(made.command),
    }
    return {
        "name": name,
        "unit": circuit.unit,
        "kept": packed(number[np.flatnonzero(circuit.edges[graph.valid])], "<u4"),
        "asked": _asked(circuit),
        "scores": scores,
        "signs": packed(_measured_signs(circuit, effects)[graph.valid][edges], "<i1"),
        "scoreSigns": edge_signs(circuit).source == "score",
        "order": order,
        "rankedBy": _ranked_by(circuit),
        "facts": {key: value for key, value in facts.items() if value},
        "measured": _measured(circuit, effects, own=made.question() == asked.provenance.question()),
        "curve": None if curve is None else _curve(curve, graph),
        "effects": None if effects is None else _effects(effects, graph, number),
    }


def _ranked_by(circuit: Circuit) -> str:
    """What its ranking goes by, in words."""
    if circuit.scores is None:
        return ""
    return {
        "order": "the later a search let it go the higher",
        "mean-absolute": "by the mean over prompts of |score|",
        "rms": "by the root mean square of the score over prompts",
        "signed": "by |score|",
    }[circuit.aggregate]


def _measured_signs(circuit: Circuit, effects: RemovalEffects | None) -> IntArray:
    """`[n_destinations, n_sources]`: 1 where an edge helps, -1 where it hinders, 0 where that was not measured.

    By removal from the circuit on the page's own prompts, and where that was not measured as it was when the circuit
    was found.
    """
    signs = edge_signs(circuit)
    found = signs.values.copy() if signs.measured else np.zeros_like(signs.values)
    if effects is None:
        return found
    if signs.source != "circuit":
        found[:] = 0  # removal from the full model is another question
    index = [circuit.graph.edge(name) for name in effects.changes]
    worse = np.array(list(effects.changes.values())) * (-1 if effects.higher_is_better else 1)
    for edge, sign in zip(index, signs_of(worse), strict=True):
        found[edge] = sign
    return found


def _asked(circuit: Circuit) -> int:
    """Where the circuit stands on its ranking's scale: how many of the best edges it takes to have it connected."""
    if circuit.scores is not None and circuit.unit == "node":
        units, order = units_of(circuit.graph, "node"), _nodes_ranked(circuit)
        first = (np.isin(np.arange(units.n), order[:n]) for n in range(units.n + 1))
        enough = (units.of_edges(circuit.graph.prune(units.mask(kept))).sum() >= circuit.n_units for kept in first)
        return next((n for n, yes in enumerate(enough) if yes), units.n)
    how = circuit.provenance.selection
    ranked = how.get("select") == "top" and how.get("by") == "absolute"
    if not ranked or circuit.scores is None:
        return circuit.n_edges
    return rank_needed(circuit.graph, circuit.sizes(), circuit.n_edges)


def _known(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def _measured(circuit: Circuit, effects: RemovalEffects | None, *, own: bool) -> dict[str, Any]:
    """The numbers that were measured when the circuit was found, or else for this page.

    Args:
        own: whether it was found for the page's question; what was measured for another is not told here.
    """
    wanted = ("faithfulness", "kl", "full", "empty", "circuit", "n_prompts", "prompts")
    found = {key: value for key, value in circuit.provenance.measured.items() if key in wanted and _known(value)}
    if not own:
        found = {}
    if isinstance(kl := found.get("kl"), float):
        found["kl"] = max(kl, 0.0)  # of two equal distributions rounding may leave less
    if "faithfulness" in found or effects is None or effects.full == effects.empty:
        return found
    from acdc.metrics import faithfulness  # which takes torch, as effects did

    share = faithfulness(effects.circuit, full=effects.full, empty=effects.empty)
    return {"faithfulness": share, "n_prompts": effects.n_prompts, "prompts": effects.prompts}


def _curve(curve: Curve, graph: Graph) -> dict[str, Any]:
    return {
        "sizes": [int(share * graph.n_edges) for share in curve.shares],
        "kept": list(curve.n_edges),
        "faithfulness": _numbers(curve.faithfulness),
        "kl": None if curve.kl is None else _numbers([max(value, 0.0) for value in curve.kl]),
    }


def _effects(effects: RemovalEffects, graph: Graph, number: IntArray) -> dict[str, Any]:
    place = np.cumsum(graph.valid.ravel()).reshape(graph.valid.shape) - 1
    return {
        "metric": effects.metric,
        "prompts": effects.prompts,
        "n": effects.n_prompts,
        "values": _numbers((effects.full, effects.empty, effects.circuit)),
        "edges": packed([number[place[graph.edge(name)]] for name in effects.changes], "<u4"),
        "changes": packed(list(effects.changes.values()), "<f4"),
    }


# ---- what was seen inside the model -----------------------------------------------------------------------------


def _bytes(pattern: npt.NDArray[np.float64]) -> str:
    return packed(np.rint(np.nan_to_num(pattern) * 255).clip(0, 255), "<u1")


def _spans(tokens: Sequence[Sequence[str]]) -> list[tuple[int, int]]:
    """From the first real token of each prompt to the last."""
    real = [[i for i, text in enumerate(row) if text] for row in tokens]
    return [(row[0], row[-1] + 1) if row else (0, 0) for row in real]


def _patterns(found: AttentionPatterns, heads: Sequence[str], notes: list[str]) -> dict[str, Any]:
    T = found.mean.shape[-1]
    spans = _spans(found.tokens)
    cost = T * T + sum((b - a) ** 2 for a, b in spans)
    shown = [name for name in heads if name in found.heads][: int(PATTERN_BYTES // max(cost, 1))]
    if len(shown) < len(heads):
        notes.append(
            f"Attention patterns are in the page for {len(shown):,} of {len(heads):,} heads, to keep it small: "
            "those of the circuits and those with the largest scores."
        )
    index = {name: i for i, name in enumerate(found.heads)}
    return {
        "length": T,
        "prompts": found.n_prompts,
        "tokens": [list(row[a:b]) for row, (a, b) in zip(found.tokens, spans, strict=True)],
        "mean": {name: _bytes(found.mean[index[name]]) for name in shown},
        "examples": {
            name: [_bytes(found.examples[index[name], i, a:b, a:b]) for i, (a, b) in enumerate(spans)]
            for name in shown
        },
    }


def _direct(found: DirectEffects) -> dict[str, Any]:
    return {
        "nodes": list(found.nodes),
        "target": found.target,
        "prompts": found.answer.shape[1],
        "answer": _numbers(found.answer.mean(axis=1)),
        "wrong": None if found.wrong is None else _numbers(found.wrong.mean(axis=1)),
        "spread": _numbers(found.difference.std(axis=1)),
    }


def _lens(found: LogitLens) -> dict[str, Any]:
    """Of each example: token indices and probabilities (bytes) `[layer, position, k]`, and the answer's fate."""
    ids = np.unique(found.top)
    names = list(dict.fromkeys(found.texts[int(i)] for i in ids))
    text_number = {int(i): names.index(found.texts[int(i)]) for i in ids}
    table = np.vectorize(text_number.__getitem__, otypes=[np.int64])(found.top)
    return {
        "layers": list(found.layers),
        "k": int(found.top.shape[-1]),
        "texts": names,
        "examples": [
            {
                "tokens": list(found.tokens[e][a:b]),
                "answers": list(found.answers[e]),
                "top": packed(table[e][:, a:b], "<u4"),
                "probability": _bytes(found.probabilities[e][:, a:b]),
                "answerProbability": _numbers(found.answer_probability[e]),
                "answerRank": _numbers(found.answer_rank[e]),
            }
            for e, (a, b) in enumerate(_spans(found.tokens))
        ],
    }
