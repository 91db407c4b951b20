"""AtP*: recomputed attention and dropped layers against their definitions, and a bound that holds what was missed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
import oracle
import problems
from acdc.engine.measure import Measure
from acdc.engine.patching import Patching
from acdc.engine.plain_run import full_context
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.graph import FloatArray
from acdc.methods import METHODS, Estimates
from acdc.metrics import OUTCOMES
from acdc.model import forward


def estimates(patching: Patching, **options: bool) -> Estimates:
    score = METHODS["atp-star"].score
    assert score is not None
    return score(Problem(patching.model, patching.graph, patching.prompts, OUTCOMES["logit-difference"]), **options)


def slow(patching: Patching, measure: Measure, dropped: int | None) -> FloatArray:
    """`[prompt, n_ports, n_sources]`: one head, port and source after the other, without batches or closed forms."""
    model, graph, prompts = patching.model, patching.graph, patching.prompts
    clean, corrupted = (
        oracle.source_outputs(model.module, graph, tokens, prompts.mask)
        for tokens in (prompts.clean, prompts.corrupted)
    )
    difference = [corrupted[s] - clean[s] for s in graph.sources]
    context = full_context(model, prompts)
    leaves = [torch.zeros_like(clean["input"][None], requires_grad=True) for _ in range(graph.n_ports)]
    x: Tensor = clean["input"][None]
    seen = []  # (layer's ports, residual input, attended)
    for index, layer in enumerate(model.decomposition.layers):
        attention, rows = layer.attention, graph.layer_heads(index)
        heads = [torch.stack([x + leaves[port] for port in ports]) for ports in rows.ports.values()]
        q, k, v = (
            forward.project(attention, port, own, context, heads=range(graph.n_heads))
            for port, own in zip("qkv", heads, strict=True)
        )
        z = forward.attend(attention, q, k, v, context)
        z.retain_grad()
        seen.append((attention, rows, x.detach(), (q.detach(), k.detach(), v.detach()), z))
        written = forward.attention_output(attention, forward.scaled_by_post_norm(attention, z))
        after = x + (written.detach() if index == dropped else written)
        out = forward.mlp(layer, (x if graph.parallel else after) + leaves[graph.layer_mlp(index).every_port[0]])
        x = after + (out.detach() if index == dropped else out)
    logits = forward.readout(model.decomposition, context.at_read(x + leaves[-1]), measure.rows)
    with model.frozen():
        measure.value(logits).sum().backward()
    found = np.zeros((len(prompts), graph.n_ports, graph.n_sources))
    for port, leaf in enumerate(leaves):
        if leaf.grad is not None:
            for s, own in enumerate(difference):
                found[:, port, s] = (leaf.grad[0] * own).sum((-1, -2)).numpy()
    for attention, rows, stream, parts, z in seen:
        if z.grad is None:
            continue
        for which, port in enumerate("qk"):
            for h, p in enumerate(rows.ports[port]):
                for s, own in enumerate(difference):
                    new = [part.clone() for part in parts]
                    new[which][h] = forward.project(attention, port, (stream + own)[None], context, heads=[h])[0]
                    moved = forward.attend(attention, *new, context)[h] - z[h].detach()
                    found[:, p, s] = (moved * z.grad[h]).sum((0, -1, -2)).detach().numpy()
    return np.where(graph.valid_ports, found, 0.0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_queries_and_keys_are_recomputed_and_layers_dropped_in_turn(family: str) -> None:
    patching, measure = problems.make(family, padding="both")
    graph = patching.graph
    per_destination = graph.destination_layer[:, None]
    whole = slow(patching, measure, None)
    terms, count = 0.0, 0
    for layer in range(graph.n_layers):
        scores = np.stack([graph.from_ports(x) for x in slow(patching, measure, layer)])
        other = per_destination != layer
        terms, count = terms + np.abs(scores) * other, count + other
    size = (terms / count).mean(0)
    sign = np.sign(graph.from_ports(whole.mean(0)))
    found = estimates(patching)
    np.testing.assert_allclose(found.values, -sign * size, atol=1e-9 * size.max())
    only_fixed = estimates(patching, grad_drop=False)
    np.testing.assert_allclose(
        np.abs(only_fixed.absolute), np.abs(np.stack([graph.from_ports(x) for x in whole])).mean(0), atol=1e-9
    )


def test_without_its_corrections_it_is_eap() -> None:
    patching, _ = problems.make("llama", padding="both")
    eap = METHODS["eap"].score
    assert eap is not None
    expected = eap(Problem(patching.model, patching.graph, patching.prompts, OUTCOMES["logit-difference"]))
    found = estimates(patching, qk_fix=False, grad_drop=False)
    np.testing.assert_allclose(found.absolute, expected.absolute)
    np.testing.assert_array_equal(np.sign(found.values), np.sign(expected.values))


def test_heads_that_share_a_norm_are_refused_the_qk_fix() -> None:
    patching, _ = problems.make("olmo2")
    with pytest.raises(UnsupportedModelError, match="qk_fix=false"):
        estimates(patching)
    assert np.abs(estimates(patching, qk_fix=False).values).max() > 0


def test_how_a_size_varies_says_nothing_of_signs() -> None:
    model, prompts = problems.tiny("gpt2"), problems.make_prompts(size=8)
    scores = acdc.score(model, prompts, "atp-star")
    with pytest.raises(AcdcError, match="which atp-star does not give"):
        scores.top(5, select="bootstrap")
