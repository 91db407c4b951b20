"""What a network trained by SIIT is worth: measured on inputs it has never seen, intervention by intervention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from acdc.benchmarks.training.siit import Answers, Inputs, Trial
from acdc.benchmarks.training.siit_alignment import Alignment, Swap
from acdc.tasks.programs.interp import InterpRecord

ACCURACY, INTERCHANGE, OUTSIDE = 0.99, 0.95, 0.01
"""What a network must reach: accuracy, and interchange accuracy of each node, at least; outside effect, at most."""


@torch.no_grad()
def verify(
    model: GPT2LMHeadModel,
    alignment: Alignment,
    record: InterpRecord,
    *,
    pairs: int = 2000,
    edge_pairs: int = 400,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure a network on pairs of held-out inputs.

    Returns:
        accuracy: share of answers that are the program's.
        nodes: for each aligned node, the share of answers that are the program's when it is swapped in both.
        outside: for each other node, what swapping it does: share of answers that change, and the KL divergence.
        outside_together, false_edges_together: the same with all of them swapped at once.
        true_edges: for each, the share of answers that are the program's when it is swapped in both, and that change.
        false_edges: how many there are, and the three that change most when swapped alone.
    """
    generator = torch.Generator().manual_seed(seed + 100)
    inputs = Inputs(alignment.program, seed=seed)
    trial = Trial(alignment, record, model, inputs.draw(inputs.held_out, pairs, generator))
    behaviour = trial.behaviour()
    low, none = alignment.low, torch.full((pairs,), -1)
    nobody = torch.zeros(low.n_sources, dtype=torch.bool)

    nodes = {}
    for i, place in enumerate(alignment.nodes.values()):
        nodes[place] = _share(trial.intervention(Swap.of_nodes(alignment, torch.full((pairs,), i), nobody)).right())
    outside = {}
    for s in alignment.outside.nonzero().flatten().tolist():
        only = torch.arange(low.n_sources) == s
        outside[low.sources[s]] = _effect(behaviour, trial.intervention(Swap.of_nodes(alignment, none, only)))
    everybody = Swap.of_nodes(alignment, none, alignment.outside)
    no_true = torch.zeros(pairs, len(alignment.edges[0]), dtype=torch.bool)
    every_false = Swap.of_edges(alignment, no_true, alignment.false.expand(pairs, -1, -1))

    few = Trial(alignment, record, model, inputs.draw(inputs.held_out, edge_pairs, generator))
    few_behaviour = few.behaviour()
    true_edges = {}
    no_false = torch.zeros(edge_pairs, low.n_ports, low.n_sources, dtype=torch.bool)
    for i, (destination, source) in enumerate(alignment.edges[1].tolist()):
        one = (torch.arange(no_true.shape[1]) == i).expand(edge_pairs, -1)
        swapped = few.intervention(Swap.of_edges(alignment, one, no_false))
        true_edges[low.edge_name(destination, source)] = {
            "interchange": _share(swapped.right()),
            **_effect(few_behaviour, swapped),
        }
    false_edges = {}
    for destination, source in alignment.false.nonzero().tolist():
        one = torch.zeros_like(alignment.false)
        one[destination, source] = True
        swap = Swap.of_edges(alignment, no_true[:edge_pairs], one.expand(edge_pairs, -1, -1))
        false_edges[low.edge_name(destination, source)] = _effect(few_behaviour, few.intervention(swap))
    worst = sorted(false_edges, key=lambda edge: (-false_edges[edge]["changed"], -false_edges[edge]["kl"]))
    return {
        "pairs": pairs,
        "edge_pairs": edge_pairs,
        "accuracy": _share(behaviour.right()),
        "nodes": nodes,
        "outside": outside,
        "outside_together": _effect(behaviour, trial.intervention(everybody)),
        "false_edges_together": _effect(behaviour, trial.intervention(every_false)),
        "true_edges": true_edges,
        "false_edges": {"number": len(worst), "most": {edge: false_edges[edge] for edge in worst[:3]}},
    }


def shortcomings(found: dict[str, Any]) -> list[str]:
    """What of a network's measurements is not good enough, a phrase each."""
    wrong = []
    if found["accuracy"] < ACCURACY:
        wrong.append(f"accuracy is {found['accuracy']:.4f}, expected {ACCURACY}")
    for node, share in found["nodes"].items():
        if share < INTERCHANGE:
            wrong.append(f"interchange accuracy of {node} is {share:.4f}, expected {INTERCHANGE}")
    for node, effect in found["outside"].items():
        if effect["changed"] > OUTSIDE:
            wrong.append(
                f"swapping {node}, which stands for nothing, changes {effect['changed']:.4f} of the answers"
            )
    return wrong


def _share(right: Tensor) -> float:
    return round(right.float().mean().item(), 5)


def _effect(before: Answers, after: Answers) -> dict[str, float]:
    """Share of answers that an intervention changes, and KL from before to after, where there is an answer."""
    read = before.expected >= 0
    p, q = before.logits[read].log_softmax(-1), after.logits[read].log_softmax(-1)
    return {
        "changed": _share(p.argmax(-1) != q.argmax(-1)),
        "kl": float(f"{(p.exp() * (p - q)).sum(-1).mean().item():.3g}"),
    }
